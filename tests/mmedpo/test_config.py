"""Settings that cannot work are refused before anything heavy is imported."""

import pytest

from lightbox.errors import RequestError
from lightbox.paper.pretrained import find_pretrained
from mmedpo.claims import PAPER
from mmedpo.config import check, resolve


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (["data.mask=lung"], r"data\.mask"),
        (["data.pairs=both"], r"data\.pairs"),
        (["data.noise_step=1000"], r"data\.noise_step"),
        (["data.absurd_pct=101"], r"data\.absurd_pct"),
        (["data.start_rho=1.5"], r"data\.start_rho"),
        (["objective.method=vco"], r"objective\.method"),
        (["objective.weight_low=2"], r"objective\.weight_high"),
        (["objective.method=svco"], r"data\.pairs"),
        (["experiment=svco", "data.pairs=text"], r"objective\.method is svco and data\.pairs is text"),
        (["objective.beta=0"], r"objective\.beta"),
        (["experiment=sft", "objective.weights=relevance"], r"objective\.weights"),
        (["optim.start_steps=0"], r"optim\.start_steps"),
        (["eval.noise_step=1000"], r"eval\.noise_step"),
    ],
)
def test_a_wrong_setting_is_named(asked, named):
    with pytest.raises(RequestError, match=named):
        resolve(["preset=smoke", "run.seed=0", *asked])


def test_another_family_and_dropout_beside_a_reference_are_refused():
    cfg = resolve(["preset=smoke", "run.seed=0", "adapter.kind=lora", "adapter.dropout_prob=0.1"])
    with pytest.raises(RequestError, match=r"adapter\.dropout_prob"):
        check(cfg, find_pretrained("tiny/llava"))
    with pytest.raises(RequestError, match="florence2"):
        check(cfg, find_pretrained("tiny/florence2"))


def test_arms_that_are_compared_begin_alike_and_differ_in_what_is_claimed():
    compared = [arm for arm in PAPER.arms.values() if arm.is_trained]
    assert len(compared) > 10
    assert {arm.needs for arm in compared} == {("start",)}
    keys = {override.partition("=")[0] for arm in compared for override in arm.overrides}
    assert {key.partition(".")[0] for key in keys} == {"data", "objective"}
    # a budget is of what is compared; the start has steps of its own
    assert PAPER.budgeted == {arm.name for arm in compared}


def test_every_contrast_reads_arms_that_are_there():
    assert [claim.id for claim in PAPER.claims] == ["P1", "P2", "P3", "P4", "P5", "MR1", "MR2"]
    assert {arm for claim in PAPER.claims for arm in claim.arms} <= PAPER.arms.keys()
