"""What the tiny `florence2` has learned: boxes by kind of phrase, with the image and without it."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Florence2ForConditionalGeneration, PreTrainedTokenizerFast

from lightbox.backbones.codecs import FlorenceBins
from lightbox.eval.boxes import score_boxes
from lightbox.pretrain.florence2_rows import BINS, PHRASES_PER_CASE, PhraseRows, encode
from lightbox.pretrain.llava_scores import MODES
from lightbox.records import Box

BATCH = 50
MOST_TOKENS = 27  # six boxes and the end


@torch.inference_mode()
def draw_boxes(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    rows: PhraseRows,
    indices: Sequence[int],
    *,
    shown: Callable[[Tensor], Tensor] = MODES[""],
) -> list[list[Box]]:
    """Boxes that a Florence-2 draws greedily for each phrase of some images, the phrases of an image together."""
    codec = FlorenceBins(BINS)
    boxes = []
    for start in range(0, len(indices), BATCH):
        batch = rows.collate(indices[start : start + BATCH])
        inputs = encode(model, batch | {"pixel_values": shown(batch["pixel_values"])})
        # encoded here: `generate` hands embeddings to no encoder of this family
        encoded = model.model.language_model.encoder(**inputs)
        ids = model.generate(
            encoder_outputs=encoded,
            attention_mask=inputs["attention_mask"],
            max_new_tokens=MOST_TOKENS,
            do_sample=False,
            num_beams=1,
        )
        texts = tokenizer.batch_decode(ids, skip_special_tokens=False)
        boxes += [codec.decode(text.replace(" ", ""), BINS, BINS) for text in texts]
    return boxes


def score_florence2(
    model: Florence2ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, rows: PhraseRows
) -> dict[str, float]:
    """Mean best overlap by kind of phrase, and the share of absent looks for which a box was drawn, in each mode."""
    indices = range(len(rows))
    scores = {}
    for suffix, shown in MODES.items():
        boxes = draw_boxes(model, tokenizer, rows, indices, shown=shown)
        values: defaultdict[str, list[float]] = defaultdict(list)
        for k, drawn in enumerate(boxes):
            phrase = rows.data.phrases[k // PHRASES_PER_CASE][k % PHRASES_PER_CASE]
            if phrase.boxes:
                values[f"iou_{phrase.kind}"].append(score_boxes(drawn, phrase.boxes).best_iou or 0.0)
            else:
                values["false_alarms"].append(float(bool(drawn)))
        scores |= {f"{name}{suffix}": round(sum(each) / len(each), 4) for name, each in values.items()}
    return scores
