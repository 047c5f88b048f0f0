"""What a run saves of its model besides weights, and what saved weights may be asked for. No torch."""

from lightbox.errors import RequestError
from medthink.config import Config

UNTRAINED = "weights scored as loaded, nothing trained"


def check_strategy(cfg: Config, *, method: str, form: str) -> None:
    """Raise `RequestError` where saved weights were trained for another strategy or form than they are asked for."""
    for key, own, asked in (
        ("objective.method", method, cfg.objective.method),
        ("data.form", form, cfg.data.form),
    ):
        if own and own != asked:
            raise RequestError(
                f"model.backbone is '{cfg.model.backbone}', trained with {key}={own}, and {key} is {asked}",
                "Its answers follow the template it was trained on",
                f"Choose the experiment that has {key}={own}",
            )
