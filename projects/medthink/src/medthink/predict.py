"""One image, one question: answer, rationale, confidence. For research and teaching, not for clinical use."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightbox.errors import RequestError
from medthink import scores
from medthink.generation import rationale_in
from medthink.items import Item
from medthink.stages import earlier_runs
from medthink.trained import Trained, load_run


def predict(image: Path, question: str, *, folder: Path, options: Sequence[str] = ()) -> dict[str, object]:
    """Answer a question about an image file (PNG, JPEG or DICOM).

    Args:
        image: the file; it becomes grey and is letterboxed to the tower's size.
        question: text.
        options: choices of a closed question; () asks an open one.
        folder: a finished run of `medthink train`.

    Returns:
        answer (text, "" where none could be parsed), rationale ("" where the strategy gives none), confidence
        (exponential of the mean log-probability of the answer sentence's tokens, in [0, 1], not calibrated), options
        (probability of each option, normalised over them, for closed questions), strategy, note.
    """
    trained = load_run(folder)
    seen = trained.see(image)
    item = _item(question, tuple(options))
    if trained.method == "second_stage":
        item = dataclasses.replace(item, rationale=_first_stage(trained, item, image))
    text = _generate(trained, item, seen)
    rationale = item.rationale if trained.method == "second_stage" else rationale_in(text, trained.method)
    answer = scores.stated_answer(item, text)
    told = dataclasses.replace(item, rationale=rationale or "")
    return {
        "answer": answer,
        "rationale": rationale or "",
        "confidence": confidence(trained, dataclasses.replace(told, answer=answer), seen) if answer else None,
        "options": {} if trained.method == "first_stage" else option_probs(trained, told, seen),
        "strategy": trained.method,
        "note": "research and teaching only, not for clinical use",
    }


def confidence(trained: Trained, item: Item, seen: Any) -> float:
    """Exponential of the mean log-probability of the answer sentence's tokens, after the rationale the model wrote.

    Args:
        trained: the model.
        item: question with the generated rationale and the generated answer.
        seen: the image, by `trained.see`.
    """
    index = item.options.index(item.answer) if item.options else None
    forced = trained.force(dataclasses.replace(item, answer_index=index), seen)
    return float(forced.logps[slice(*forced.answer)].mean().exp())


def option_probs(trained: Trained, item: Item, seen: Any) -> dict[str, float]:
    """Probability of each option's letter where the answer sentence names it, normalised over the options."""
    forced = [trained.force(dataclasses.replace(item, answer_index=index), seen) for index in range(len(item.options))]
    if not forced:
        return {}
    places = zip(*(one.target for one in forced), strict=False)
    letter = next(place for place, tokens in enumerate(places) if len(set(tokens)) > 1)
    probs = torch.stack([one.logps[letter] for one in forced]).softmax(dim=0)
    return dict(zip(item.options, probs.tolist(), strict=True))


def _generate(trained: Trained, item: Item, seen: Any) -> str:
    lengths = trained.cfg.eval
    return trained.write(item, seen, max_new_tokens=lengths.answer_tokens + lengths.rationale_tokens)


def _first_stage(trained: Trained, item: Item, image: Path) -> str:
    """The rationale that the run's own stage 1 writes for the question."""
    earlier = earlier_runs(trained.cfg.needs)
    if "stage1" not in earlier:
        raise RequestError(
            "This run is stage 2 and names no stage 1",
            "Stage 2 answers from a rationale that stage 1 writes first",
            "Train it with needs=[FOLDER], a run of `lightbox train medthink experiment=stage1`",
        )
    first = load_run(earlier["stage1"])
    return _generate(first, item, first.see(image))


def _item(question: str, options: tuple[str, ...]) -> Item:
    """A question to be asked: nothing about its answer is known, index 0 only marks it as closed."""
    return Item(
        id="asked",
        case_id="asked",
        question=" ".join(question.split()),
        options=options,
        answer="",
        answer_index=0 if options else None,
        rationale="",
        facts=frozenset(),
        kind="",
        image=0,
    )
