"""One step of DPO on the tiny LLaVA, ours against trl's `DPOTrainer`: pairs a second and peak of live tensor bytes.

Both sides have the same weights, pairs, batches and optimiser; the tower is frozen and all else trained, in float32 on
one thread.

- vision: text and image pairs of `mmedpo.curate`. Ours keeps features of the tower and the reference. trl refuses
  `precompute_ref_log_probs` for images, so a second model stands beside the policy. Its collator is ours, since its own
  shows both answers the same image: images are processed and rows tokenised before the first step.
- text-only: the text pairs without images. The reference is computed before the first step on both sides.

A step is batch, loss, backward, clipping and AdamW. Our rows are tokenised in it, as in training; trl's are ready.
`DPOTrainer.compute_loss` is called as the Trainer does; the loops around the step are not timed, see
`train_throughput.py`. The buffer of trl's fused head is as wide as the vocabulary: of its 32,768 columns the tiny
model would fill 404, and the rest would count as bytes.

Before the timing both policies are moved away from the reference by the same noise; losses and gradient norms of a
step must agree.

Run on an idle core: uv run python benchmarks/preferences.py --record
"""

import argparse
import gc
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging as transformers_logging
from trl import DPOConfig, DPOTrainer
from trl.trainer import utils as trl_utils
from trl.trainer.dpo_trainer import DataCollatorForPreference

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.conversation import Conversation, assistant, user
from lightbox.backbones.rows import IGNORED, UNLIMITED
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.bench import ledger, timing
from lightbox.bench.live_bytes import held_by, peak_bytes
from lightbox.errors import WorkError
from lightbox.paper.conditions import Pictures
from lightbox.paper.learner import open_backbone
from lightbox.paper.pair_learner import BLIND, CHOSEN, REJECTED, Side, open_pairs
from lightbox.paper.pretrained import find_pretrained
from mmedpo.config import Config, resolve
from mmedpo.curate import Curated, curate
from mmedpo.data import load_splits, texts_of
from mmedpo.train import batch_loss

RESULTS = Path(__file__).parent / "results.csv"
SETTINGS = {"vision": (CHOSEN, REJECTED), "text-only": (BLIND, Side("rejected", "none"))}
"""Setting -> what of a pair is read."""
PAIRS = {"vision": "union", "text-only": "text"}
PEER = {
    "vision": "trl DPOTrainer, frozen reference model, images and rows prepared",
    "text-only": "trl DPOTrainer, reference precomputed",
}
SPEED_GOAL = {"vision": ">= 2", "text-only": ">= 1"}
BYTES_GOAL = {"vision": "<= 0.7"}
NOISE = 0.05
"""Of each weight, relative: at the reference every loss is log 2, whatever the log-probabilities are."""
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-5, 1e-4
"""Largest difference of the first step's losses in nats, and of its gradient norms, relative."""


@dataclass(frozen=True)
class Stepper:
    """One side: weights, what makes its batches and what it steps on.

    Args:
        model: with the weights that are trained.
        batch_of: places of pairs -> batch.
        loss: mean over a batch, with gradient.
        data: tensors beside model, optimiser and batch that every step needs.
        is_deterministic: runs with deterministic algorithms of torch alone, as our driver does and the Trainer not.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch_of: Callable[[list[int]], Any]
    loss: Callable[[Any], Tensor]
    data: list[Tensor]
    is_deterministic: bool

    def step(self, places: list[int]) -> tuple[float, float]:
        """A whole step on some pairs: its loss before the update, and its gradient norm before clipping."""
        torch.use_deterministic_algorithms(self.is_deterministic)
        loss = self.loss(self.batch_of(places))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained(self.model), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach()), float(norm)

    def run(self, batches: Sequence[list[int]]) -> None:
        """A step on each batch."""
        for places in batches:
            self.step(places)

    def peak(self, batches: Sequence[list[int]]) -> int:
        """Most live tensor bytes in the steps on some batches; states of the optimiser must be there."""
        held = [*held_by(self.model, self.optimizer), *self.data]
        return peak_bytes(lambda: self.run(batches), held=held)


def main() -> None:
    """Measure, print, and append four rows on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=300, help="that pairs are made of")
    parser.add_argument("--pairs", type=int, default=16, help="in a batch")
    parser.add_argument("--steps", type=int, default=8, help="in a measurement, each on another batch")
    parser.add_argument("--repeats", type=int, default=9, help="measurements of each side, in turns")
    parser.add_argument("--record", action="store_true", help="append the rows to results.csv")
    options = parser.parse_args()
    sizes = {"questions": options.questions, "pairs": options.pairs, "steps": options.steps}
    rows = [row for name in SETTINGS for row in measured(name, **sizes, repeats=options.repeats)]
    for row in rows:
        goal = f", goal {row['goal']}" if row["goal"] else ""
        print(f"{row['case']}: {row['ratio']}{goal} x {row['peer']} ({row['value']} {row['unit']}; {row['notes']})")
    if options.record:
        ledger.append(RESULTS, "preferences", rows)


def measured(name: str, *, questions: int, pairs: int, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Pairs a second and peak of live bytes in one setting.

    Args:
        name: in `SETTINGS`.
        questions: that pairs are made of.
        pairs: in a batch.
        steps: in a measurement, each on another batch.
        repeats: measurements of each side; who begins alternates, and the median ratio counts.

    Raises:
        WorkError: fewer pairs than all batches hold, or sides that do not train the same thing.
    """
    cfg = settings(questions, pairs, PAIRS[name])
    made = curate(cfg, load_splits(cfg)[0])
    batches = drawn(len(made.pairs), pairs, steps)
    with timing.one_thread(), settings_restored(), tempfile.TemporaryDirectory() as folder:
        ours = our_stepper(cfg, made, SETTINGS[name])
        theirs = trl_stepper(cfg, made, SETTINGS[name], Path(folder))
        for side in (ours, theirs):
            move(side.model)
        check_alike(ours, theirs, batches[0])
        gc.collect()
        calls = {"ours": partial(ours.run, batches), "trl": partial(theirs.run, batches)}
        taken = timing.in_turns(calls, rounds=repeats, round_s=0)
        peaks = [side.peak(batches) for side in (ours, theirs)]
    own_s, peer_s = ([seconds / steps for (seconds,) in rounds] for rounds in taken.values())  # round_s: one call each
    ratios = [peer / own for own, peer in zip(own_s, peer_s, strict=True)]
    own, peer = timing.times_of(own_s), timing.times_of(peer_s)
    spread = f"a step {own}, trl {peer}; {repeats} turns, ratios {min(ratios):.2f} to {max(ratios):.2f}"
    setting = (
        f"{len(made.pairs)} pairs, batch {pairs}, {steps} batches; tiny LLaVA, tower frozen, all else trained, fp32, "
        "1 thread; first loss and gradient norm alike"
    )
    speed = {
        "case": f"DPO step, {name}",
        "peer": PEER[name],
        "value": round(pairs / own.median, 1),
        "unit": "pairs/s",
        "ratio": round(statistics.median(ratios), 3),
        "goal": SPEED_GOAL[name],
        "notes": f"{spread}; {setting}",
    }
    memory = {
        "case": f"DPO step, {name}, peak of live bytes",
        "peer": PEER[name],
        "value": round(peaks[0] / 2**20, 1),
        "unit": "MiB",
        "ratio": round(peaks[0] / peaks[1], 3),
        "goal": BYTES_GOAL.get(name, ""),
        "notes": f"trl {peaks[1] / 2**20:.1f} MiB; {setting}",
    }
    return [speed, memory]


@contextmanager
def settings_restored() -> Iterator[None]:
    """Set back what the sides change for the whole process: torch's determinism and the width of trl's buffer."""
    was, width = torch.are_deterministic_algorithms_enabled(), trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was)
        trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = width


def settings(questions: int, pairs: int, kinds: str) -> Config:
    """Plain DPO with uniform weights at the size of `quick`, from the weights as they are shipped.

    b is 1, whatever the paper's arms take: it costs no time, and the rounding of log-probabilities in a loss grows with
    it.
    """
    sizes = [f"data.n_train={questions}", "data.n_test=1", f"data.pairs={kinds}", f"optim.batch_size={pairs}"]
    arm = ["objective.method=dpo", "objective.from_start=false", "objective.beta=1"]
    return resolve(["preset=quick", "run.seed=900", "run.threads=1", *arm, *sizes])


def drawn(n: int, size: int, count: int) -> list[list[int]]:
    """Places of `count` batches of `size`, out of `n` pairs in drawn order.

    Raises:
        WorkError: where there are fewer.
    """
    if n < size * count:
        raise WorkError(
            f"There are {n} pairs, and {count} batches hold {size * count}",
            "Every batch has other pairs",
            "Raise --questions, or lower --pairs or --steps",
        )
    return np.random.default_rng(0).permutation(n)[: size * count].reshape(count, size).tolist()


def our_stepper(cfg: Config, made: Curated, sides: Sequence[Side]) -> Stepper:
    """`PairLearner`: reference and, where images are read, features of the tower once, before the first step."""
    base = find_pretrained(cfg.model.backbone)
    learner = open_pairs(cfg, base, loss=partial(batch_loss, cfg), texts=texts_of, sides=sides)
    if reads_images(sides):
        learner.patches = learner.encode(made.split)
    learner.reference = learner.log_probs(made.pairs, made.split)

    def loss(batch: Any) -> Tensor:
        total, count, _ = batch_loss(cfg, *learner.answer_logps(learner.backbone, batch), batch)
        return total / count

    model = learner.backbone.core.train()
    kept = [tensor for tensor in (learner.patches, learner.reference) if tensor is not None]
    batch_of = learner.collate(made.pairs, made.split)
    return Stepper(model, adamw(model, cfg), batch_of, loss, kept, is_deterministic=True)


def trl_stepper(cfg: Config, made: Curated, sides: Sequence[Side], folder: Path) -> Stepper:
    """`DPOTrainer` at its fastest: no padding to a multiple, nothing computed again, rows in memory."""
    base, has_images = find_pretrained(cfg.model.backbone), reads_images(sides)
    backbone = open_backbone(base.under(cfg), base)
    model, reference = plain_llava(backbone), plain_llava(backbone) if has_images else None
    processor: PreTrainedTokenizerBase | ProcessorMixin = backbone.tokenizer
    collator, rows = None, text_rows(backbone, made)
    if has_images:
        collator, processor = PreparedImages.of(backbone, made, cfg.model.image_px), backbone.processor
        rows = [{"place": place, "images": [pair.image]} for place, pair in enumerate(made.pairs)]
    arguments = DPOConfig(
        str(folder),
        beta=cfg.objective.beta,
        precompute_ref_log_probs=not has_images,
        gradient_checkpointing=False,
        pad_to_multiple_of=None,
        max_length=None,
        per_device_train_batch_size=cfg.optim.batch_size,
        precompute_ref_batch_size=cfg.eval.batch_size,
        remove_unused_columns=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = DPOTrainer(
        model,
        reference,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=processor,
        data_collator=collator,
    )
    ready = list(trainer.train_dataset)
    kept = [] if reference is None else list(reference.parameters())
    trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = model.config.text_config.vocab_size  # read at each call
    return Stepper(
        model.train(),
        adamw(model, cfg),
        lambda places: dict(trainer.data_collator([ready[place] for place in places])),
        lambda batch: trainer.compute_loss(model, batch),
        kept,
        is_deterministic=False,
    )


@dataclass(frozen=True)
class PreparedImages:
    """Collator of rows that are tokenised and of images that are processed; the two sides of a pair have images apart.

    trl's own does both in every step, and shows the same image to both sides.

    Args:
        rows: ids of prompt and answers, image tokens among them.
        images: of each row the places of its two images in `pixels`.
        pixels: as the tower reads them, m c h w.
        pad_id: of the tokenizer.
    """

    rows: list[dict[str, list[int]]]
    images: list[tuple[int, int]]
    pixels: Tensor
    pad_id: int

    @classmethod
    def of(cls, backbone: Backbone, made: Curated, image_px: int) -> "PreparedImages":
        """Prepare all pairs with the processor of a model; see `Pictures` for `image_px`."""
        pictures = list(Pictures(made.split, range(len(made.split.images)), image_px=image_px))
        rows = []
        for pair in made.pairs:
            picture, record = pictures[pair.image], pair.record
            prompt, chosen = ids_of(backbone, user(picture, record.prompt), record.chosen)
            rejected = ids_of(backbone, user(picture, record.prompt), record.rejected)[1]
            rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
        images = [(pair.image, pair.record.rejected_image) for pair in made.pairs]
        return cls(rows, images, backbone.read_images(pictures)["pixel_values"], backbone.tokenizer.pad_token_id)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch of some rows, preferred answers above the others."""
        places = [example["place"] for example in examples]
        batch = DataCollatorForPreference(self.pad_id)([self.rows[place] for place in places])
        shown = [self.images[place][side] for side in (0, 1) for place in places]
        return batch | {"pixel_values": self.pixels[shown]}


def text_rows(backbone: Backbone, made: Curated) -> list[dict[str, str]]:
    """Pairs without images as texts: the prompt as our template writes it, begin token left to the tokenizer."""
    rows = []
    for record in (pair.record for pair in made.pairs):
        prompt = backbone.write(Conversation((user(record.prompt), assistant(record.chosen))))[0]
        rows.append({"prompt": prompt, "chosen": f" {record.chosen}", "rejected": f" {record.rejected}"})
    return rows


def ids_of(backbone: Backbone, asked: Any, answer: str) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of its answer with the end token."""
    batch = backbone.prepare_conversations([Conversation((asked, assistant(answer)))], max_tokens=UNLIMITED)
    ids, is_answer = batch.inputs["input_ids"][0], batch.labels[0] != IGNORED
    return ids[~is_answer].tolist(), ids[is_answer].tolist()


def plain_llava(backbone: Backbone) -> LlavaForConditionalGeneration:
    """The same weights as transformers loads them, the same attention, with the tower frozen."""
    attention = backbone.core.config._attn_implementation
    with quiet_loading():
        model = LlavaForConditionalGeneration.from_pretrained(
            backbone.core.config._name_or_path, dtype=torch.float32, attn_implementation=attention
        )
    model.model.vision_tower.requires_grad_(False)
    return model


def adamw(model: nn.Module, cfg: Config) -> torch.optim.Optimizer:
    """The optimiser of both sides."""
    return torch.optim.AdamW(trained(model), lr=cfg.optim.lr, weight_decay=cfg.optim.weight_decay, fused=True)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained, each once."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def reads_images(sides: Sequence[Side]) -> bool:
    """Whether any side of a pair is read under an image."""
    return any(side.image != "none" for side in sides)


@torch.no_grad()
def move(model: nn.Module) -> None:
    """Multiply every trained weight by noise around 1, the same draws for the same model."""
    generator = torch.Generator().manual_seed(0)
    for parameter in trained(model):
        parameter.mul_(1 + NOISE * torch.randn(parameter.shape, generator=generator))


def check_alike(ours: Stepper, theirs: Stepper, places: list[int]) -> None:
    """One step of both sides: they train the same thing.

    Raises:
        WorkError: other losses, gradient norms or numbers of weights.
    """
    (loss, norm), (peer_loss, peer_norm) = (side.step(places) for side in (ours, theirs))
    sizes = [sum(parameter.numel() for parameter in trained(side.model)) for side in (ours, theirs)]
    is_alike = abs(loss - peer_loss) <= LOSS_TOLERANCE and abs(norm / peer_norm - 1) <= NORM_TOLERANCE
    if not is_alike or sizes[0] != sizes[1]:
        raise WorkError(
            f"Our first loss is {loss:.7f} with a gradient of norm {norm:.6f} in {sizes[0]} weights, and trl's "
            f"{peer_loss:.7f} with {peer_norm:.6f} in {sizes[1]}",
            "The two sides do not train the same thing, so their times cannot be compared",
            "Find the difference before measuring",
        )


if __name__ == "__main__":
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    main()
