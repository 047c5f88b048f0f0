"""What pruning gains from end to end: time to the first token, new tokens a second, and what choosing costs.

On a CPU a small LLaVA with the 576 visual tokens of LLaVA-1.5, on CUDA LLaVA-NeXT-7B with 2,928, both with random
weights: time does not depend on values. Pruned and unpruned are calls of one model in turns.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from lightbox.adapters.memory.request import Request
from lightbox.backbones.families import family_of
from lightbox.backbones.named import NAMED
from lightbox.backbones.published import merged, shrunk_values
from lightbox.bench import timing
from lightbox.bench.random_models import build, make_batch
from lightbox.config import check_choice
from lightbox.errors import RequestError, WorkError
from lightbox.pruning import pipeline
from lightbox.pruning.methods.table import BEFORE
from lightbox.pruning.methods.table import METHODS as KNOWN

METHODS = ("cls_topk", "divprune", "cdpruner", "random")
BUDGET, TEXT, NEW_TOKENS = 0.2, 64, 15
UNPRUNED, OWN_TIME = "unpruned", "its own time to first token"
FIRST_GOAL, PREFILL_GOAL, SHARE_GOAL = ">= 2.5", ">= 3.5", "<= 0.05"
HELD_TO_SHARE = ("cls_topk", "divprune")
"""Methods whose choice must be cheap: top-k and max-min."""
CHOOSING = ("make_records", "choose")
"""Steps of `pruning.pipeline` that choose: scores of patches, and the choice."""
SHORTENING = "shortened"
"""The step that takes the dropped tokens out of a prompt; every method costs as much there."""
_TEXT = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8}
_VISION = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
_WIDER = {
    "text_config": _TEXT | {"vocab_size": 4000, "max_position_embeddings": 1024},
    "vision_config": _VISION | {"image_size": 336},
    "image_seq_length": 576,
}
_log = logging.getLogger(__name__)


def run(
    *,
    methods: Sequence[str] = METHODS,
    budget: float = BUDGET,
    repeats: int = 7,
    new_tokens: int = NEW_TOKENS,
    request: Request | None = None,
) -> list[dict]:
    """Measure the methods, each against the same model unpruned.

    Args:
        methods: names in `pruning.methods.table`, of those before the language model that need nothing of the caller.
        budget: share of the visual tokens that stays, in (0, 1).
        repeats: pairs of each measurement in alternating order, after one to warm up; the median ratio counts.
        new_tokens: of each answer, for tokens a second.
        request: the model and its prompt; None is that of the device that is found.

    Returns:
        Rows with case, peer, value (milliseconds, or tokens a second), unit, ratio (unpruned time over pruned, or the
        share of the time to the first token), goal and notes.

    Raises:
        RequestError: a method or a budget that cannot be measured.
        WorkError: nothing was pruned.
    """
    for name in methods:
        usable = [key for key, entry in KNOWN.items() if entry.where == BEFORE and "finding" not in entry.needs]
        check_choice("--method", name, usable)
    if not 0 < budget < 1:
        raise RequestError(f"--budget is {budget}", "Pruned and unpruned would be the same", "Set it between 0 and 1")
    request = request or request_for("cuda" if torch.cuda.is_available() else "cpu")
    backbone = build(request.config, quant="none", dtype=request.dtype, device=request.device)
    inputs = make_batch(backbone, request).inputs
    rows: list[dict] = []
    with torch.no_grad(), timing.one_thread():
        for name in methods:
            bench = Comparison(backbone.core, inputs, name, budget, request)
            rows += bench.rows(repeats=repeats, new_tokens=new_tokens, has_prefill=name == methods[0])
            _log.info("%s: %s", name, {row["case"]: row["ratio"] for row in rows[-4:]})
    return rows


def request_for(device: str, *, is_tiny: bool = False) -> Request:
    """The model of a device, or a tiny one, with one image and `TEXT` text tokens; nothing of it is trained."""
    name, dtype, config = "llava-1.5-7b", "fp32", shrunk_values("llava-1.5-7b")
    if device == "cuda" and not is_tiny:
        name, dtype, config = "llava-next-7b", "bf16", NAMED["llava-next-7b"]
    elif not is_tiny:
        config = merged(config, _WIDER)
    request = Request(config, family_of(config, name=name), dtype=dtype, device=device, supervised=1)
    return replace(request, tokens=request.row_images.visual + TEXT)


class Comparison:
    """One method against the same model unpruned.

    Args:
        core: of transformers.
        inputs: of its forward.
        method: a name.
        budget: share that stays.
        request: what `core` was made from, for names of cases.
    """

    def __init__(self, core: Any, inputs: Mapping[str, Any], method: str, budget: float, request: Request) -> None:
        self.core, self.inputs, self.method = core, inputs, method
        self.request, self.device = request, request.device
        self.budget = budget
        self.pruning: Any = pipeline.prune(core, method, budget)

    def rows(self, *, repeats: int, new_tokens: int, has_prefill: bool) -> list[dict]:
        """Measure; see `run`."""
        with self.pruning:
            prompts = {is_pruned: self._prompt(is_pruned) for is_pruned in (True, False)}
            lengths = [prompts[is_pruned]["inputs_embeds"].shape[1] for is_pruned in (False, True)]
            self._check_lengths(*lengths)
            said = f"{lengths[0]} -> {lengths[1]} tokens"
            first = self._turns(lambda is_pruned: self._first(is_pruned), repeats)
            answer = self._turns(lambda is_pruned: self._answer(is_pruned, new_tokens), repeats)
            rows = [
                self._row("time to first token", first, said, goal=FIRST_GOAL),
                self._row(f"{new_tokens} new tokens", answer, said, n_tokens=new_tokens * self.request.batch),
            ]
            if has_prefill:
                prefill = self._turns(lambda is_pruned: self._prefill(prompts[is_pruned]), repeats)
                rows.append(self._row("LM prefill alone", prefill, said, goal=PREFILL_GOAL))
            return [*rows, self._selection_row(repeats, said)]

    # ---- what is timed

    def _first(self, is_pruned: bool) -> None:
        """The first token, tower and choice included, as far as the host."""
        with self._as(is_pruned):
            self.core(**self.inputs, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(dim=-1).cpu()

    def _answer(self, is_pruned: bool, new_tokens: int) -> None:
        lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        with self._as(is_pruned):
            self.core.generate(**self.inputs, **lengths, do_sample=False).cpu()

    def _prefill(self, prompt: Mapping[str, Any]) -> None:
        """The language model over a prompt that is embedded, and its head over the last token."""
        states = self.core.model.language_model(**prompt).last_hidden_state
        self.core.lm_head(states[:, -1:]).argmax(dim=-1).cpu()

    def _prompt(self, is_pruned: bool) -> dict[str, Any]:
        """What the language model is given in a call; its cache is made anew in every further one."""
        seen: list[dict[str, Any]] = []
        hook = self.core.model.language_model.register_forward_pre_hook(
            lambda _module, _args, given: seen.append(dict(given)), with_kwargs=True
        )
        try:
            self._first(is_pruned)
        finally:
            hook.remove()
        return seen[0] | {"past_key_values": None}

    @contextmanager
    def _as(self, is_pruned: bool) -> Iterator[None]:
        self.pruning.is_paused = not is_pruned
        try:
            yield
        finally:
            self.pruning.is_paused = False

    def _turns(self, call: Callable[[bool], Any], repeats: int) -> dict[str, list[list[float]]]:
        calls = {"pruned": lambda: call(True), UNPRUNED: lambda: call(False)}
        return timing.in_turns(calls, rounds=repeats, round_s=0.0, device=self.device)

    def _check_lengths(self, whole: int, pruned: int) -> None:
        visual = self.request.row_images.visual
        if pruned != whole - visual + self.pruning.request.budget.of(visual):
            raise WorkError(
                f"{self.method} at a budget of {self.budget} left {pruned} of {whole} tokens, {visual} of them visual",
                "What is timed is not what is said",
                "Find why the language model read another prompt before measuring",
            )

    # ---- rows

    def _row(
        self, what: str, samples: Mapping[str, list[list[float]]], said: str, *, goal: str = "", n_tokens: int = 0
    ) -> dict:
        ratio, each = timing.ratio_of(samples[UNPRUNED], samples["pruned"])
        pruned, whole = (timing.pooled(samples[name]) for name in ("pruned", UNPRUNED))
        value = n_tokens / pruned.median if n_tokens else pruned.median * 1e3
        shown = {"value": round(value, 3), "unit": "tokens/s" if n_tokens else "ms", "ratio": round(ratio, 3)}
        notes = (
            f"{said}; {pruned}; unpruned {whole}; {len(each)} pairs in turns, ratios {min(each):.3g} to {max(each):.3g}"
        )
        return {"case": self._case(what), "peer": UNPRUNED, **shown, "goal": goal, "notes": f"{notes}; {self._model()}"}

    def _selection_row(self, repeats: int, said: str) -> dict:
        whole, chosen, shortening = [], [], []
        for _ in range(repeats):
            with watched((*CHOOSING, SHORTENING), self.device) as taken:
                started = time.perf_counter()
                self._first(True)
                whole.append(time.perf_counter() - started)
            chosen.append(sum(taken[name] for name in CHOOSING))
            shortening.append(taken[SHORTENING])
        share, each = timing.ratio_of([[own] for own in chosen], [[own] for own in whole])
        own = timing.times_of(chosen)
        shown = {"value": round(own.median * 1e3, 3), "unit": "ms", "ratio": round(share, 4)}
        goal = SHARE_GOAL if self.method in HELD_TO_SHARE else ""
        notes = (
            f"{said}; {own}; shares {min(each):.3g} to {max(each):.3g} in {repeats} calls; scores and choice, without "
            f"{timing.times_of(shortening).median * 1e3:.2g} ms for the shorter prompt"
        )
        row = {"case": self._case("selection"), "peer": OWN_TIME, **shown, "goal": goal}
        return row | {"notes": f"{notes}; {self._model()}"}

    def _case(self, what: str) -> str:
        return f"{what}, {self.method} at {self.budget:.0%}, {'CPU' if self.device == 'cpu' else 'CUDA'}"

    def _model(self) -> str:
        vision, text = (self.core.config.vision_config, self.core.config.text_config)
        sizes = (
            f"{self.core.config.model_type}, random weights, tower {vision.hidden_size} x {vision.num_hidden_layers} "
            f"(pruned calls leave out layers that nothing reads), "
            f"LM {text.hidden_size} x {text.num_hidden_layers}, FFN {text.intermediate_size}"
        )
        threads = ", 1 thread" if self.device == "cpu" else ""
        return f"{sizes}, batch {self.request.batch}, {self.request.dtype}{threads}"


@contextmanager
def watched(names: Sequence[str], device: str) -> Iterator[dict[str, float]]:
    """Seconds that steps of `pruning.pipeline` take while a block lasts; on CUDA each waits for the device.

    Args:
        names: of functions that the pipeline calls.
        device: cpu or cuda.
    """
    taken = dict.fromkeys(names, 0.0)
    originals = {name: getattr(pipeline, name) for name in names}

    def timed(name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            result = originals[name](*args, **options)
            if device == "cuda":
                torch.cuda.synchronize()
            taken[name] += time.perf_counter() - started
            return result

        return call

    for name in names:
        setattr(pipeline, name, timed(name))
    try:
        yield taken
    finally:
        for name, original in originals.items():
            setattr(pipeline, name, original)
