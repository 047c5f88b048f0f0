"""What `model.backbone` names, found without torch: a model, or a folder with an adapter and the model under it."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightbox.adapters.manifest import DTYPES, MANIFEST, read_adapter
from lightbox.backbones import preflight, weights
from lightbox.backbones.families import Family
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError

KEY = "model.backbone"
OWN_TOWER = "tiny/tower"


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model, and what was trained on top of it.

    Args:
        name, revision: of the model, as `weights.locate` takes them; a local folder by its full path.
        family: None for a hub id, whose config.json is not here yet.
        adapter: folder of the adapter, ours or of plain peft; None for a model without one.
        manifest: of the adapter, see `read_adapter`.
    """

    name: str
    revision: str
    family: Family | None
    adapter: Path | None = None
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def has_own_tower(self) -> bool:
        """True for a vision-language model."""
        return self.family is not None and self.family.has_vision

    @property
    def is_here(self) -> bool:
        """False for a hub id, whose sizes are known once it is loaded."""
        return self.family is not None and not self.revision

    def digest(self) -> str:
        """What identifies the weights in a job key; "" where there are none."""
        if not self.name:
            return ""
        own = weights.digest_of(self.name, revision=self.revision)
        if self.adapter is None:
            return own
        return f"{own} + {weights.digest_of_folder(self.adapter, suffixes=('.safetensors', '.json'))}"

    def under(self, cfg: Any) -> Any:
        """A configuration with this model in the place of the adapter's folder, stored as in the adapter's training.

        Plain peft does not say how the model was stored, so that stays as it is configured.
        """
        model = dataclasses.replace(cfg.model, backbone=self.name, backbone_revision=self.revision)
        if self.adapter is None:
            return dataclasses.replace(cfg, model=model)
        model = dataclasses.replace(model, dtype=DTYPES.get(self.manifest["dtype"], model.dtype))
        adapter = AdapterConfig(**{"quant": cfg.adapter.quant} | self.manifest["adapter"])
        return dataclasses.replace(cfg, model=model, adapter=adapter)


def find_pretrained(name: str, revision: str = "") -> Pretrained:
    """Find what a name of weights stands for; "" is a paper that trains its own model on a tower's features.

    Raises:
        RequestError: what `preflight.check_request` refuses, or an adapter whose base is not where it was.
    """
    if not name:
        return Pretrained("", "", None)
    folder = Path(name).expanduser()
    descriptions = (folder / MANIFEST, folder / preflight.ADAPTER)
    if not any(path.is_file() for path in descriptions) or (folder / weights.CONFIG).is_file():
        return _model(name, revision)
    manifest = read_adapter(folder)
    under = manifest["base"]
    try:
        base = _model(under["name"], under["revision"] or revision)  # plain peft seldom says a revision
    except RequestError as err:
        raise RequestError(
            f"{KEY} is '{name}', an adapter that was trained on '{under['name']}'",
            f"Without that model it means nothing, and it is not there: {err.why}",
            f"Put the model back to '{under['name']}'",
        ) from err
    return dataclasses.replace(base, adapter=folder, manifest=manifest)


def check_pretrained(cfg: Any, base: Pretrained) -> None:
    """Refuse an adapter where a model is needed, and texts that cannot fit the model's context.

    Args:
        cfg: a `schema.PaperConfig`.
        base: what its `model.backbone` names.

    Raises:
        RequestError: see above, and what `preflight.check_request` refuses.
    """
    if not base.name:
        return
    is_source = cfg.data.source_tokens >= cfg.target_tokens
    preflight.check_request(
        base.name,
        base.revision,
        quant=base.manifest.get("quant") or cfg.adapter.quant,
        max_tokens=max(cfg.data.source_tokens, cfg.target_tokens),
        tokens_key="data.source_tokens" if is_source else "data.target_tokens",
    )
    if base.adapter is None:
        return
    named = f"model.backbone is '{cfg.model.backbone}', an adapter on '{base.name}'"
    if cfg.objective.is_trained:
        raise RequestError(
            f"{named}, and objective.is_trained is true",
            f"A second adapter on top of it could not be told from the first in what is saved ({MANIFEST})",
            f"Train on '{base.name}', or merge the adapter into a model first with 'lightbox export --merge'",
        )
    if cfg.adapter.kind != "none" and base.manifest["quant"] not in (None, cfg.adapter.quant):
        raise RequestError(
            f"{named} stored as {base.manifest['quant']}, and adapter.quant is {cfg.adapter.quant}",
            "The same adapter gives other numbers on a base that is stored otherwise",
            "Leave adapter.* out: how the base is stored stands in the adapter's manifest",
        )


def check_towers(cfg: Any, base: Pretrained) -> None:
    """Refuse features or another tower beside a model with its own, and low-rank additions to a fusion that is new.

    Args:
        cfg: a `schema.PaperConfig`.
        base: with its family.

    Raises:
        RequestError: naming the setting.
    """
    named = f"model.backbone is '{cfg.model.backbone}', of family {base.family.name}"
    if not base.has_own_tower:
        if cfg.adapter.projector == "lora":
            raise RequestError(
                f"adapter.projector is lora and {named}",
                "Beside a text model it is the fusion that joins image and text; it is new, so it trains whole",
                "Leave adapter.projector out",
            )
        return
    if cfg.model.features or cfg.model.tower != OWN_TOWER:
        key, value = ("features", cfg.model.features) if cfg.model.features else ("tower", cfg.model.tower)
        raise RequestError(
            f"{named}, and model.{key} is '{value}'",
            "It reads images through a tower of its own and would never see that one's features",
            f"Leave model.{key} out, or set model.backbone to a text model",
        )


def _model(name: str, revision: str) -> Pretrained:
    family = preflight.check_request(name, revision, key=KEY)
    if family is not None and not name.startswith(weights.TINY):
        name = str(Path(name).expanduser().resolve())  # a run's folder may be read from another place
    return Pretrained(name, revision, family)
