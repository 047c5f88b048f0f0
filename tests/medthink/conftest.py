"""Hand-made items, and random weights of a few thousand parameters that every test of the paper shares."""

import pytest

from lightbox import phantom
from lightbox.paper.samples import Sample
from lightbox.phantom.facts import parse
from lightbox.records import Question
from lightbox.testing.shrunk import save_shrunk
from lightbox.testing.tiny_models import save_t5, save_tower

NODULE = "a small dense disc lies in the left upper zone . a small dense disc is a nodule ."
HEART = "the heart takes more than half of the chest width ."


def words_of_phantom():
    """Words that phantom questions, answers and rationales use."""
    texts = []
    for closed in (True, False):
        seeds = phantom.seed_range("train", 0, 60)
        for case in phantom.draw_cases(seeds, closed=closed, with_pixels=False):
            for question in case.questions:
                texts += [question.text, question.rationale, question.answer, *question.options]
    return set(" ".join(texts).lower().split())


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory):
    return save_t5(tmp_path_factory.mktemp("t5"), words_of_phantom())


@pytest.fixture(scope="session")
def tower_folder(tmp_path_factory):
    return save_tower(tmp_path_factory.mktemp("tower"), width=24)


@pytest.fixture(scope="session")
def tiny(t5_folder, tower_folder):
    """Overrides of a run that takes a second: random weights, 24 training and 12 test items, 2 steps."""
    return [
        "preset=smoke",
        "run.seed=0",
        f"model.backbone={t5_folder}",
        f"model.tower={tower_folder}",
        "data.n_train=24",
        "data.n_test=12",
        "optim.max_steps=2",
        "optim.batch_size=8",
        "eval.rationale_tokens=6",
        "eval.answer_tokens=10",
    ]


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory):
    return save_shrunk("llava-1.5-7b", tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def tiny_llava(tiny, llava_folder):
    """The same run of a vision-language model: the published LLaVA-1.5 in miniature, by LoRA."""
    own = [override for override in tiny if not override.startswith("model.")]
    return [*own, f"model.backbone={llava_folder}", "adapter.kind=lora", "adapter.r=4"]


@pytest.fixture(autouse=True)
def _without_index(request, monkeypatch):
    """Leave MLflow out, which costs seconds a run; a test marked slow keeps it."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr("lightbox.paper.entries.index_run", lambda *_: None)


@pytest.fixture
def make_item():
    """A function that makes a sample; what is not given is a closed question about a nodule."""

    def build(name="a", *, answer="yes", options=("yes", "no"), rationale=NODULE, image=0, case_id=None, **changes):
        values = {
            "id": name,
            "text": "is there a nodule ?",
            "options": options,
            "answer": answer,
            "answer_index": options.index(answer) if options else None,
            "rationale": rationale,
            "facts": tuple(sorted(parse(rationale))),
            "kind": "presence",
        }
        return Sample(name, Question(**(values | changes)), case_id or f"case-{name}", image)

    return build


@pytest.fixture
def items(make_item):
    """Six samples: three yes, two no, one open; the open one and one other are not about the left upper nodule."""
    return [
        make_item("a"),
        make_item("b", image=1),
        make_item("c", answer="no", rationale="the lungs are clear . a nodule is a small dense disc .", image=2),
        make_item("d", text="is the heart enlarged ?", rationale=HEART, kind="threshold", image=3),
        make_item("e", answer="no", rationale="a large grey wedge lies in the right lower zone .", image=4),
        make_item("f", text="where is the nodule ?", options=(), answer="left upper zone", kind="zone", image=5),
    ]
