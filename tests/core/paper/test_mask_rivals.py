"""Masks that can be had without a model, on cases whose Dice is worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from lightbox.errors import RequestError
from lightbox.eval.masks import score_mask
from lightbox.paper import mask_rivals
from lightbox.paper.mask_items import MaskItem
from lightbox.paper.mask_rivals import bright_pixels, drawer, mean_by_modality, mean_mask, squared, unsquared


def item(mask, name="liver", image=None, case_id="a"):
    mask = np.array(mask, dtype=bool)
    image = np.zeros(mask.shape, dtype=np.uint8) if image is None else image
    return MaskItem(f"{case_id}-{name}", image, name, "", mask, case_id)


def half(side, *, is_left=True):
    mask = np.zeros((side, side), dtype=bool)
    mask[:, : side // 2] = is_left
    mask[:, side // 2 :] = not is_left
    return mask


def dice(drawn, true):
    return score_mask(drawn, true)["dice"]


def test_the_mean_mask_is_what_most_training_images_of_the_class_show():
    train = [item(half(8)), item(half(8)), item(half(8, is_left=False)), item(half(8, is_left=False), "spleen")]
    asked = [item(half(8)), item(half(8), "spleen"), item(half(8), "heart")]
    drawn = mean_mask(train, asked, side_px=8, threshold=0.6)
    assert dice(drawn[0], half(8)) == 1.0
    assert dice(drawn[1], half(8, is_left=False)) == 1.0
    # never met: the mean of all four is a half everywhere, which is below 0.6
    assert not drawn[2].any()


def test_the_mean_of_a_modality_is_its_own_and_that_of_a_method_takes_all_of_them():
    left, right = half(8), half(8, is_left=False)
    of = {"ct": left, "pet": right}
    train = [replace(item(mask), id=f"{m}{k}", modality=m) for m, mask in of.items() for k in range(2)]
    asked = [replace(item(mask), id=m, modality=m) for m, mask in of.items()]
    own = mean_by_modality(train, asked)
    assert [dice(own[m] > 0, mask) for m, mask in of.items()] == [1, 1]
    shared = drawer("mean_mask", train)(asked)
    assert [dice(mask > 0, of["ct"]) for mask in shared] == [pytest.approx(2 / 3)] * 2  # everywhere as likely
    assert mean_by_modality(train, []) == {}


def test_the_threshold_is_the_best_one_for_the_training_masks():
    """Four squares in four corners: any one is missed by 3 of 4, and together they score 2 / 5 on each."""
    corners = []
    for top in (0, 4):
        for left in (0, 4):
            mask = np.zeros((8, 8), dtype=bool)
            mask[top : top + 4, left : left + 4] = True
            corners.append(item(mask))
    (at_half,) = mean_mask(corners, corners[:1], side_px=8, threshold=0.5)
    (chosen,) = mean_mask(corners, corners[:1], side_px=8)
    assert not at_half.any()
    assert chosen.all()
    assert dice(chosen, corners[0].mask) == pytest.approx(0.4)


def test_masks_of_absent_classes_are_no_part_of_the_mean():
    train = [item(half(8)), item(np.zeros((8, 8)), case_id="b"), item(np.zeros((8, 8)), case_id="c")]
    (drawn,) = mean_mask(train, [item(half(8))], side_px=8, threshold=0.5)
    assert dice(drawn, half(8)) == 1.0


def test_the_mean_mask_takes_any_aspect_to_any_other():
    wide, tall = np.zeros((10, 40), dtype=bool), np.zeros((30, 12), dtype=bool)
    wide[:, :20], tall[:, :6] = True, True
    (drawn,) = mean_mask([item(wide)], [item(tall)], side_px=16)
    assert drawn.shape == tall.shape
    assert dice(drawn, tall) == 1.0


def test_a_mask_of_any_size_comes_back_from_the_square_at_its_own_size():
    for height, width in ((7, 31), (64, 64), (50, 21), (100, 33)):
        rows, columns = np.mgrid[:height, :width]
        mask = ((rows / height - 0.4) ** 2 + (columns / width - 0.6) ** 2) < 0.09
        cells = squared(mask, 64)
        assert cells.mean() == pytest.approx(mask.mean(), abs=0.01)
        back = unsquared(cells, mask.shape)
        assert back.shape == mask.shape
        assert dice(back >= 0.5, mask) > 0.97


def test_the_oracle_is_what_the_grid_allows():
    fine = np.indices((16, 16)).sum(axis=0) % 2 == 0
    coarse = half(16)
    drawn = mask_rivals.oracle([], [item(fine), item(coarse)], side_px=4)
    assert dice(drawn[1], coarse) == 1.0
    assert dice(drawn[0], fine) < 0.7  # a chessboard is half in every cell


def test_the_whole_image_scores_by_the_share_of_the_mask():
    mask = np.zeros((10, 10), dtype=bool)
    mask[:5, :5] = True
    (drawn,) = mask_rivals.whole_image([], [item(mask)])
    assert dice(drawn, mask) == pytest.approx(2 * 25 / 125)


def test_all_that_is_bright_and_the_largest_of_it():
    image = np.full((20, 30), 30, dtype=np.uint8)
    image[2:12, 3:13], image[14:18, 20:26] = 200, 220
    true = image > 100
    asked = [item(true, image=image)]
    (every,), (largest,) = mask_rivals.bright([], asked), mask_rivals.bright_blob([], asked)
    assert dice(every, true) == 1.0
    assert dice(largest, true) == pytest.approx(2 * 100 / (100 + 124))


def test_brightness_is_of_grey_and_single_pixels_are_smoothed_away():
    image = np.zeros((200, 200, 3), dtype=np.uint8)
    image[50:150, 50:150] = (0, 255, 0)
    image[10, 10] = 255
    bright = bright_pixels(image)
    assert bright[100, 100]
    assert not bright[10, 10]
    assert abs(int(bright.sum()) - 100 * 100) < 500


def test_a_constant_image_has_nothing_bright():
    asked = [item(half(8), image=np.full((8, 8), 77, dtype=np.uint8))]
    assert not mask_rivals.bright([], asked)[0].any()
    assert not mask_rivals.bright_blob([], asked)[0].any()


@pytest.mark.parametrize("method", sorted(mask_rivals.BY_METHOD))
def test_every_rival_draws_at_the_size_of_each_image(method):
    asked = [item(np.ones((6, 11))), item(np.zeros((13, 5)), case_id="b")]
    drawn = mask_rivals.BY_METHOD[method]([item(half(8))], asked, side_px=16)
    assert [(mask.shape, mask.dtype) for mask in drawn] == [((6, 11), np.bool_), ((13, 5), np.bool_)]


def test_a_mean_of_no_mask_is_refused():
    with pytest.raises(RequestError, match="None of them shows its class"):
        mean_mask([item(np.zeros((4, 4)))], [item(half(4))])
