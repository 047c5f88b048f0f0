"""Regions in the places of their placeholders, states at their masks, answers as in training; tiny and LLaVA-1.5."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lightbox.backbones.loading import load
from lightbox.backbones.segmenter import load_segmenter
from lightbox.errors import RequestError
from lightbox.paper import pixel_rows
from lightbox.paper.image_frames import Frame
from lightbox.paper.pixel_items import HERE, REGION_FEATURE, SEG, TAGS, PixelItem, check_item
from lightbox.paper.pixel_rows import add_tags, prepare
from lightbox.paper.pixel_vlm import PixelVLM, phrase_before, with_answers
from lightbox.pretrain import modality_llava
from lightbox.testing.shrunk import save_shrunk
from medplib.objective import LossWeights
from medplib.train import pixel_step

WEIGHTS = LossWeights()


# ---- regions


def test_a_region_is_the_mean_of_its_patches_in_the_place_of_its_placeholder(model, items):
    batch = model.prepare(items)
    ids = batch.rows.inputs["input_ids"]
    assert (ids == model.ids[REGION_FEATURE]).sum(dim=1).tolist() == [2, 0, 1]
    with torch.no_grad():
        rows, regions = model._seen(batch)
        features = model.backbone.tower([pixel_rows.shown(model.backbone, item.image) for item in items])
        grid = features.grids[0]
        patches = features.patches[0].reshape(*grid, -1)
        left = np.zeros(grid)  # of the wide picture, in the middle of its square
        frame = pixel_rows.frame_in(model.backbone, (48, 64))
        left += frame.cover(items[0].regions[0], grid)
        mean = (patches * torch.from_numpy(left / left.sum())[..., None].float()).sum(dim=(0, 1))
        torch.testing.assert_close(regions[0], model.region_adapter(mean), atol=1e-5, rtol=1e-4)
        embedded = []
        table = model.backbone.part(model.backbone.family.embeddings)
        with model._written(regions):
            handle = table.register_forward_hook(lambda _module, _arguments, out: embedded.append(out))
            model.backbone.model(**model.backbone.inputs_of(rows), use_cache=False)
            handle.remove()
    assert torch.equal(embedded[0][ids == model.ids[REGION_FEATURE]], regions)
    others = ids != model.ids[REGION_FEATURE]
    assert torch.equal(embedded[0][others], table(ids)[others])


def test_answers_depend_on_regions_and_on_their_order(model, items):
    first, second = items[0].regions
    variants = [items[0], replace(items[0], regions=(second, first)), replace(items[0], regions=(first, first))]
    with torch.no_grad():
        logits = [model(model.prepare([item])).logits for item in variants]
    assert (logits[0] - logits[1]).abs().max() > 1e-4
    assert (logits[0] - logits[2]).abs().max() > 1e-4


def test_the_tower_reads_each_picture_once(model, items):
    calls = []
    tower = model.backbone.part(model.backbone.family.vision)
    handle = tower.register_forward_hook(lambda *_: calls.append(1))
    model(model.prepare(items))
    handle.remove()
    assert len(calls) == 1


# ---- masks


def test_each_seg_has_a_mask_at_the_size_of_its_picture(model, items):
    with torch.no_grad():
        output = model(model.prepare(items))
    assert [tuple(mask.shape) for mask in output.mask_logits] == [(48, 64), (48, 64), (80, 40)]
    assert not torch.allclose(output.mask_logits[0], output.mask_logits[1])


def test_a_row_does_not_depend_on_its_batch(model, items):
    with torch.no_grad():
        together = model(model.prepare(items))
        alone = [model(model.prepare([item])) for item in items]
    masks = [mask for output in alone for mask in output.mask_logits]
    for mask, own in zip(together.mask_logits, masks, strict=True):
        torch.testing.assert_close(mask, own, atol=1e-4, rtol=0)
    torch.testing.assert_close(together.logits, torch.cat([output.logits for output in alone]), atol=1e-4, rtol=0)


def test_the_segmenter_takes_a_picture_out_of_its_square_as_frames_do(tiny, items):
    """Smooth masks on both axes: read at pixel middles in one step, and cut out and resized in two."""
    with torch.no_grad():
        embeddings = tiny.segmenter.embed(tiny.prepare(items[1:2]).pictures)
        prompts = torch.randn(6, 1, 64, generator=torch.Generator().manual_seed(0))
        masks = tiny.segmenter.decode(embeddings, prompts, image_of=[0] * 6)
    frame = Frame((80, 40), (64, 64), 0, 0, 64, 32)  # at the top left, half as wide as high
    for logits, low in zip(masks.logits, masks.low_res_logits, strict=True):
        ours, theirs = frame.unpad(low)[0], logits[0]
        assert ours.shape == theirs.shape == (80, 40)
        middle = theirs.median()
        both, either = ((ours > middle) & (theirs > middle)).sum(), ((ours > middle) | (theirs > middle)).sum()
        assert both / either > 0.95


def test_gradient_reaches_what_joins_the_two_and_no_encoder(new_model, items):
    model = new_model("tiny")
    for part in (model.sam.vision_encoder, model.backbone.part("model.vision_tower")):
        part.requires_grad_(False)
    loss, count, parts = pixel_step(model, model.prepare(items), WEIGHTS)
    loss.backward()
    assert count == 3
    assert {"text", "bce", "dice"} == set(parts)
    for part in (
        model.region_adapter.weight,
        model.seg_projector[0].weight,
        model.sam.mask_decoder.upscale_conv1.weight,
        model.backbone.part("model.language_model.layers.0.mlp.up_proj").weight,
        model.backbone.part("model.multi_modal_projector.linear_1").weight,
    ):
        assert part.grad.abs().max() > 0
    assert model.sam.vision_encoder.patch_embed.projection.weight.grad is None


def test_a_batch_without_masks_has_a_finite_loss(tiny, items):
    loss, count, parts = pixel_step(tiny, tiny.prepare(items[1:2]), WEIGHTS)
    assert torch.isfinite(loss)
    assert (count, set(parts)) == (1, {"text"})


# ---- answers


def test_masks_of_an_answer_are_those_of_training_on_it(model, items, monkeypatch, said):
    monkeypatch.setattr(model.backbone, "generate", said(model, items))
    answers = model.answer(items, max_new_tokens=20)
    with torch.no_grad():
        trained = model(model.prepare(items)).mask_logits
    drawn = [mask for answer in answers for mask in answer.masks]
    assert [len(answer.masks) for answer in answers] == [2, 0, 1]
    for mask, logits in zip(drawn, trained, strict=True):
        torch.testing.assert_close(torch.from_numpy(mask.logits), logits, atol=1e-4, rtol=0)
    for answer in answers:
        for mask in answer.masks:
            assert answer.text[slice(*mask.span)].strip() == SEG
    assert [mask.phrase for mask in answers[0].masks] == ["the lung", "the heart"]
    assert not answers[1].mask().any()
    assert answers[1].mask().shape == (80, 40)
    assert np.array_equal(answers[0].mask(), (drawn[0].logits > 0) | (drawn[1].logits > 0))


def test_states_of_an_answer_are_those_that_wrote_it(model, items):
    """The model's own words, one by one with a cache, and all at once."""
    batch = model.prepare([replace(item, answer=None, masks=()) for item in items], padding="left")
    with torch.no_grad():
        rows, regions = model._seen(batch)
        with model._written(regions):
            generated = model.backbone.generate(rows, max_new_tokens=5, with_states=True)
        whole, is_answer = with_answers(rows, generated)
        states = model._states(whole, regions)
    start = batch.rows.inputs["input_ids"].shape[1]
    for row in range(len(items)):
        n = int(generated.is_token[row].sum())
        assert n > 0
        assert is_answer[row].sum() == n
        torch.testing.assert_close(
            states[row, start - 1 : start - 1 + n], generated.states[row, :n].float(), atol=1e-4, rtol=1e-3
        )


def test_answers_are_read_once_more_only_where_they_speak_of_a_mask(model, items, monkeypatch, said):
    calls = []
    handle = model.backbone.model.register_forward_hook(lambda *_: calls.append(1))
    for answer, n_forwards in (("the lung is absent .", 0), (f"the lung {SEG} .", 1)):
        spoken = [PixelItem(item.image, "", (), answer) for item in items]
        monkeypatch.setattr(model.backbone, "generate", said(model, spoken))
        calls.clear()
        assert [len(own.masks) for own in model.answer(items, max_new_tokens=8)] == [n_forwards] * len(items)
        assert len(calls) == n_forwards
    handle.remove()


def test_a_placeholder_that_a_model_says_stands_for_nothing(model, items, monkeypatch, said):
    image = model.backbone.tokenizer.convert_ids_to_tokens(model.backbone.image_token_id)
    spoken = [f"the {SEG} .", f"{REGION_FEATURE} {image} {SEG} .", f"{image}"]
    monkeypatch.setattr(
        model.backbone,
        "generate",
        said(model, [PixelItem(i.image, "", (), t) for i, t in zip(items, spoken, strict=True)]),
    )
    answers = model.answer(items, max_new_tokens=8)
    assert [len(answer.masks) for answer in answers] == [1, 1, 0]
    # and the masks of other rows are as they were
    monkeypatch.setattr(model.backbone, "generate", said(model, [PixelItem(items[0].image, "", (), spoken[0])]))
    (alone,) = model.answer(items[:1], max_new_tokens=8)
    np.testing.assert_allclose(alone.masks[0].logits, answers[0].masks[0].logits, atol=1e-4)


def test_a_model_answers_with_words_of_its_own(tiny, items):
    answers = tiny.answer(items, max_new_tokens=4, batch_size=2)
    assert len(answers) == 3
    assert [answer.image_hw for answer in answers] == [(48, 64), (80, 40), (80, 40)]


def test_the_phrase_of_a_mask_is_its_clause():
    assert phrase_before("There are two. The left lung ") == "The left lung"
    assert phrase_before(" , and the heart ") == "the heart"
    assert phrase_before(" ") == ""


def test_the_other_state_is_a_choice(new_model, items):
    model = new_model("tiny")
    other = PixelVLM(model.backbone, model.segmenter, seg_state="self")
    other.seg_projector.load_state_dict(model.seg_projector.state_dict())
    other.region_adapter.load_state_dict(model.region_adapter.state_dict())
    with torch.no_grad():
        masks = [own(own.prepare(items[2:])).mask_logits[0] for own in (model, other)]
    assert not torch.allclose(*masks)
    with pytest.raises(RequestError, match="seg_state is 'next'"):
        PixelVLM(model.backbone, model.segmenter, seg_state="next")


def test_a_qwen_sees_the_same_items(folders, items, tmp_path):
    backbone = load(str(save_shrunk("qwen2.5-vl-7b", tmp_path)))
    add_tags(backbone)
    model = PixelVLM(backbone, load_segmenter(str(folders / "sam"))).eval()
    with torch.no_grad():
        output = model(model.prepare(items))
    assert [tuple(mask.shape) for mask in output.mask_logits] == [(48, 64), (48, 64), (80, 40)]


# ---- rows


def test_tags_are_those_of_the_start(tiny):
    assert TAGS == modality_llava.TAGS
    assert set(tiny.ids) == set(TAGS)


def test_a_backbone_without_tags_is_refused(folders):
    backbone = load(str(folders / "llava-1.5"))
    with pytest.raises(RequestError, match="lacks <SEG>, <region>, </region>, <region_feature>"):
        PixelVLM(backbone, load_segmenter(str(folders / "sam")))
    assert add_tags(backbone) == add_tags(backbone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regions": ()}, "Item 0 has 0 regions; its question says <region></region> 2 times"),
        ({"question": f"{HERE} {HERE} <region>"}, "and <region> elsewhere"),
        ({"question": f"{HERE} {HERE} {REGION_FEATURE}"}, f"and {REGION_FEATURE} elsewhere"),
        ({"masks": ()}, "Item 0 has 0 masks; its answer says <SEG> 2 times"),
        ({"answer": "one <SEG> ."}, "Item 0 has 2 masks; its answer says <SEG> 1 times"),
        ({"masks": (np.zeros((48, 64), dtype=bool),)}, "Item 0 has 1 masks; its answer says <SEG> 2 times"),
        ({"question": HERE}, "Item 0 has 2 regions; its question says <region></region> 1 times"),
        ({"masks": (np.zeros((64, 48), dtype=bool),) * 2}, r"is bool of shape \(64, 48\)"),
        ({"masks": (np.zeros((48, 64), dtype=np.uint8),) * 2}, "is uint8 of shape"),
    ],
)
def test_what_does_not_belong_together_is_refused(items, change, message):
    with pytest.raises(RequestError, match=message):
        check_item(replace(items[0], **change))


def test_answered_and_open_items_are_not_batched(tiny, items):
    with pytest.raises(RequestError, match="3 items, 2 of them answered"):
        tiny.prepare([*items[:2], replace(items[2], answer=None, masks=())])


def test_a_family_with_tiles_is_refused(tmp_path, items):
    backbone = load(str(save_shrunk("llava-next", tmp_path)))
    with pytest.raises(RequestError, match="a llava_next"):
        prepare(backbone, items[1:2])


def test_a_batch_without_answers_has_no_loss(tiny):
    batch = tiny.prepare([PixelItem(np.zeros((8, 8), dtype=np.uint8), "what is it ?")])
    with pytest.raises(RequestError, match="without targets"):
        tiny(batch)


def test_reading_leaves_no_hook_behind(tiny, items):
    table, head = (tiny.backbone.part(path) for path in ("model.language_model.embed_tokens", "lm_head"))
    before = len(table._forward_hooks), len(head._forward_pre_hooks)
    tiny.answer(items[:1], max_new_tokens=2)
    assert (len(table._forward_hooks), len(head._forward_pre_hooks)) == before
