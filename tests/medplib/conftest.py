"""A PixelVLM at tiny size, one of the real LLaVA-1.5 in miniature, and finished runs, for every file here."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lightbox.backbones.generation import Generated
from lightbox.backbones.loading import load
from lightbox.backbones.segmenter import load_segmenter
from lightbox.paper.pixel_items import PixelItem
from lightbox.paper.pixel_prompts import point
from lightbox.paper.pixel_rows import add_tags
from lightbox.paper.pixel_vlm import PixelVLM
from lightbox.pretrain.modality_llava import write_start
from lightbox.pretrain.sam import make_processor, make_sam
from lightbox.testing.shrunk import save_shrunk
from medplib.claims import PAPER
from medplib.cli import ENTRIES

RANDOM = np.random.default_rng(0)
WIDE, TALL = (48, 64, 3), (80, 40)
PICTURES = {size: RANDOM.integers(0, 256, size, dtype=np.uint8) for size in (WIDE, TALL)}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Directories of the tiny start, of LLaVA-1.5 in miniature, and of a segmenter whose masks follow prompts."""
    root = tmp_path_factory.mktemp("models")
    write_start(root / "tiny", tower="tiny/tower")
    save_shrunk("llava-1.5-7b", root / "llava-1.5")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sam = make_sam()
        for parameter in sam.parameters():
            if parameter.ndim > 1 and parameter.requires_grad:
                fan_in = parameter[0].numel() if parameter.ndim > 2 else parameter.shape[-1]
                torch.nn.init.normal_(parameter, std=fan_in**-0.5)
    sam.save_pretrained(root / "sam")
    make_processor().save_pretrained(root / "sam")
    return root


@pytest.fixture(scope="session")
def new_model(folders) -> Callable[[str], PixelVLM]:
    """A fresh model by the name of its directory, "tiny" or "llava-1.5"."""

    def make(name: str) -> PixelVLM:
        backbone = load(str(folders / name))
        add_tags(backbone)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return PixelVLM(backbone, load_segmenter(str(folders / "sam"))).eval()

    return make


@pytest.fixture(scope="session", params=["tiny", "llava-1.5"])
def model(request, new_model):
    """Shared by tests that change nothing."""
    return new_model(request.param)


@pytest.fixture(scope="session")
def tiny(new_model):
    """Shared by tests that change nothing."""
    return new_model("tiny")


@pytest.fixture(scope="session")
def sizes(folders):
    parts = [f"model.segmenter={folders / 'sam'}", "model.start_tower=tiny/tower"]
    return ["preset=smoke", *parts, "eval.answer_tokens=4"]


@pytest.fixture(scope="session")
def arms_of(tmp_path_factory):
    """Settings -> a finished run of an arm by its name, after those that it needs, each trained once."""

    def with_settings(settings):
        done = {}

        def run(arm):
            if arm not in done:
                needs = [run(need) for need in PAPER.arms[arm].needs]
                named = [f"needs=[{','.join(map(str, needs))}]"] if needs else []
                own = [*settings, f"run.out={tmp_path_factory.mktemp(arm)}", f"experiment={arm}", *named]
                done[arm] = ENTRIES.run_once(own, "train", is_indexed=False)  # an index of MLflow takes longer
            return done[arm]

        return run

    return with_settings


@pytest.fixture(scope="session")
def trained(sizes, arms_of):
    """A finished run of an arm by its name."""
    return arms_of(sizes)


@pytest.fixture
def items():
    """Two masks and two regions; no mask; one mask and one region."""
    wide, tall = PICTURES[WIDE], PICTURES[TALL]
    half = np.zeros((48, 64), dtype=bool)
    half[:, :32] = True
    spot = np.zeros((80, 40), dtype=bool)
    spot[10:20, 5:9] = True
    return [
        PixelItem(
            wide,
            "mark <region></region> and <region></region>",
            (half, point(0.9, 0.2)),
            "the lung <SEG> and the heart <SEG> .",
            (half, ~half),
        ),
        PixelItem(tall, "is there a mass ?", (), "absent ."),
        PixelItem(tall, "segment this <region></region>", (spot,), "it is <SEG> .", (spot,)),
    ]


@pytest.fixture
def said():
    """Makes a `generate` that writes the answers of items."""

    def write(model, items):
        """A `generate` that writes the items' own answers, the shorter ones padded."""

        def generate(rows, **_):
            texts = [item.answer for item in items]
            ids = [model.backbone.target_ids(text) for text in texts]
            width = max(map(len, ids))
            table = torch.full((len(ids), width), model.backbone.tokenizer.pad_token_id)
            is_token = torch.zeros_like(table, dtype=torch.bool)
            for row, own in enumerate(ids):
                table[row, : len(own)], is_token[row, : len(own)] = torch.tensor(own), True
            texts = [model.backbone.read_ids(torch.tensor(own)) for own in ids]
            return Generated(texts, table, is_token, torch.zeros(table.shape), None, None)

        return generate

    return write
