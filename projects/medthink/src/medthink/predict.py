"""One image, one question: answer, rationale, confidence. For research and teaching, not for clinical use."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightbox.backbones.seq2seq import load_seq2seq
from lightbox.backbones.towers import load_tower
from lightbox.errors import RequestError
from lightbox.readers.images import load_image
from medthink import scores
from medthink.config import EvalConfig
from medthink.data import encode_items
from medthink.generation import generate_texts, rationale_in
from medthink.items import Item
from medthink.model import MedThinkT5
from medthink.stages import earlier_runs

TOKENS = 512


class Forced(NamedTuple):
    """A target that a model was made to say: its tokens, where the answer stands, each token's log-probability."""

    target: list[int]
    answer: tuple[int, int]
    logps: Tensor


class Trained(Protocol):
    """A saved model, the strategy that it was trained with, and the run's configuration as recorded."""

    @property
    def method(self) -> str: ...

    @property
    def config(self) -> dict: ...

    def see(self, image: Path) -> Any:
        """What the model makes of an image file, for the two below."""
        ...

    def write(self, item: Item, seen: Any, *, max_new_tokens: int) -> str:
        """A greedy text."""
        ...

    def force(self, item: Item, seen: Any) -> Forced:
        """The item's own target, given image and prompt."""
        ...


@dataclasses.dataclass(frozen=True)
class TrainedT5:
    """A saved T5 with fusion; what it sees are features, 1 p c."""

    model: MedThinkT5
    tokenizer: PreTrainedTokenizerBase
    config: dict

    @property
    def method(self) -> str:
        """The strategy it was trained with."""
        return self.model.config.method

    def see(self, image: Path) -> Tensor:
        """Features by the run's tower."""
        tower = load_tower(self.config["model"]["tower"], self.config["model"]["tower_revision"])
        return tower.encode(torch.from_numpy(load_image(image, image_px=tower.image_px))[None]).clone()

    def write(self, item: Item, seen: Tensor, *, max_new_tokens: int) -> str:
        """A greedy text."""
        return generate_texts(
            self.model,
            self.tokenizer,
            [item],
            self.method,
            images=[0],
            vision=seen,
            batch_size=1,
            max_new_tokens=max_new_tokens,
            source_tokens=TOKENS,
        )[0]

    def force(self, item: Item, seen: Tensor) -> Forced:
        """The item's own target, given features and prompt."""
        row = encode_items([item], self.method, self.tokenizer, source_tokens=TOKENS, target_tokens=TOKENS)[0]
        input_ids, labels = torch.tensor([row.source]), torch.tensor([row.target])
        with torch.inference_mode():
            logits = self.model(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                vision=seen,
                decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(labels),
            ).logits
        logps = logits[0].log_softmax(dim=-1).gather(1, labels[0][:, None])[:, 0]
        return Forced(row.target, row.answer, logps)


def load_run(folder: Path) -> Trained:
    """Load what `medthink train` left in a run folder.

    Raises:
        RequestError: where the run is not finished, or its model does not answer from an image.
    """
    card = folder / "job.json"
    if not card.is_file():
        raise RequestError(
            f"The run is '{folder}'", "It holds no job.json, so it is no finished run", "Name a finished run with --run"
        )
    config = json.loads(card.read_text(encoding="utf-8"))["config"]
    if config["objective"]["method"] == "reader" or config["model"]["features"]:
        why = (
            "It reads text only"
            if config["objective"]["method"] == "reader"
            else "It learned from ready features, not from a tower"
        )
        raise RequestError(f"The run is '{folder}'", f"{why}, so it cannot see an image", "Name a run with a tower")
    model, tokenizer = load_seq2seq(str(folder / "model"), model_class=MedThinkT5, key="run")
    return TrainedT5(model, tokenizer, config)


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
    lengths = EvalConfig(**trained.config["eval"])
    return trained.write(item, seen, max_new_tokens=lengths.answer_tokens + lengths.rationale_tokens)


def _first_stage(trained: Trained, item: Item, image: Path) -> str:
    """The rationale that the run's own stage 1 writes for the question."""
    earlier = earlier_runs(trained.config["needs"])
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
