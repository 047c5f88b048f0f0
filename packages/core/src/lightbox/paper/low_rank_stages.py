"""Low-rank additions that one stage of training hands on to the next: which settings can be, and that they agree.

No torch.
"""

from pathlib import Path

from lightbox.adapters.manifest import DTYPES, read_adapter
from lightbox.config import LANGUAGE, AdapterConfig
from lightbox.errors import RequestError
from lightbox.files import to_plain

HANDED_ON = {
    "projector": ("full",),
    "targets": (LANGUAGE,),
    "modules": ([],),
    "init": ("default", "loftq"),
    "quant": ("none", "nf4"),  # int8 layers move their weights into themselves, so experts cannot share them
}


def check_settings(adapter: AdapterConfig) -> None:
    """Refuse settings that stages cannot hand on; without additions all are taken.

    Raises:
        RequestError: naming the setting.
    """
    for key, values in HANDED_ON.items() if adapter.kind != "none" else ():
        if (value := getattr(adapter, key)) not in values:
            raise RequestError(
                f"adapter.{key} is {value}",
                "Stages train the projector whole, additions to all linear layers of the language model and no other "
                "module, each from those of the stage before, and experts share the frozen weights",
                f"Set adapter.{key}={values[0]}",
            )


def check_handed_on(folder: Path, adapter: AdapterConfig, dtype: str | None = None) -> None:
    """Hold that an adapter was trained with the settings, and on weights of the dtype, that go on with it.

    Args:
        folder: of the adapter.
        adapter: of the stage that goes on.
        dtype: fp32, bf16 or fp16; None is not compared.

    Raises:
        RequestError: naming both.
    """
    record = read_adapter(folder)
    trained, stored = AdapterConfig(**record["adapter"]), DTYPES.get(record["dtype"])
    if trained != adapter or dtype not in (None, stored):
        raise RequestError(
            f"The adapter of '{folder}' was trained with {to_plain(trained)} in {stored}, and here are "
            f"adapter.* {to_plain(adapter)} and {dtype}",
            "A stage goes on with the additions of the one before it",
            "Give every stage the same adapter.* and model.dtype",
        )
