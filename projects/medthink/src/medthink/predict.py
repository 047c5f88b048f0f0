"""One image, one question: answer, rationale, confidence. For research and teaching, not for clinical use."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightbox.errors import RequestError
from lightbox.eval.answers import stated_answer
from lightbox.paper import learner as learners
from lightbox.paper.learner import Learner
from lightbox.paper.prompts import fitted_texts
from lightbox.paper.pruned import pruned, tokens_read
from lightbox.records import Question
from lightbox.runs import folders
from medthink.config import Config
from medthink.data import CUT_FIRST, TEMPLATES, fields_of, written_fields
from medthink.evaluate import rationale_in
from medthink.train import open_learner

TOKENS = 512


def predict(
    image: Path | np.ndarray, question: str, *, folder: Path, options: Sequence[str] = (), opened: Any = None
) -> dict[str, object]:
    """Answer a question about an image.

    Args:
        image: PNG, JPEG or DICOM file, or pixels; it becomes grey and is letterboxed to the tower's size.
        question: text.
        folder: a finished run of `medthink train`.
        options: choices of a closed question; () asks an open one.
        opened: what `load_run` gave for the folder, where several questions follow one another; None loads it.

    Returns:
        answer (text, "" where none could be parsed), rationale ("" where the strategy gives none), confidence
        (exponential of the mean log-probability of the answer sentence's tokens, in [0, 1], not calibrated), options
        (probability of each option, normalised over them, for closed questions), strategy, note; and how many tokens of
        the image were read, where `pruning.method` takes some away.
    """
    cfg, learner = opened or load_run(folder)
    method, seen = cfg.objective.method, learner.see_file(image)
    # nothing about the answer is known, index 0 only marks the question as closed
    asked = Question("asked", " ".join(question.split()), "", tuple(options), 0 if options else None, rationale="")
    if method == "second_stage":
        asked = dataclasses.replace(asked, rationale=_first_stage(cfg, asked, image))
    with pruned(learner.backbone, cfg.pruning, seed=cfg.run.seed, lengths="original") as pruning:
        text = _write(cfg, learner, asked, seen)
        rationale = asked.rationale if method == "second_stage" else rationale_in(text, method)
        answer = stated_answer(text, asked)
        asked = dataclasses.replace(asked, rationale=rationale or "")
        stated = dataclasses.replace(asked, answer=answer)
        return {
            "answer": answer,
            "rationale": rationale or "",
            "confidence": _confidence(learner, stated, method, seen) if answer else None,
            "options": {} if method == "first_stage" else _option_probs(learner, asked, method, seen),
            "strategy": method,
            **tokens_read(pruning, cfg.pruning),
            "note": "research and teaching only, not for clinical use",
        }


def load_run(folder: Path) -> tuple[Config, Learner]:
    """What `medthink train` left in a run folder; see `lightbox.paper.learner.load_run`."""
    return learners.load_run(folder, Config, lambda cfg, base, cache: open_learner(cfg, base, (), cache=cache))


def _confidence(learner: Learner, question: Question, method: str, seen: Any) -> float:
    """That of the answer sentence, after the rationale that the model wrote."""
    index = question.options.index(question.answer) if question.options else None
    question = dataclasses.replace(question, answer_index=index)
    sentence = next(text for name, text in fields_of(question, TEMPLATES[method].target) if "answer" in name)
    return learner.confidence(*_texts(learner, question, method), sentence, seen)


def _option_probs(learner: Learner, question: Question, method: str, seen: Any) -> dict[str, float]:
    asked = [dataclasses.replace(question, answer_index=index) for index in range(len(question.options))]
    probs = learner.choice_probs([_texts(learner, one, method) for one in asked], seen) if asked else []
    return dict(zip(question.options, probs, strict=True))


def _texts(learner: Learner, question: Question, method: str) -> tuple[str, str]:
    limits = {"source_tokens": TOKENS, "target_tokens": TOKENS}
    return fitted_texts(written_fields([question], method), learner.tokenizer, cut_first=CUT_FIRST, **limits)[0]


def _write(cfg: Config, learner: Learner, question: Question, seen: Any) -> str:
    prompt, _ = _texts(learner, question, cfg.objective.method)
    return learner.answer([prompt], seen, cfg.eval.answer_tokens + cfg.eval.rationale_tokens)[0]


def _first_stage(cfg: Config, question: Question, image: Path | np.ndarray) -> str:
    """The rationale that the run's own stage 1 writes for the question."""
    earlier = folders.needed_runs(cfg.needs)
    if "stage1" not in earlier:
        raise RequestError(
            "This run is stage 2 and names no stage 1",
            "Stage 2 answers from a rationale that stage 1 writes first",
            "Train it with needs=[FOLDER], a run of `lightbox train medthink experiment=stage1`",
        )
    first_cfg, first = load_run(earlier["stage1"])
    with pruned(first.backbone, first_cfg.pruning, seed=first_cfg.run.seed, lengths="original"):
        return _write(first_cfg, first, question, first.see_file(image))
