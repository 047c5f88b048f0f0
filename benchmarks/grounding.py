"""One grounding evaluation of K2Sight on the tiny Florence-2, ours against plain Hugging Face `generate`.

2,000 phantom images, one question each, features of the frozen tower kept on both sides. Ours is `Grounder.draw` at the
batch size of `eval.batch_size`, and gives confidences beside boxes. The peer encodes features and prompt, calls
`generate` greedily in batches of 64 and reads boxes off the text. Both must draw the same boxes.

Run on an idle core: uv run python benchmarks/grounding.py
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from k2sight.config import resolve
from k2sight.data import load_splits
from k2sight.model import Grounder, open_grounder
from k2sight.prompts import form_of, write_texts
from lightbox.backbones.rows import VlmBatch
from lightbox.bench import ledger
from lightbox.paper.pretrained import find_pretrained
from lightbox.records import Box

RESULTS = Path(__file__).parent / "results.csv"
PEER_BATCH = 64
LEAST_ALIKE = 0.99
"""Share of items with the same boxes: rounding depends on the batch, and now and then decides between two tokens."""


def main() -> None:
    """Measure and append a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=2000, help="images, with one question each")
    parser.add_argument("--steps", type=int, default=800, help="of training first, for answers of usual length")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of measurements")
    parser.add_argument("--dry-run", action="store_true", help="print the row and do not append it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [f"data.n_test={options.items}", "data.parts=[known]", "data.questions_per_case=1"]
    cfg = resolve(
        ["preset=quick", "run.seed=900", "data.eval_split=validation", f"optim.max_steps={options.steps}", *sizes]
    )
    train, scored = load_splits(cfg)
    with tempfile.TemporaryDirectory() as folder:
        grounder = open_grounder(cfg, find_pretrained(cfg.model.backbone), (train, scored), cache=Path(folder))
        grounder.learner.fit(train.samples, train, Path(folder))
    images = [sample.image for sample in scored.samples]

    def ours() -> list[list[Box]]:
        return [[one.box for one in reading.boxes] for reading in grounder.draw(scored.samples, scored, images)]

    def theirs() -> list[list[Box]]:
        return plain(grounder, scored.samples, lambda places: grounder.learner.see(scored, [images[k] for k in places]))

    pairs = []
    for repeat in range(options.repeats):
        pair = {side: timed(side) for side in ((ours, theirs) if repeat % 2 else (theirs, ours))}
        pairs.append((pair[ours], pair[theirs]))
    alike = statistics.mean(a == b for a, b in zip(pairs[0][0][1], pairs[0][1][1], strict=True))
    assert alike >= LEAST_ALIKE, f"the two sides draw the same boxes for {alike:.1%} of the items"
    ratios = [peer[0] / own[0] for own, peer in pairs]
    row = {
        "case": "grounding evaluation of the tiny Florence-2",
        "peer": f"Hugging Face generate, batch {PEER_BATCH}",
        "value": round(options.items / statistics.median(own[0] for own, _ in pairs), 1),
        "unit": "items/s",
        "ratio": round(statistics.median(ratios), 3),
        "notes": f"{options.repeats} pairs, ratios {min(ratios):.3f} to {max(ratios):.3f}; {options.items} items, "
        f"batch {cfg.eval.batch_size}, at most {cfg.eval.answer_tokens} tokens, {options.steps} steps of training, "
        f"1 thread; same boxes for {alike:.2%}",
    }
    print(f"{row['case']}: {row['ratio']} x {row['peer']} ({row['value']} {row['unit']}; {row['notes']})")
    if not options.dry_run:
        ledger.append(RESULTS, "grounding", [row])


def timed(side: Callable[[], list[list[Box]]]) -> tuple[float, list[list[Box]]]:
    """Seconds that a side takes, and its boxes."""
    began = time.perf_counter()
    boxes = side()
    return time.perf_counter() - began, boxes


@torch.inference_mode()
def plain(grounder: Grounder, samples: Sequence, see: Callable) -> list[list[Box]]:
    """What one would write with transformers alone, given the cached features: a call of each part for each batch."""
    backbone = grounder.learner.backbone
    core, processor, tokenizer, codec = backbone.core, backbone.processor, backbone.tokenizer, backbone.codec
    form = form_of(backbone.family.name, tokenizer)
    boxes = []
    for start in range(0, len(samples), PEER_BATCH):
        part = samples[start : start + PEER_BATCH]
        prompts = [prompt for prompt, _ in write_texts(grounder.cfg, part, form)]
        features = see(range(start, start + len(part)))
        image = [core.config.image_token_id] * (features.shape[1] + 1)
        ids = processor(text=prompts, add_special_tokens=False)["input_ids"]
        rows = [[*image, tokenizer.bos_token_id, *own, tokenizer.eos_token_id] for own in ids]
        batch = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
        # features in the places of image tokens, which transformers does for pixels alone
        states = core.get_encoder()(**backbone.inputs_of(VlmBatch({**batch, "patches": features})))
        answers = core.generate(
            encoder_outputs=states,
            attention_mask=batch["attention_mask"],
            max_new_tokens=grounder.cfg.eval.answer_tokens,
            do_sample=False,
            num_beams=1,
        )
        texts = tokenizer.batch_decode(answers, skip_special_tokens=False)
        boxes += [codec.decode(text.replace(" ", ""), 1, 1) for text in texts]
    return boxes


if __name__ == "__main__":
    main()
