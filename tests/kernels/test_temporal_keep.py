"""What changed between frames: scores against float64, exact choices, promises, a first frame that stays whole."""

import math

import pytest
import torch

from lightbox.errors import RequestError
from lightbox.kernels.temporal_keep import op
from lightbox.kernels.temporal_keep.op import METRICS, temporal_keep
from lightbox.kernels.temporal_keep.reference import change_reference, kept_reference, temporal_keep_reference
from lightbox.testing.close import assert_close
from lightbox.testing.packed import SIZED, normal, sign_rows


def run(lane, x, metric="cos", tau=None, k_total=None, force_first=True, min_tokens=1):
    return lane.pick(op.eager, op.launch)(x, metric, tau, k_total, force_first, min_tokens)


def check(lane, x, metric="cos", **rule):
    """Scores against float64; the choice exactly, for the scores that were found."""
    mask, score = run(lane, x, metric, **rule)
    rule = {"tau": None, "k_total": None, "force_first": True, "min_tokens": 1, **rule}
    want = change_reference(x, metric, force_first=rule["force_first"])
    assert (mask.dtype, score.dtype) == (torch.bool, torch.float32)
    assert torch.equal(score[:1], want[:1].float())
    assert_close(score[1:], want[1:])
    assert mask.tolist() == kept_reference(score, **rule).tolist()
    return mask


def signs(n_frames, n_tokens, width=16, seed=0):
    """Cosines of these are exact, and many tie."""
    return sign_rows(n_frames * n_tokens, width, seed=seed).view(n_frames, n_tokens, width)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("n", "dtype"), SIZED)
def test_changes_agree_with_float64_at_every_size(lane, n, dtype, metric):
    mask = check(lane, normal(3, n, 24, seed=n).to(dtype), metric, k_total=n + 2 + (2 * n - 2) // 3)
    assert int(mask.sum()) == n + 2 + (2 * n - 2) // 3


@pytest.mark.parametrize("width", [1, 64, 588, 1000, 4097])
def test_every_width_of_a_token(lane, width):
    for metric in METRICS:
        check(lane, normal(3, 5, width, seed=1), metric, tau=0.9)


@pytest.mark.parametrize("n_frames", [1, 2, 15, 16, 17, 18, 33])
def test_stacks_of_every_length(lane, n_frames):
    check(lane, normal(n_frames, 3, 8), tau=1.0)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("min_tokens", [0, 1, 3])
@pytest.mark.parametrize("force_first", [True, False])
def test_choices_equal_the_oracle_exactly(lane, metric, min_tokens, force_first):
    """Changes of signs are exact in float32 and tie nearly everywhere: the earlier frame, then the lower place wins."""
    x = signs(5, 7)
    least = (7 if force_first else min_tokens) + 4 * min_tokens
    for rule in ({"tau": 1.0}, {"tau": 0.0}, {"k_total": least}, {"k_total": (least + 35) // 2}, {"k_total": 35}):
        rule |= {"force_first": force_first, "min_tokens": min_tokens}
        mask, score = run(lane, x, metric, **rule)
        want_mask, want_score = temporal_keep_reference(x, metric=metric, **rule)
        assert score.tolist() == want_score.tolist()
        assert mask.tolist() == want_mask.tolist()


def test_the_first_frame_stays_whole(lane):
    """The fault in Hulu-Med's released code keeps one token of it, the top left one."""
    x = signs(1, 9).expand(4, 9, 16)  # nothing changes
    mask, score = run(lane, x, "l1", tau=0.1)
    assert mask.sum(dim=1).tolist() == [9, 1, 1, 1]
    assert score[0].tolist() == [math.inf] * 9
    mask, score = run(lane, x, "l1", tau=0.1, force_first=False)
    assert mask.nonzero().tolist() == [[frame, 0] for frame in range(4)]
    assert score.tolist() == [[0.0] * 9] * 4


def test_a_number_is_shared_by_change_and_not_by_frame(lane):
    x = signs(1, 6).repeat(4, 1, 1)
    x[2, 1:5] *= -1  # frame 2 changes at four places, and frame 3 changes back
    mask, _ = run(lane, x, k_total=6 + 8, min_tokens=0)
    assert mask.sum(dim=1).tolist() == [6, 0, 4, 4]
    mask, _ = run(lane, x, k_total=6 + 8, min_tokens=1)
    assert mask.sum(dim=1).tolist() == [6, 1, 4, 3]


def test_a_threshold_is_to_be_exceeded(lane):
    x = torch.tensor([0.0, 0.5, 0.75]).view(1, 3, 1) * torch.tensor([0.0, 1.0]).view(2, 1, 1)
    mask, score = run(lane, x, "l1", tau=0.5, min_tokens=0)
    assert score[1].tolist() == [0.0, 0.5, 0.75]
    assert mask[1].tolist() == [False, False, True]


def test_tokens_of_zeros_are_at_cosine_0_to_all(lane):
    x = torch.zeros(3, 2, 16)
    x[2, 1] = 1.0
    assert run(lane, x, tau=0.5)[1][1:].tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_nan_is_the_least_wanted(lane):
    x = signs(3, 4)
    x[1, 2, 3] = math.nan
    mask, score = run(lane, x, k_total=4 + 6, min_tokens=3)
    assert score.isnan().nonzero().tolist() == [[1, 2], [2, 2]]
    assert mask[1:].tolist() == [[True, True, False, True]] * 2
    assert not run(lane, x, tau=0.0, min_tokens=0)[0][1:, 2].any()


def test_strided_frames_as_a_tower_gives_them(lane):
    packed = normal(20, 9, 2, 3)[..., 1].permute(2, 0, 1)  # 2 frames of 20 places and 9 channels
    check(lane, packed, tau=0.7)
    check(lane, packed, "l1", tau=0.7)


def test_no_frames_and_no_tokens_give_nothing(lane):
    for shape in ((0, 5, 8), (3, 0, 8)):
        mask, score = run(lane, torch.zeros(shape), k_total=0, min_tokens=0)
        assert mask.shape == score.shape == shape[:2]


@pytest.mark.parametrize("metric", METRICS)
def test_twenty_runs_are_bitwise_equal(lane, metric):
    x = normal(4, 33, 24)
    first = run(lane, x, metric, k_total=70)
    for _ in range(20):
        assert all(torch.equal(one, other) for one, other in zip(first, run(lane, x, metric, k_total=70), strict=True))


def test_a_place_does_not_depend_on_its_neighbours(lane):
    x = normal(4, 30, 24)
    score = run(lane, x, tau=1.0)[1]
    assert torch.equal(run(lane, x.flip(1), tau=1.0)[1], score.flip(1))
    assert torch.equal(run(lane, x[1:, 3:7], tau=1.0)[1][1:], score[2:, 3:7])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(6, 8)}, r"x of shape \[6, 8\]"),
        ({"x": torch.zeros(2, 3, 8).int()}, "x of int32"),
        ({"x": torch.zeros(2, 3, 0)}, r"x of shape \[2, 3, 0\]"),
        ({"x": torch.full((2, 3, 8), math.nan)}, r"x with NaN at \[0, 0, 0\]"),
        ({"metric": "l2"}, "metric='l2'"),
        ({"k_total": 5}, "tau=0.5 and k_total=5"),
        ({"tau": None}, "tau=None and k_total=None"),
        ({"tau": -0.1}, "tau=-0.1"),
        ({"tau": math.nan}, "tau=nan"),
        ({"min_tokens": 4}, "min_tokens=4 for frames of 3 tokens"),
        ({"min_tokens": -1}, "min_tokens=-1"),
        ({"tau": None, "k_total": 3}, "k_total=3 for 2 frames of 3 tokens. .* promise 4"),
        ({"tau": None, "k_total": 1, "force_first": False}, "promise 2, and there are 6"),
        ({"tau": None, "k_total": 7}, "k_total=7"),
    ],
)
def test_what_cannot_work_is_refused_in_three_parts(unchecked, changes, message):
    given = {"x": torch.zeros(2, 3, 8), "tau": 0.5, **changes}
    with pytest.raises(RequestError, match=message) as caught:
        temporal_keep(**given)
    assert all((caught.value.given, caught.value.why, caught.value.do))


@pytest.mark.parametrize("rule", [{"tau": 0.8}, {"k_total": 30}])
def test_the_operator_passes_opcheck_and_compiles(compiled, rule):
    x = normal(3, 20, 8)
    torch.library.opcheck(op._temporal_keep, (x, "cos", rule.get("tau"), rule.get("k_total"), True, 1))
    call = compiled(lambda x: temporal_keep(x, **rule), dynamic=True)
    for given in (x, normal(4, 21, 8)):
        for one, other in zip(call(given), temporal_keep(given, **rule), strict=True):
            assert torch.equal(one, other)
