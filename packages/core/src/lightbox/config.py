"""Schema pieces shared by every paper, and composition of a paper's YAML into its dataclass. No torch.

Dataclasses are the schema, YAML is the values, Python builds the objects. A paper's `config.py` declares its schema
with `OptimConfig` and `RunConfig` inside, registers it with `register_schema`, and calls `compose`. A wrong key, a
wrong type, a missing value or an impossible combination is a `RequestError` that names the key.
"""

import ast
import copy
import dataclasses
import difflib
import functools
import importlib
import importlib.resources
import inspect
import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightbox import refusals
from lightbox.errors import RequestError

SCHEDULES = ("linear", "constant", "cosine")
DEVICES = ("cpu", "auto", "cuda")
PRECISIONS = ("fp32", "bf16", "fp16")
OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw_8bit")
ADAPTERS = ("none", "lora")
QUANTS = ("none", "nf4", "int8")
ADAPTER_INITS = ("default", "loftq", "eva")
PROJECTOR_MODES = ("frozen", "lora", "full")
LANGUAGE = "language"


@dataclass(kw_only=True)
class OptimConfig:
    """How weights are updated."""

    lr: float
    """Peak learning rate of AdamW, > 0; too high diverges, too low wastes steps."""
    max_steps: int
    """Optimiser steps, >= 1, of an arm with steps_factor 1; time grows in proportion."""
    steps_factor: float = 1.0
    """Steps of this arm by max_steps, > 0: 2 for one that shall train as long as two models; time in proportion."""
    weight_decay: float = 0.01
    """Decoupled weight decay, >= 0, on matrices only; raising it shrinks weights and may cost accuracy."""
    clip_norm: float = 1.0
    """Largest gradient norm, >= 0; 0 does not clip; raising it lets a bad batch move weights further."""
    batch_size: int = 64
    """Items per optimiser step, >= 1; time per step grows in proportion, memory with micro_batch_size."""
    micro_batch_size: int = 0
    """Items per forward pass; 0 means batch_size; must divide batch_size; memory grows in proportion."""
    warmup_frac: float = 0.0
    """Share of the steps with rising learning rate, in [0, 1); raising it delays learning."""
    schedule: str = "linear"
    """After warm-up: linear (to 0), cosine (to 0) or constant; no cost."""
    optimizer: str = "adamw"
    """adamw, adamw_8bit (its state in a quarter of the memory), or paged_adamw_8bit (spills to the host); 8 bits cost a
    little accuracy."""

    def __post_init__(self) -> None:
        check_positive("optim.lr", self.lr)
        check_positive("optim.max_steps", self.max_steps)
        check_positive("optim.steps_factor", self.steps_factor)
        check_positive("optim.batch_size", self.batch_size)
        for key in ("weight_decay", "clip_norm", "micro_batch_size"):
            check_at_least("optim." + key, getattr(self, key), 0)
        check_choice("optim.schedule", self.schedule, SCHEDULES)
        check_choice("optim.optimizer", self.optimizer, OPTIMIZERS)
        if not 0 <= self.warmup_frac < 1:
            raise RequestError(
                f"optim.warmup_frac is {self.warmup_frac}",
                "It is a share of the steps, and some must remain after warm-up",
                "Set optim.warmup_frac in [0, 1)",
            )
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise RequestError(
                f"optim.batch_size is {self.batch_size} and optim.micro_batch_size is {self.micro_batch_size}",
                "A step is made of whole micro-batches of one size",
                "Set optim.micro_batch_size to a divisor of optim.batch_size, or to 0",
            )

    @property
    def steps(self) -> int:
        """Optimiser steps of this arm, >= 1."""
        return max(1, round(self.max_steps * self.steps_factor))


@dataclass(kw_only=True)
class AdapterConfig:
    """What is trained of a pretrained model, and how its frozen part is stored."""

    kind: str = "none"
    """none trains every parameter; lora trains low-rank additions only, in a fraction of the memory."""
    quant: str = "none"
    """Frozen weights of the language model: none (16 or 32 bit), int8, nf4 (QLoRA); fewer bits cost some accuracy."""
    r: int = 16
    """Rank of the additions, >= 1; memory and time grow in proportion, capacity too."""
    alpha: float = 32.0
    """Scale of the additions, > 0: alpha / r, or alpha / sqrt(r) with use_rslora; more acts like a higher rate."""
    dropout_prob: float = 0.0
    """Dropout before the additions, in [0, 1); above 0 it resists over-fitting and costs time."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r), steadier at ranks from 32; no cost."""
    use_dora: bool = False
    """Learn direction and length apart (DoRA); slower, helps at low ranks."""
    init: str = "default"
    """Start of the additions: default (no change), loftq (repairs the quantisation error), eva (from data)."""
    targets: str = "language"
    """language: linear layers of the language model; or a regular expression of module names, matched as a whole."""
    projector: str = "frozen"
    """Projector between vision and language: frozen, lora, or full (trained as a whole, in 32 bit)."""
    modules: list[str] = dataclasses.field(default_factory=list)
    """Further modules trained as a whole, in 32 bit: paths or regular expressions; 16 bytes a number with AdamW."""
    use_fused: bool = True
    """Compute base and addition of a linear layer in one autograd step; false is peft's own, slower and larger."""

    def __post_init__(self) -> None:
        check_choice("adapter.kind", self.kind, ADAPTERS)
        check_choice("adapter.quant", self.quant, QUANTS)
        check_choice("adapter.init", self.init, ADAPTER_INITS)
        check_choice("adapter.projector", self.projector, PROJECTOR_MODES)
        check_at_least("adapter.r", self.r, 1)
        check_positive("adapter.alpha", self.alpha)
        if not 0 <= self.dropout_prob < 1:
            raise RequestError(
                f"adapter.dropout_prob is {self.dropout_prob}",
                "It is a probability and some inputs must stay",
                "Set adapter.dropout_prob in [0, 1)",
            )
        if self.quant != "none" and self.kind == "none":
            raise RequestError(
                f"adapter.quant is {self.quant} and adapter.kind is none",
                "Quantised weights are frozen, so nothing would learn",
                "Set adapter.kind=lora, or adapter.quant=none",
            )
        if self.modules and self.kind == "none":
            raise RequestError(
                f"adapter.modules is {', '.join(self.modules)} and adapter.kind is none",
                "Every parameter trains then, these with it",
                "Set adapter.kind=lora, or leave adapter.modules out",
            )
        if self.use_dora and self.quant == "int8":
            raise RequestError(
                "adapter.use_dora is true and adapter.quant is int8",
                "DoRA reads the length of each weight row, which 8-bit storage does not give back on a CPU",
                "Set adapter.quant=nf4, or adapter.use_dora=false",
            )
        if self.init == "loftq" and self.quant != "nf4":
            raise RequestError(
                f"adapter.init is loftq and adapter.quant is {self.quant}",
                "LoftQ starts from the error that 4-bit storage makes",
                "Set adapter.quant=nf4, or adapter.init=default",
            )


@dataclass(kw_only=True)
class TrainConfig:
    """How a step fits the machine; none of it changes the gradient beyond rounding."""

    auto_batch: bool = False
    """Where memory runs out, halve the micro-batch and keep the batch of a step; costs time per step. Tries the longest
    rows first, as a GPU always does, at the cost of up to two steps."""
    checkpoint_layers: bool = False
    """Keep only the inputs of decoder layers and compute the rest again; about a third more time, far less memory."""
    workers: int = 0
    """Processes that read, decode and tokenize ahead of the step, >= 0; 0 does it in line; each costs a core."""

    def __post_init__(self) -> None:
        check_at_least("train.workers", self.workers, 0)


@dataclass(kw_only=True)
class RunConfig:
    """Where and how a run is made; nothing here changes the method."""

    seed: int
    """Seed of data order, initialisation and sampling, >= 0, required; no cost."""
    out: str = ""
    """Output folder; empty means ./lightbox-out; each kept checkpoint costs about 12 bytes a trained parameter."""
    preset: str = ""
    """Name of the chosen preset or profile, for records; set by the preset file."""
    threads: int = 1
    """CPU threads of one job, >= 1; only 1 promises the same bits again."""
    device: str = "cpu"
    """cpu, cuda, or auto (CUDA where there is one); recorded with the run."""
    precision: str = "fp32"
    """fp32, bf16 or fp16; the half ones save memory and time on a GPU and cost accuracy of small updates."""
    save_every_steps: int = 0
    """Steps between checkpoints, >= 0; 0 saves at the end only; lower loses less at a kill and costs disk time."""
    log_every_steps: int = 10
    """Steps between rows of the training history, >= 1; lower costs a little time."""
    resume: bool = True
    """Continue from the newest checkpoint in the output folder; false starts anew."""

    def __post_init__(self) -> None:
        check_at_least("run.seed", self.seed, 0)
        check_at_least("run.save_every_steps", self.save_every_steps, 0)
        check_positive("run.threads", self.threads)
        check_positive("run.log_every_steps", self.log_every_steps)
        check_choice("run.device", self.device, DEVICES)
        check_choice("run.precision", self.precision, PRECISIONS)
        if self.precision == "fp16" and self.device == "cpu":
            raise RequestError(
                "run.precision is fp16 and run.device is cpu",
                "Half precision without a GPU is slow and overflows",
                "Set run.precision=fp32, or run.device=cuda",
            )


def check_positive(key: str, value: float) -> None:
    """Raise `RequestError` naming `key` unless `value` is finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise RequestError(f"{key} is {value}", "It must be above 0", f"Set {key} to a positive number")


def check_at_least(key: str, value: float, least: float) -> None:
    """Raise `RequestError` naming `key` unless `value` is finite and at least `least`."""
    if not (math.isfinite(value) and value >= least):
        raise RequestError(f"{key} is {value}", f"It must be at least {least}", f"Set {key} to {least} or more")


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """Raise `RequestError` naming `key`, with close matches, unless `value` is one of `choices`."""
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f"Did you mean {key}={near[0]}?" if near else f"Set {key} to one of them"
        raise RequestError(f"{key} is '{value}'", f"The choices are {', '.join(choices)}", hint)


def register_schema(package: str, config_name: str, schema: type) -> str:
    """Make a dataclass known to Hydra and return its name, `<package>_<config_name>_schema`.

    The YAML of `config_name` lists that name first in its defaults. The package is part of the name because several
    papers are composed in one process.
    """
    name = f"{package}_{config_name}_schema"
    ConfigStore.instance().store(name=name, node=schema)
    return name


def compose(package: str, config_name: str, overrides: Sequence[str]) -> Any:
    """Compose `<package>.conf/<config_name>.yaml` with overrides into the dataclass of its schema.

    Args:
        package: importable package with a `conf` subpackage.
        config_name: name of the YAML file, without its ending.
        overrides: Hydra overrides, for example ``["preset=smoke", "optim.lr=1e-4"]``.

    Raises:
        RequestError: naming the key: unknown (with close matches), wrong type, required and absent, unknown group
            choice, malformed override, or a rule of the dataclass.
    """
    parsed = [refusals.read_override(override) for override in overrides]
    try:
        value = OmegaConf.to_object(_compose_raw(package, config_name, parsed))
    except MissingConfigException as err:
        raise refusals.unknown_choice(err) from err
    except (HydraException, OmegaConfBaseException) as err:
        keys = _known_keys(package, config_name)
        raise refusals.refusal(err, keys=keys, groups=_groups(package)) from err
    if not dataclasses.is_dataclass(value):
        raise RequestError(
            f"{package}.conf/{config_name}.yaml composes to a plain dictionary",
            "Without a schema a misspelt key would pass unseen",
            f"Name '{package}_{config_name}_schema' first in its defaults list",
        )
    return value


def leaf_docs(schema: type) -> dict[str, str]:
    """Map each dotted leaf key of a schema dataclass to the string under its field ("" where there is none)."""
    docs, types = _own_docs(schema), get_type_hints(schema)
    leaves: dict[str, str] = {}
    for field in dataclasses.fields(schema):
        kind = types[field.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            leaves |= {f"{field.name}.{key}": doc for key, doc in leaf_docs(kind).items()}
        else:
            leaves[field.name] = docs.get(field.name, "")
    return leaves


def _own_docs(schema: type) -> dict[str, str]:
    docs: dict[str, str] = {}
    for base in reversed(schema.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for line, under in itertools.pairwise(body):  # each statement with the one below it
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(under, ast.Expr):
                docs[line.target.id] = " ".join(str(ast.literal_eval(under.value)).split())
    return docs


def _compose_raw(package: str, config_name: str, overrides: Sequence[Override]) -> DictConfig:
    """Choices of groups by Hydra, remembered because planning composes each arm once per seed; then single keys."""
    choices, keys = [], []
    for override in overrides:
        if override.key_or_group in _groups(package) and not isinstance(override.value(), dict):
            refusals.check_choice_of_group(override)
            choices.append(override)
        else:
            keys.append(override)
    conf = importlib.import_module(f"{package}.conf")
    cfg = copy.deepcopy(_compose_choices(conf, config_name, tuple(str(choice.input_line) for choice in choices)))
    for override in keys:
        OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    return cfg


@functools.lru_cache(maxsize=512)
def _compose_choices(conf: ModuleType, config_name: str, choices: tuple[str, ...]) -> DictConfig:
    _check_aliases(conf)
    with hydra.initialize_config_module(conf.__name__, version_base="1.3"):
        return hydra.compose(config_name, overrides=list(choices))


@functools.lru_cache(maxsize=64)
def _check_aliases(conf: ModuleType) -> None:
    """Refuse YAML that repeats a part by an alias: OmegaConf writes each out, and ten lines of them fill any memory."""
    for path in sorted(Path(conf.__path__[0]).rglob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if not {"&", "*"} <= {*text}:
            continue
        try:
            alias = next((event for event in yaml.parse(text) if isinstance(event, yaml.AliasEvent)), None)
        except yaml.YAMLError:
            continue  # Hydra, who reads it next, says where
        if alias is not None:
            raise RequestError(
                f"{path}, line {alias.start_mark.line + 1}, has the alias '*{alias.anchor}'",
                "Every alias is written out, and a few lines of them can fill any memory",
                "Write the values where they belong",
            )


def _groups(package: str) -> list[str]:
    """Names of the configuration groups of a package: the folders of its `conf`."""
    conf = importlib.resources.files(f"{package}.conf")
    return sorted(entry.name for entry in conf.iterdir() if entry.is_dir() and not entry.name.startswith("_"))


def _known_keys(package: str, config_name: str) -> list[str]:
    """Leaf keys of the registered schema; empty where none is registered under the expected name."""
    node = ConfigStore.instance().repo.get(f"{package}_{config_name}_schema.yaml")
    schema = OmegaConf.get_type(node.node) if node is not None else None
    return list(leaf_docs(schema)) if schema is not None and dataclasses.is_dataclass(schema) else []
