"""What is asked is the beginning of what is learnt, whatever the answer says; where its masks stand makes no matter."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lightbox.backbones.loading import load
from lightbox.backbones.rows import IGNORED
from lightbox.paper.pixel_items import HERE, SEG, PixelItem
from lightbox.paper.pixel_rows import add_tags, prepare
from lightbox.testing.shrunk import save_shrunk
from medplib.config import resolve
from medplib.data import item_of, load_splits, target_of

HALF = np.zeros((48, 64), dtype=bool)
HALF[:, :32] = True
PICTURE = np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)
ANSWERS = {
    "yes": (),
    "finding : mass : left lung .": (),  # the official evaluation cut its prompt behind the last colon
    "USER: what is it ? ASSISTANT: a mass": (),
    f"it is {SEG} .": (HALF,),
    f"{SEG} .": (HALF,),
    f"the lung : {SEG} and {SEG}": (HALF, ~HALF),
}


@pytest.fixture(scope="module", params=["tiny", "llava-1.5", "qwen2.5-vl"])
def backbone(request, folders, tmp_path_factory):
    name = request.param
    place = folders / name if name != "qwen2.5-vl" else save_shrunk("qwen2.5-vl-7b", tmp_path_factory.mktemp("qwen"))
    own = load(str(place))
    add_tags(own)
    return own


def ids_of(backbone, items):
    """Tokens of each row without its padding, and which of them carry loss."""
    rows = prepare(backbone, items).rows
    is_token = rows.inputs["attention_mask"].bool()
    labels = torch.full_like(rows.inputs["input_ids"], IGNORED) if rows.labels is None else rows.labels
    return [
        (ids[own].tolist(), (label[own] != IGNORED).tolist())
        for ids, label, own in zip(rows.inputs["input_ids"], labels, is_token, strict=True)
    ]


@pytest.mark.parametrize("question", ["what is it ?", f"what does the region {HERE} show : a mass ?"])
def test_what_is_asked_is_the_beginning_of_what_is_learnt(backbone, question):
    regions = (HALF,) * question.count(HERE)
    learnt = [PixelItem(PICTURE, question, regions, answer, masks) for answer, masks in ANSWERS.items()]
    asked = [replace(item, answer=None, masks=()) for item in learnt]
    prompts, rows = ids_of(backbone, asked), ids_of(backbone, learnt)
    for item, (prompt, _), (ids, is_target) in zip(learnt, prompts, rows, strict=True):
        assert ids[: len(prompt)] == prompt
        assert is_target == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
        assert ids[len(prompt) :] == backbone.target_ids(item.answer)


def test_a_question_of_the_phantom_is_the_beginning_of_what_it_teaches(tiny):
    train, _ = load_splits(resolve(["preset=smoke", "experiment=mixture", "data.n_train=10"]))
    learnt = [item_of(sample, train, is_answered=True) for sample in train.samples]
    prompts = ids_of(tiny.backbone, [item_of(sample, train) for sample in train.samples])
    for sample, (prompt, _), (row, _) in zip(train.samples, prompts, ids_of(tiny.backbone, learnt), strict=True):
        assert row[: len(prompt)] == prompt
        assert row[len(prompt) :] == tiny.backbone.target_ids(target_of(sample.record))
        assert tiny.ids[SEG] not in prompt


@pytest.mark.parametrize("answer", [f"{SEG} .", f"the lung {SEG}", SEG, f"{SEG} {SEG}"])
def test_a_mask_at_either_end_of_an_answer_is_that_of_the_state_before_it(tiny, answer):
    """The state before the first word of an answer is that of the prompt's last token."""
    masks = (HALF,) * answer.count(SEG)
    items = [PixelItem(PICTURE, "what is it ?", (), "absent ."), PixelItem(PICTURE, "which ?", (), answer, masks)]
    batch = tiny.prepare(items)
    with torch.no_grad():
        rows, regions = tiny._seen(batch)
        segs = tiny._segs(tiny._states(rows, regions), rows, rows.labels != IGNORED)
        states = tiny._states(rows, regions)
    is_seg = batch.rows.inputs["input_ids"][1] == tiny.ids[SEG]
    places = is_seg.nonzero()[:, 0]
    assert segs.rows.tolist() == [1] * len(masks)
    assert torch.equal(segs.states, states[1, places - 1])
    with torch.no_grad():
        assert [tuple(mask.shape) for mask in tiny(batch).mask_logits] == [(48, 64)] * len(masks)
