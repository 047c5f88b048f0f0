"""One QLoRA training step: this package's path against peft's stock one, on the same model and row in one process.

Stock is what peft's documentation shows: `prepare_model_for_kbit_training` with its defaults (non-quantised weights in
float32, layers computed again), `get_peft_model`, the model's own loss over all logits; under autocast where weights
are bf16. Ours is `adapters.attach` with layers computed again and `Backbone.loss`, which chooses supervised rows before
the head. Both quantise the same layers, adapt the same layers from the same draws, and must give the same loss.
"""

import gc
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

from lightbox.adapters.attach import attach
from lightbox.adapters.lora import target_pattern
from lightbox.backbones.backbone import Backbone
from lightbox.backbones.families import Family
from lightbox.backbones.loading import DTYPES, load
from lightbox.backbones.quantisation import keep_unpacked, settings_for
from lightbox.backbones.rows import VlmBatch
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.backbones.weights import locate
from lightbox.bench.live_bytes import held_by, peak_bytes
from lightbox.config import AdapterConfig
from lightbox.errors import WorkError
from lightbox.losses.language import IGNORED

WIDTH, LAYERS, HEADS, VOCABULARY = 256, 4, 4, 32_000
TOKENS, SUPERVISED = 512, 32
PEER = "peft, prepare_model_for_kbit_training, full logits"
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Largest difference of the two losses, relative: bf16 keeps 8 bits, and the two sides round in other places."""
ADAPTER = AdapterConfig(kind="lora", quant="nf4", r=16, alpha=32.0)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Side:
    """One way to train: `step` does a whole step and gives its loss; `held` lives through it."""

    step: Callable[[], float]
    held: Callable[[], list[Tensor]]


def run(*, repeats: int = 7, steps: int = 3, device: str = "cpu") -> list[dict]:
    """Measure speed and peak of live bytes in float32 and bf16.

    Args:
        repeats: pairs of measurements in alternating order, after one that warms up; the median ratio counts.
        steps: training steps in one measurement.
        device: cpu or cuda.

    Returns:
        Rows with case, peer, value (our steps per second, or our peak in MiB), unit, ratio (ours / peer's) and notes.

    Raises:
        WorkError: where the two sides do not compute the same loss.
    """
    torch.set_num_threads(1)
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        for dtype in ("fp32", "bf16"):
            rows += compare(Path(folder), dtype, repeats=repeats, steps=steps, device=device)
    return rows


def save_model(folder: Path) -> None:
    """Write a LLaVA with random weights: tower, tokenizer and processor of the tiny one under a body of our size."""
    tiny = locate("tiny/llava").source
    config = AutoConfig.from_pretrained(tiny)
    body = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=688,  # Llama's 8/3 of the width, up to a multiple of 16
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=1024,
        pad_token_id=config.text_config.pad_token_id,
        bos_token_id=config.text_config.bos_token_id,
        eos_token_id=config.text_config.eos_token_id,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=config.vision_config,
            text_config=body,
            image_token_index=config.image_token_index,
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
        )
    )
    with quiet_loading():
        model.save_pretrained(folder)
        AutoProcessor.from_pretrained(tiny).save_pretrained(folder)


def make_row(folder: Path, dtype: torch.dtype) -> VlmBatch:
    """One row: start, image tokens, random words; the last `SUPERVISED` of its `TOKENS` carry the loss."""
    config = AutoConfig.from_pretrained(folder)
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(1000, VOCABULARY, (TOKENS - patches - 1,), generator=generator)
    start = torch.tensor([config.text_config.bos_token_id])
    ids = torch.cat([start, torch.full((patches,), config.image_token_index), words])[None]
    labels = ids.clone()
    labels[:, :-SUPERVISED] = IGNORED
    side = config.vision_config.image_size
    pixels = torch.rand(1, 3, side, side, generator=generator).to(dtype)
    return VlmBatch({"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}, labels)


def our_side(folder: Path, dtype: str, device: str) -> Side:
    """`load`, `attach` and `Backbone.loss`."""
    backbone = load(str(folder), quant=ADAPTER.quant, dtype=dtype, device=device)
    return ours(backbone, make_row(folder, DTYPES[dtype]).to(backbone.device))


def ours(backbone: Backbone, batch: VlmBatch) -> Side:
    """Our path on a frozen model in NF4, whatever it was filled with."""
    torch.manual_seed(0)
    backbone = attach(backbone, ADAPTER, checkpoint_layers=True)

    def loss() -> Tensor:
        total, tokens, _ = backbone.loss(batch)
        return total / tokens

    return _side(backbone.model.train(), loss, batch)


def stock_side(folder: Path, dtype: str, device: str) -> Side:
    """The helpers of peft with their defaults, on the same quantised and adapted layers."""
    family = load(str(folder)).family
    with quiet_loading():
        model = LlavaForConditionalGeneration.from_pretrained(
            folder,
            dtype=DTYPES[dtype],
            **settings_for(ADAPTER.quant, family, dtype=DTYPES[dtype], device=device),
        )
    keep_unpacked(model)
    return stock(model, family, make_row(folder, DTYPES[dtype]).to(torch.device(device)))


def stock(model: PreTrainedModel, family: Family, batch: VlmBatch) -> Side:
    """The stock path on a frozen model in NF4, whatever it was filled with."""
    is_bf16 = model.dtype == torch.bfloat16
    # its default, said because torch warns where it is not
    model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": True})
    torch.manual_seed(0)
    lora = LoraConfig(r=ADAPTER.r, lora_alpha=ADAPTER.alpha, target_modules=target_pattern(model, family, ADAPTER))
    adapted = get_peft_model(model, lora).train()

    def loss() -> Tensor:
        with torch.autocast(batch.labels.device.type, torch.bfloat16, enabled=is_bf16):
            return adapted(**batch.inputs, labels=batch.labels, use_cache=False).loss

    return _side(adapted, loss, batch)


def _side(model: nn.Module, loss: Callable[[], Tensor], batch: VlmBatch) -> Side:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)

    def step() -> float:
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(value.detach())

    return Side(step, lambda: held_by(model, optimizer, {**batch.inputs, "labels": batch.labels}))


def compare(folder: Path, dtype: str, *, repeats: int, steps: int, device: str) -> list[dict]:
    """The two rows of one precision; see `run`."""
    ours, stock = our_side(folder, dtype, device), stock_side(folder, dtype, device)
    _check_sides(ours, stock, dtype)
    rates, ratios = [], []
    for number in range(repeats):
        pair = (ours, stock) if number % 2 == 0 else (stock, ours)
        taken = {id(side): seconds(side, steps) for side in pair}
        rates.append(steps / taken[id(ours)])
        ratios.append(taken[id(stock)] / taken[id(ours)])
    ratio = statistics.median(ratios)
    peaks = [peak_bytes(side.step, held=side.held(), device=device) for side in (ours, stock)]
    setting = (
        f"{dtype}; NF4, LoRA r{ADAPTER.r}; width {WIDTH}, {LAYERS} layers, vocabulary {VOCABULARY}; {TOKENS} tokens, "
        f"{SUPERVISED} supervised; layers computed again on both sides"
    )
    spread = f"{repeats} pairs of {steps} steps, ratios {min(ratios):.2f} to {max(ratios):.2f}"
    _log.info("%s: %.2f times the speed, %.2f of the memory", dtype, ratio, peaks[0] / peaks[1])
    speed = {"case": f"training step {dtype}", "peer": PEER, "value": round(statistics.median(rates), 2)}
    memory = {"case": f"training step {dtype}, peak of live bytes", "peer": PEER, "value": round(peaks[0] / 2**20, 1)}
    return [
        speed | {"unit": "steps/s", "ratio": round(ratio, 3), "notes": f"{spread}; {setting}"},
        memory | {"unit": "MiB", "ratio": round(peaks[0] / peaks[1], 3), "notes": setting},
    ]


def _check_sides(ours: Side, stock: Side, dtype: str) -> None:
    """Three steps that warm both sides up: their losses are equal, and fall."""
    losses = [(ours.step(), stock.step()) for _ in range(3)]
    for number, (mine, theirs) in enumerate(losses, start=1):
        if abs(mine - theirs) > TOLERANCE[dtype] * abs(theirs):
            raise WorkError(
                f"At step {number} in {dtype} our loss is {mine:.6f} and the stock one {theirs:.6f}",
                "The two sides do not train the same thing, so their times cannot be compared",
                "Find the difference before measuring",
            )
    (first, _), *_, (last, _) = losses
    if last >= first:
        raise WorkError(
            f"In {dtype} the loss went from {first:.6f} to {last:.6f} on one row",
            "Nothing is learnt, so the time of a step says nothing",
            "Find the fault before measuring",
        )


def seconds(side: Side, steps: int) -> float:
    """Seconds of `steps` steps, each of which waits for the device."""
    gc.collect()
    started = time.perf_counter()
    for _ in range(steps):
        side.step()
    return time.perf_counter() - started
