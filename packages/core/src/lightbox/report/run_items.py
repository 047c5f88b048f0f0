"""What is known of the items of one run: scores, texts, questions, guesses of baselines, images. No torch.

`run_reading` fills it; everything else about a run's page reads it.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lightbox.eval.conventions import Prediction
from lightbox.paper import schema
from lightbox.paper.baselines import BY_METHOD
from lightbox.paper.conditions import BLANK, IMAGE, SHUFFLED
from lightbox.paper.samples import Sample, Split
from lightbox.records import Question
from lightbox.runs.folders import Run

CORRECT, PARSED, RECALL, DICE = "correct", "parsed", "token_recall", "dice_present"
ANSWER_BASELINES = ("question_only", "majority")


@dataclass(frozen=True)
class Guess:
    """What a baseline answers to an item."""

    text: str
    is_right: bool


@dataclass
class RunItems:
    """A run, its scores by condition and item, and what could be read beside them.

    Args:
        run: what `job.json` says.
        card: what `card.json` says.
        values: metric -> condition -> item -> value; items without one are left out.
        kinds: question kind by item.
        predictions: condition -> item -> question and text; empty where the run kept none.
        cfg: its configuration as an object; None where the paper's code does not read it.
        train: training questions, scored: those scored; None where they could not be read.
        missing: what the page lacks and why, one sentence each.
    """

    run: Run
    card: Mapping[str, Any]
    values: Mapping[str, Mapping[str, Mapping[str, float]]]
    kinds: Mapping[str, str]
    predictions: Mapping[str, Mapping[str, Prediction]] = field(default_factory=dict)
    cfg: schema.PaperConfig | None = None
    train: Split[Question] | None = None
    scored: Split[Question] | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def correct(self) -> Mapping[str, Mapping[str, float]]:
        """Condition -> item -> 1.0 where the answer is right."""
        return self.values[CORRECT]

    @cached_property
    def conditions(self) -> list[str]:
        """Conditions with answers: image, blank, shuffled, then others by name."""
        first = (IMAGE, BLANK, SHUFFLED)
        return sorted(self.correct, key=lambda name: (first.index(name) if name in first else len(first), name))

    @property
    def main(self) -> str:
        """The condition that the run is read by: with the image where there is one."""
        return self.conditions[0]

    @property
    def is_baseline(self) -> bool:
        """True for an arm that counts training answers; its one condition is called "image" all the same."""
        return str(self.run.config.get("objective", {}).get("method", "")) in schema.BASELINES

    @property
    def source(self) -> str:
        """Where the images are from, as `data.source` has it; "" where the record does not say."""
        return str(self.data_setting("source"))

    @property
    def is_phantom(self) -> bool:
        """True where the images are drawn; what is not recorded is taken for real."""
        return self.source == schema.PHANTOM

    def data_setting(self, name: str, default: Any = "") -> Any:
        """A setting of `data` as the run's record has it."""
        return self.run.config.get("data", {}).get(name, default)

    @property
    def looked(self) -> bool:
        """True where the run was scored with the images of its items."""
        return self.main == IMAGE and not self.is_baseline

    @cached_property
    def samples(self) -> dict[str, Sample[Question]]:
        """Scored samples of the data set, by item; empty where it could not be read."""
        return {sample.id: sample for sample in self.scored.samples} if self.scored else {}

    @cached_property
    def questions(self) -> dict[str, Question]:
        """Question by item of the main condition: of the data set, else as the run wrote it; empty where neither is."""
        own = {name: sample.record for name, sample in self.samples.items()}
        own = own or {name: one.question for name, one in self.predictions.get(self.main, {}).items()}
        return {item: own[item] for item in self.correct[self.main] if item in own}

    @cached_property
    def guesses(self) -> dict[str, dict[str, Guess]]:
        """Baseline -> item -> guess, recomputed from the data set; empty where it could not be read."""
        if self.train is None or self.scored is None:
            return {}
        by_baseline = {}
        for name in ANSWER_BASELINES:
            texts = BY_METHOD[name](self.train.samples, self.scored.samples)
            by_baseline[name] = {
                sample.id: Guess(text, text == sample.record.answer.lower())
                for sample, text in zip(self.scored.samples, texts, strict=True)
            }
        return by_baseline

    def groups(self, items: Sequence[str]) -> list[Hashable] | None:
        """The image that each item shows; None where that is not known."""
        is_known = bool(self.samples) and all(item in self.samples for item in items)
        return [self.samples[item].image for item in items] if is_known else None
