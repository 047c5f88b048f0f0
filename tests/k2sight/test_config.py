"""Rules between settings: what cannot work is refused before torch."""

import pytest

from k2sight.config import resolve
from lightbox.errors import RequestError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.prompt=nme"], "data.prompt"),
        (["data.parts=[]"], "A part is scored"),
        (["data.parts=[seen]"], "data.parts"),
        (["data.absent_pct=100"], "data.absent_pct"),
        (["data.share_pct=0"], "data.share_pct"),
        (["experiment=name", "data.definition=long"], "holds no definition"),
        (["experiment=name", "eval.texts=[nearest]"], "taught names alone"),
        (["eval.texts=[wrong]"], "eval.texts"),
        (["eval.answer_tokens=0"], "eval.answer_tokens"),
        (["objective.method=majority"], "objective.method"),
        (["experiment=blob", "objective.is_trained=true"], "has no weights"),
    ],
)
def test_what_cannot_work_is_refused(overrides, message):
    with pytest.raises(RequestError, match=message):
        resolve(["preset=smoke", *overrides])


def test_baselines_need_no_weights():
    assert all(
        resolve(["preset=smoke", f"experiment={arm}"]).is_baseline for arm in ("blob", "location_prior", "oracle")
    )
    assert not resolve(["preset=smoke", "experiment=untouched"]).is_baseline
