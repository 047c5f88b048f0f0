"""Modes of positions, on rows worked out by hand."""

import torch

from lightbox.pruning.positions import following, renumbered

ON = torch.ones(1, 6, dtype=torch.bool)


def test_keep_leaves_gaps_and_the_others_close_them():
    positions = torch.tensor([[0, 1, 4, 7, 8, 9]])
    is_image = torch.tensor([[False, True, True, True, False, False]])
    assert torch.equal(renumbered(positions, ON, is_image, mode="keep"), positions)
    for mode in ("keep_rank", "compact"):
        assert renumbered(positions, ON, is_image, mode=mode).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_padding_keeps_its_positions():
    positions = torch.tensor([[0, 0, 3, 5]])
    is_token = torch.tensor([[False, True, True, True]])
    assert renumbered(positions, is_token, is_token, mode="compact").tolist() == [[0, 0, 1, 2]]


def test_rank_keeps_rows_and_columns_of_an_image_under_three_axes():
    # text 0 1, an image of 4 x 4 at 2 of which (0, 0), (2, 3), (3, 3) stay, then text at 6
    positions = torch.tensor([[[0, 1, 2, 2, 2, 6]], [[0, 1, 2, 4, 5, 6]], [[0, 1, 2, 5, 5, 6]]])
    is_image = torch.tensor([[False, False, True, True, True, False]])
    ranked = renumbered(positions, ON, is_image, mode="keep_rank")
    # rows 0, 2, 3 -> 0, 1, 2; columns 0, 3, 3 -> 0, 1, 1; text behind the largest, 2 + 2
    assert ranked[:, 0].tolist() == [[0, 1, 2, 2, 2, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 3, 5]]
    compact = renumbered(positions, ON, is_image, mode="compact")
    assert compact[:, 0].tolist() == [[0, 1, 2, 3, 4, 5]] * 3
    assert following(ranked, ON).tolist() == [6]


def test_next_position_is_behind_the_largest_and_not_behind_padding():
    positions = torch.tensor([[0, 1, 9, 1]])
    assert following(positions, torch.tensor([[True, True, True, False]])).tolist() == [10]
    assert following(positions, torch.tensor([[True, True, False, True]])).tolist() == [2]


def test_the_text_axis_in_front_does_not_count():
    spatial = torch.tensor([[[0, 1, 2]], [[0, 1, 3]], [[0, 1, 2]]])
    with_text = torch.cat([torch.tensor([[[0, 8, 9]]]), spatial])
    on = torch.ones(1, 3, dtype=torch.bool)
    assert following(with_text, on).tolist() == following(spatial, on).tolist() == [4]
