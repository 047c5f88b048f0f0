"""Configuration: composition, refusals that name the key, digests, documentation of leaves."""

import sys
import textwrap
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import pytest

from lightbox import config, files
from lightbox.errors import RequestError


class Colour(StrEnum):
    GREY = "grey"


@dataclass
class ModelPart:
    width: int = 4
    """Width of the model; time grows with its square."""
    colour: Colour = Colour.GREY
    """Colour of the image."""


@dataclass
class ToyConfig:
    optim: config.OptimConfig
    run: config.RunConfig
    model: ModelPart = field(default_factory=ModelPart)


FILES = {
    "__init__.py": "",
    "conf/__init__.py": "",
    "conf/train.yaml": """
        defaults: [toypaper_train_schema, _self_, {preset: smoke}, {experiment: null}]
        optim: {lr: 1e-3, max_steps: 100}
        """,
    "conf/loose.yaml": "anything: 1",
    "conf/preset/smoke.yaml": """
        # @package _global_
        optim: {max_steps: 5}
        run: {preset: smoke}
        """,
    "conf/preset/misspelt.yaml": """
        # @package _global_
        optim: {maxsteps: 5}
        """,
    "conf/experiment/wide.yaml": """
        # @package _global_
        model: {width: 8}
        """,
}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Compose overrides of a small package that lies in a temporary folder."""
    for name, text in FILES.items():
        path = tmp_path / "toypaper" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config.register_schema("toypaper", "train", ToyConfig)
    yield lambda *overrides: config.compose("toypaper", "train", overrides)
    for name in [name for name in sys.modules if name.split(".")[0] == "toypaper"]:
        del sys.modules[name]


def test_preset_overrides_the_file_and_the_command_line_overrides_both(toy):
    assert toy("run.seed=0").optim.max_steps == 5
    assert toy("run.seed=0", "optim.max_steps=7").optim.max_steps == 7


def test_composition_returns_the_dataclass_with_nested_parts(toy):
    cfg = toy("run.seed=3", "experiment=wide", "optim.lr=1e-4")
    assert isinstance(cfg, ToyConfig)
    assert (cfg.run.seed, cfg.model.width, cfg.optim.lr, cfg.run.preset) == (3, 8, 1e-4, "smoke")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "given", "do"),
    [
        (["optim.lrr=1"], "there is no key 'optim.lrr'", "optim.lr"),
        (["lr=1"], "there is no key 'lr'", "optim.lr"),
        (["presett=smoke"], "there is no key 'presett'", "preset"),
        (["run.seed=x"], "the value of run.seed", "run.seed"),
        (["run.seed=null"], "the value of run.seed", "run.seed"),
        (["model=3"], "the value of model", "model"),
        ([], "run.seed has no value", "run.seed=VALUE"),
        (["preset=smok"], "'preset=smok'", "preset=smoke"),
        (
            ["preset=misspelt", "run.seed=0"],
            "In 'preset/misspelt': there is no key 'optim.maxsteps'",
            "optim.max_steps",
        ),
        (["optim.lr"], "The override 'optim.lr'", "key=value"),
        (["--lr=1"], "The override '--lr=1'", "key=value"),
        (["optim.lr=["], "The override 'optim.lr=['", "quote"),
        (["optim.lr=1,2"], "The override 'optim.lr=1,2'", "one run per value"),
        (["+extra=1"], "The override '+extra=1'", "keys of the schema"),
        (["hydra.run.dir=x"], "The override 'hydra.run.dir=x'", "keys of the schema"),
    ],
)
def test_a_wrong_request_names_what_was_given_and_what_to_do(toy, overrides, given, do):
    with pytest.raises(RequestError) as caught:
        toy(*overrides)
    assert given in caught.value.given
    assert do in caught.value.do


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("optim.lr=0", "optim.lr"),
        ("optim.lr=nan", "optim.lr"),
        ("optim.max_steps=0", "optim.max_steps"),
        ("optim.clip_norm=-1", "optim.clip_norm"),
        ("optim.warmup_frac=1.0", "optim.warmup_frac"),
        ("optim.schedule=cosin", "optim.schedule=cosine"),
        ("optim.micro_batch_size=7", "optim.micro_batch_size"),
        ("run.seed=-1", "run.seed"),
        ("run.threads=0", "run.threads"),
        ("run.device=gpu", "run.device"),
        ("run.precision=fp16", "run.precision"),
        ("run.log_every_steps=0", "run.log_every_steps"),
    ],
)
def test_a_rule_of_the_schema_names_its_key(toy, override, key):
    with pytest.raises(RequestError) as caught:
        toy("run.seed=0", override)
    assert key in str(caught.value)


def test_quoted_values_stay_text(toy):
    assert toy("run.seed=0", "run.out='a, b=c'").run.out == "a, b=c"


def test_compositions_share_no_state(toy):
    first = toy("run.seed=0", "model.width=16")
    first.optim.lr = 1.0
    assert (toy("run.seed=0").model.width, toy("run.seed=0").optim.lr) == (4, 1e-3)


def test_seed_zero_and_micro_batch_that_divides_are_accepted(toy):
    cfg = toy("run.seed=0", "optim.batch_size=6", "optim.micro_batch_size=3")
    assert (cfg.run.seed, cfg.optim.micro_batch_size) == (0, 3)


def test_a_file_without_schema_is_refused(toy):
    with pytest.raises(RequestError, match="toypaper_loose_schema"):
        config.compose("toypaper", "loose", [])


def test_plain_form_survives_json_and_digest_sees_every_leaf(toy):
    cfg = toy("run.seed=0")
    plain = files.to_plain(cfg)
    assert plain["model"] == {"width": 4, "colour": "grey"}
    assert files.digest(cfg) == files.digest(plain)
    assert files.digest(cfg) != files.digest(toy("run.seed=1"))


def test_digest_ignores_key_order_and_container_type():
    assert files.digest({"b": (1, 2), "a": Path("x")}) == files.digest({"a": "x", "b": [1, 2]})
    assert files.digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_digest_refuses_what_json_cannot_hold():
    with pytest.raises(ValueError, match="JSON compliant"):
        files.digest({"a": float("nan")})
    with pytest.raises(TypeError, match="set"):
        files.digest({"a": {1}})


def test_leaf_docs_reach_nested_leaves_and_show_missing_ones():
    @dataclass
    class Bare:
        width: int = 1

    docs = config.leaf_docs(ToyConfig)
    assert docs["model.width"] == "Width of the model; time grows with its square."
    assert docs["run.seed"].startswith("Seed")
    assert "model" not in docs
    assert config.leaf_docs(Bare) == {"width": ""}
