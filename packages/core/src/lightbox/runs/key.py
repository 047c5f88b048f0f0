"""Temporary."""

from dataclasses import dataclass, field

from lightbox.files import digest
from lightbox.runs.sources import source_digest

WITHOUT_EFFECT = (
    "run.out",
    "run.preset",
    "run.save_every_steps",
    "run.log_every_steps",
    "run.resume",
    "tuned",
    "needs",
)


@dataclass(frozen=True)
class Identity:
    config: dict
    inputs: dict
    modules: dict
    versions: dict
    needs: dict = field(default_factory=dict)

    @property
    def key(self):
        return digest([self.config, self.inputs, self.modules, self.versions, self.needs])[:20]


def identify(package, config, *, inputs, needs=None, chosen=()):
    config = dict(config)
    config["run"] = {k: v for k, v in config["run"].items() if f"run.{k}" not in WITHOUT_EFFECT}
    config.pop("tuned")
    config.pop("needs")
    return Identity(config, dict(inputs), {"all": source_digest(package)}, {}, dict(needs or {}))


def differences(record, identity):
    return []
