"""Which state speaks for each `<SEG>`: several, none, first, last, rows of different length, padding on either side."""

import pytest
import torch

from lightbox.errors import RequestError
from lightbox.paper.seg_states import seg_states

SEG, PAD = 7, 0
IDS = torch.tensor(
    [
        [1, 2, SEG, 3, SEG, 4],  # two
        [1, 2, 3, 4, 5, 6],  # none
        [1, 2, 3, 4, 5, SEG],  # the last token
        [1, SEG, PAD, PAD, PAD, PAD],  # short
        [PAD, PAD, PAD, 1, 2, SEG],  # padded on the left
    ]
)
HIDDEN = torch.arange(30.0).reshape(5, 6)[..., None].repeat(1, 1, 2)  # a state says its row and place
EVERYWHERE = torch.ones_like(IDS, dtype=torch.bool)


@pytest.mark.parametrize(("state", "shift"), [("predict", 1), ("self", 0)])
def test_each_seg_has_its_state_in_order(state, shift):
    gathered = seg_states(HIDDEN, IDS, SEG, is_answer=EVERYWHERE, state=state)
    assert list(zip(gathered.rows.tolist(), gathered.places.tolist(), strict=True)) == [
        (0, 2),
        (0, 4),
        (2, 5),
        (3, 1),
        (4, 5),
    ]
    assert gathered.states[:, 0].tolist() == [
        6 * row + place - shift for row, place in [(0, 2), (0, 4), (2, 5), (3, 1), (4, 5)]
    ]


def test_a_batch_without_seg_has_no_states():
    gathered = seg_states(HIDDEN[1:2], IDS[1:2], SEG, is_answer=EVERYWHERE[1:2])
    assert gathered.states.shape == (0, 2)
    assert gathered.rows.tolist() == []


def test_a_seg_of_the_question_asks_for_nothing():
    is_answer = EVERYWHERE.clone()
    is_answer[0, :3] = False
    assert seg_states(HIDDEN, IDS, SEG, is_answer=is_answer).places.tolist() == [4, 5, 1, 5]


def test_placeholders_of_images_and_regions_shift_a_seg_with_its_state():
    wide = torch.cat([torch.full((5, 4), 9), IDS], dim=1)
    states = torch.cat([torch.full((5, 4, 2), -1.0), HIDDEN], dim=1)
    is_answer = torch.ones_like(wide, dtype=torch.bool)
    plain = seg_states(HIDDEN, IDS, SEG, is_answer=EVERYWHERE)
    assert torch.equal(seg_states(states, wide, SEG, is_answer=is_answer).states, plain.states)


def test_gradient_reaches_the_state_before():
    hidden = HIDDEN.clone().requires_grad_()
    seg_states(hidden, IDS, SEG, is_answer=EVERYWHERE).states.sum().backward()
    assert hidden.grad[0, :, 0].tolist() == [0, 1, 0, 1, 0, 0]


def test_a_seg_that_nothing_predicts_is_refused():
    ids = torch.tensor([[1, 2], [SEG, 1]])
    with pytest.raises(RequestError, match="Row 1 begins with <SEG>"):
        seg_states(HIDDEN[:2, :2], ids, SEG, is_answer=torch.ones(2, 2, dtype=torch.bool))
    own = seg_states(HIDDEN[:2, :2], ids, SEG, is_answer=torch.ones(2, 2, dtype=torch.bool), state="self")
    assert own.rows.tolist() == [1]


def test_states_of_other_positions_are_refused():
    with pytest.raises(RequestError, match=r"States of shape \(5, 5, 2\) for ids of \(5, 6\)"):
        seg_states(HIDDEN[:, 1:], IDS, SEG, is_answer=EVERYWHERE)
    with pytest.raises(RequestError, match="seg_state is 'next'"):
        seg_states(HIDDEN, IDS, SEG, is_answer=EVERYWHERE, state="next")
