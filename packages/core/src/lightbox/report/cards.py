"""A table of published models: memory of a training step with one row, and the largest batch for each GPU."""

from collections.abc import Iterator
from pathlib import Path

from lightbox.adapters.memory.gpus import GPUS_GB, recorded, said_of, usable_bytes
from lightbox.adapters.memory.named import NAMED, describe
from lightbox.adapters.memory.prediction import GIB, largest_batches, predict
from lightbox.adapters.memory.request import Request
from lightbox.backbones.families import family_of
from lightbox.config import AdapterConfig

TITLES = ("model", "what trains", "tokens", "GiB, 1 row", *(f"{gpu_gb} GB" for gpu_gb in GPUS_GB), "status")
TOKENS = {
    "llava-next-7b": 3072,
    "florence-2-base": 640,
    "florence-2-large": 640,
    "unifiedqa-t5-base": 512,
    "unifiedqa-t5-large": 512,
}
"""Rows have 1,024 tokens, but where five tiles need more or the model reads fewer."""
ADAPTERS = {
    "QLoRA r16": AdapterConfig(kind="lora", quant="nf4"),
    "LoRA r16": AdapterConfig(kind="lora"),
}


def table(rows: Path) -> Iterator[tuple[str, ...]]:
    """Cells of one line for each model and adapter, as `TITLES` names them.

    Args:
        rows: table of recorded benchmarks, by which a step counts as measured; it need not exist.
    """
    usable = [usable_bytes(gpu_gb) for gpu_gb in GPUS_GB]
    for name, config in NAMED.items():
        family = family_of(config, name=name)
        for kind, adapter in ADAPTERS.items():
            request = Request(config, family, adapter, tokens=TOKENS.get(name, 1024))
            batches = (str(batch) if batch else "none" for batch in largest_batches(request, usable))
            status = said_of(recorded(rows, describe(name, request)))
            yield name, kind, str(request.tokens), f"{predict(request).total / GIB:.1f}", *batches, status
