"""What `model.backbone` names, found without torch: a model, or a folder with an adapter and the model under it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightbox.adapters.manifest import MANIFEST, read_manifest
from lightbox.backbones import preflight, weights
from lightbox.backbones.families import Family
from lightbox.errors import RequestError

KEY = "model.backbone"
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Base:
    """A pretrained model, and what was trained on top of it.

    Args:
        name, revision: of the model, as `weights.locate` takes them; a local folder by its full path.
        family: None for a hub id, whose config.json is not here yet.
        adapter: folder of the adapter; None for a model without one.
        record: the adapter's manifest.
    """

    name: str
    revision: str
    family: Family | None
    adapter: Path | None = None
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def has_own_tower(self) -> bool:
        """True for a vision-language model."""
        return self.family is not None and self.family.has_vision

    def digest(self) -> str:
        """What identifies the weights in a job key."""
        own = weights.digest_of(self.name, revision=self.revision)
        if self.adapter is None:
            return own
        return f"{own} + {weights.digest_of_folder(self.adapter, suffixes=('.safetensors', '.json'))}"


def find_base(name: str, revision: str = "") -> Base:
    """Find what a name of weights stands for.

    Raises:
        RequestError: what `preflight.check_request` refuses, or an adapter whose base is not where it was.
    """
    folder = Path(name).expanduser()
    if not (folder / MANIFEST).is_file() or (folder / weights.CONFIG).is_file():
        return _model(name, revision)
    record = read_manifest(folder, "adapter")
    under = record["base"]
    try:
        base = _model(under["name"], under["revision"])
    except RequestError as err:
        raise RequestError(
            f"{KEY} is '{name}', an adapter that was trained on '{under['name']}'",
            f"Without that model it means nothing, and it is not there: {err.why}",
            f"Put the model back to '{under['name']}'",
        ) from err
    return Base(base.name, base.revision, base.family, adapter=folder, record=record)


def _model(name: str, revision: str) -> Base:
    family = preflight.check_request(name, revision, key=KEY)
    if family is not None and not name.startswith(weights.TINY):
        name = str(Path(name).expanduser().resolve())  # a run's folder may be read from another place
    return Base(name, revision, family)
