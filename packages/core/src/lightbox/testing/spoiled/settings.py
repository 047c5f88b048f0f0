"""Settings as inputs: words of a command line, which have a judge of their own, and YAML files of a paper."""

import functools
import importlib
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lightbox.config import leaf_docs, register_schema
from lightbox.files import to_plain
from lightbox.paper.composition import resolve
from lightbox.runs.folders import flatten
from lightbox.testing.boxes.config import Config as BoxesConfig
from lightbox.testing.spoiled.documents import TEXT_CHANGES
from lightbox.testing.spoiled.entries import Change, Damage
from lightbox.testing.spoiled.inputs import Kind, Look, digest_of, judged
from lightbox.testing.spoiled.single_images import OF_FILES
from lightbox.testing.spoiled.trial import Outcome

PAPERS = ("medthink", "mmedpo", "vitar", "k2sight", "medplib")
VALUES = (
    *("", "null", "nan", "inf", "-inf", "-1", "0", "1e400", "1e-400", "1.0", "1_000", "0x10", "1e-3", "9" * 30, "-0"),
    *("true", "yes", "on", "abc", "'a b'", '"', "'", "[", "[1,2]", "[a", "{a:1}", "{", "(1)", "1,2", "a,b", ","),
    *("range(1,3)", "choice(a,b)", "interval(0,1)", "int(3.7)", "str(1)", "float(x)", "shuffle(1,2)", "glob(*)"),
    *(
        "${optim.lr}",
        "${oc.env:HOME}",
        "${oc.env:NO_SUCH_NAME}",
        "${",
        "${a.b}",
        "???",
        "$",
        "\\",
        "\\,",
        "%",
        "#",
        "@",
    ),
    *("../../x", "/", "~", ".", "tiny/none", "tiny/../../../etc", "owner/model", "/dev/null", "/proc/self/mem"),
    *("\0", "\n", "a\nb", "\x1b[2J", "ü", "\ud800", "😀", " ", "  x", "=", "a=b", "x" * 100_000, "[" * 500, "-", "--"),
    *("!!python/object:os.system", "&a [*a]", "<<", "fp16", "cuda", "cpu", "none", "lora", "nf4", "smoke", "paper"),
)
KEYS = (
    *("", "=", "+", "~", "++optim.lr", "+optim.lr", "~optim.lr", "~optim", "optim", "optim.", ".lr", "optim..lr"),
    *("optim.lr.x", "optim[lr]", "OPTIM.LR", "optim/lr", "hydra.run.dir", "hydra/launcher", "hydra", "defaults"),
    *("preset@x", "optim@y", "optim.lr@z", "__class__", "_target_", "optim._target_", "model._convert_", "package"),
    *("preset", "experiment", "tuned", "tuned.x", "needs", "needs[0]", "needs.0", "data.kinds", "data.kinds[0]"),
    *("--help", "-m", "--multirun", "--config-dir", "-cp", "-", "a b", "ключ", "\x00", "x" * 5000),
)


def setting_trial(name: str, seed: int, work: Path) -> Outcome:
    """Give a paper's `train` one or two spoiled overrides, and judge what configuration it accepts."""
    rng = random.Random(f"{name} {seed}")
    paper = rng.choice(PAPERS)
    sound = ["preset=smoke", *(["data.source=vqa_rad", f"data.root={work}"] if rng.random() < 0.1 else [])]
    words = [_word(rng, paper) for _ in range(rng.choice((1, 1, 1, 2)))]
    shown = " ".join(word if len(word) < 80 else f"{word[:40]}...({len(word)})" for word in words).encode(
        "unicode_escape"
    )
    entries = importlib.import_module(f"{paper}.cli").ENTRIES
    verdict, accepted = judged(lambda: _plain(entries.accept([*sound, *words], "train")), "")
    outcome = functools.partial(Outcome, name, seed, paper, "override", shown.decode())
    if not isinstance(accepted, dict):
        return outcome(verdict, accepted)
    base = _base(paper, tuple(sound))
    changed = {key for key in base.keys() | accepted.keys() if base.get(key) != accepted.get(key)}
    named = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    if not changed:
        return outcome("same", "")
    if {"preset", "experiment", "tuned"}.intersection(named):  # which stand for other settings
        return outcome("undetectable", ", ".join(sorted(changed))[:200])
    unasked = [key for key in changed if not any(key == own or key.startswith(own + ".") for own in named)]
    others = [key for key in changed if key in named and not _means(named[key], accepted[key])]
    if unasked or others:
        return outcome("silent", f"{unasked or others}: {[accepted.get(key) for key in unasked or others]}")
    return outcome("undetectable", "set to what was asked for")


def _word(rng: random.Random, paper: str) -> str:
    keys = _leaves(paper)
    value = rng.choice(VALUES)
    if rng.random() < 0.7:
        return f"{rng.choice(keys)}={value}"
    key = rng.choice((rng.choice(KEYS), _misspelt(rng, rng.choice(keys))))
    return key if rng.random() < 0.1 else f"{key}={value}"


def _misspelt(rng: random.Random, key: str) -> str:
    place = rng.randrange(len(key))
    return rng.choice((key[:place] + key[place + 1 :], key[:place] + "x" + key[place:], key.upper(), key + "s"))


@functools.cache
def _leaves(paper: str) -> list[str]:
    return list(leaf_docs(importlib.import_module(f"{paper}.config").Config))


@functools.cache
def _base(paper: str, words: tuple[str, ...]) -> dict[str, str]:
    return _plain(importlib.import_module(f"{paper}.config").resolve(list(words)))


def _plain(cfg: Any) -> dict[str, str]:
    return flatten(to_plain(cfg))


def _means(text: str, value: str) -> bool:
    """Whether a setting that is shown as `value` is what somebody asks for by `text`, read as YAML."""
    if "${" in text or text.strip("'\"") == value:
        return True
    try:
        asked = yaml.safe_load(text)
        got = yaml.safe_load(value)
    except yaml.YAMLError:
        return False
    if isinstance(asked, str) and isinstance(got, int | float) and not isinstance(got, bool):
        try:
            asked = float(asked)  # YAML 1.1 takes 1e-3 for a word
        except ValueError:
            return False
    return asked == got or (asked in (0, 1) and isinstance(got, bool) and bool(asked) == got)


PRESET = """# @package _global_
data:
  n_train: 20
  n_test: 10
optim:
  max_steps: 3
run:
  preset: smoke
"""
TRAIN = """defaults:
  - PACKAGE_train_schema
  - _self_
  - preset: smoke

experiment: head
objective:
  method: head
optim:
  lr: 0.001
run:
  seed: 0
"""


def _line_change(edit: Callable[[random.Random, list[str]], str]) -> Change:
    def change(rng: random.Random, file: Path) -> Damage:
        lines = file.read_text().splitlines()
        note = edit(rng, lines)
        file.write_text("\n".join(lines) + "\n")
        return Damage(note, None)

    return change


def _value(rng: random.Random, lines: list[str]) -> str:
    place = rng.choice([at for at, line in enumerate(lines) if ":" in line and not line.startswith("#")])
    value = rng.choice([value for value in VALUES if "\ud800" not in value])
    lines[place] = lines[place].partition(":")[0] + ": " + value
    return f"line {place + 1} is {lines[place][:60]!r}"


def _key(rng: random.Random, lines: list[str]) -> str:
    place = rng.choice([at for at, line in enumerate(lines) if ":" in line and not line.startswith("#")])
    lines[place] = lines[place].replace(":", rng.choice(("x:", "", " :", "::", ": - ", ":\t")), 1)
    return f"line {place + 1} is {lines[place]!r}"


def _indent(rng: random.Random, lines: list[str]) -> str:
    place = rng.randrange(len(lines))
    lines[place] = rng.choice(("\t", " ", "      ", "- ")) + lines[place]
    return f"line {place + 1} is indented"


def _doubled(rng: random.Random, lines: list[str]) -> str:
    place = rng.randrange(len(lines))
    lines.insert(place, lines[place])
    return f"line {place + 1} twice"


YAML_CHANGES: dict[str, Change] = (
    {name: change for name, change in (OF_FILES | TEXT_CHANGES).items() if name not in ("renamed", "pipe")}
    | {f"yaml value {turn}": _line_change(_value) for turn in range(6)}
    | {f"yaml key {turn}": _line_change(_key) for turn in range(3)}
    | {"indent": _line_change(_indent), "line twice": _line_change(_doubled)}
)


def _write_yaml(folder: Path, _: random.Random) -> None:
    (folder / "preset").mkdir()
    (folder / "train.yaml").write_text(TRAIN)
    (folder / "preset" / "smoke.yaml").write_text(PRESET)


_numbers = iter(range(1 << 60))


def _look_at_yaml(folder: Path) -> Look:
    """Compose a package of its own whose `conf` the folder is: Hydra and Python remember packages by name."""
    package = f"spoiled_paper_{next(_numbers)}"
    place = folder.parent / "packages"
    shutil.copytree(folder, place / package / "conf", symlinks=True)
    (place / package / "__init__.py").write_text("")
    (place / package / "conf" / "__init__.py").write_text("")
    (place / package / "config.py").write_text("")
    (place / package / "claims.py").write_text("from lightbox.testing.boxes.claims import PAPER\n")
    train = place / package / "conf" / "train.yaml"
    if train.is_file() and not train.is_symlink():
        train.write_bytes(train.read_bytes().replace(b"PACKAGE", package.encode()))
    register_schema(package, "train", BoxesConfig)
    sys.path.insert(0, str(place))
    try:
        importlib.invalidate_caches()
        return Look(digest_of(_plain(resolve(package, ["experiment=head"]))))
    finally:
        sys.path.remove(str(place))
        for module in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[module]
        shutil.rmtree(place)


def _yaml_form(sound: Path, spoiled: Path) -> bool:
    """Other values under the same keys, which the schema has taken as of their type."""
    try:
        one, other = (yaml.safe_load(path.read_text()) for path in (sound, spoiled))
    except (yaml.YAMLError, UnicodeDecodeError):
        return False
    return _names(other) <= _names(one)


def _names(value: Any, prefix: str = "") -> set[str]:
    if not isinstance(value, dict):
        return {prefix}
    return {prefix}.union(*(_names(inner, f"{prefix}.{key}") for key, inner in value.items()))


YAML = Kind(_write_yaml, _look_at_yaml, lambda _: YAML_CHANGES, _yaml_form, variants=1, says_place=False)
