"""Pairs from questions, stage by stage, and the files that they are written to. No torch.

| stage, its file | of each | result |
|---|---|---|
| `images` | image | PNG in `images/`, so that both images of a pair have been encoded alike |
| `answers` | question | what the target model says, sampled |
| `pick` | question | the rejected answer |
| `masks` | image | PNG in `masks/`, white where it is noised |
| `noise` | image | PNG in a folder of `images/` that says mask, step and seed |
| `score` | pair of texts | relevance, and which judge said what |

What comes out is `preferences.json`, for the reader `preference_json`, and `provenance.jsonl`, a line for each pair.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lightbox.errors import LightboxError, WorkError
from lightbox.paper.stages import Item, Outcome, Result, Stage, only_writer, run_stage
from lightbox.readers.images import load_image
from lightbox.readers.rows import RowError, clean_text
from lightbox.records import Preference
from mmedpo import noise
from mmedpo.curate import seed_of
from mmedpo.curation.contradict import LEFT_OUT
from mmedpo.curation.plan import Plan, Summary
from mmedpo.curation.questions import Subject
from mmedpo.curation.written import IMAGES, MASKS, Draft, Gallery, check_folder, pixels_digest, write

DOWN_AFTER = 3
"""Items that an endpoint fails in a row, each after all its attempts, before the rest wait for the next run."""
GREY_WITHIN = 8
"""Levels by which the colours of a pixel may differ in an image that is taken for a grey one; JPEG moves them."""


def curate_set(plan: Plan, subjects: Sequence[Subject]) -> Summary:
    """Run all stages, each from where it was left, and write what is finished.

    Args:
        plan: how.
        subjects: questions; ids occur once.

    Raises:
        RequestError: pairs of another model in `plan.out`, another process in it, and what concerns every item, such
            as a key that an endpoint refuses.
    """
    with only_writer(plan.out):
        check_folder(plan)
        work = _Work(plan, subjects)
        drafts = ([] if plan.kinds == "image" else work.texts()) + ([] if plan.kinds == "text" else work.images())
        write(plan, drafts)
    summary = work.summary
    summary.pairs = {kind: sum(draft.pair.kind == kind for draft in drafts) for kind in ("text", "image")}
    return summary


class _Work:
    """The stages over one set of questions; results of a stage are what the next ones ask about."""

    def __init__(self, plan: Plan, subjects: Sequence[Subject]) -> None:
        self.plan, self.subjects, self.summary = plan, subjects, Summary()
        self.gallery = Gallery(plan.out)
        self.by_image = {subject.image_id: subject for subject in subjects}

    @cached_property
    def shown(self) -> dict[str, Result]:
        """By image the file that was written of it."""
        items = [
            Item(name, [self.plan.source, name, _stamp(subject.image)], subject)
            for name, subject in self.by_image.items()
        ]
        # a file that cannot be read is refused as a request, and here concerns one image
        return self._run("images", {}, self._publish, items, fails_on=LightboxError, still_holds=self.gallery.holds)

    def texts(self) -> list[Draft]:
        """Pairs whose rejected side is another answer."""
        plan, seen = self.plan, [subject for subject in self.subjects if subject.image_id in self.shown]
        items = [Item(own.id, [own.id, own.asked.text, self.shown[own.image_id]["pixels"]], own) for own in seen]
        settings = {"model": plan.target.name, **plan.target.settings, "seed": plan.seed}
        answers = self._run("answers", settings, self._answer, items)
        items = [
            Item(own.id, [own.asked.text, own.asked.answer, answers[own.id]["answers"]], own)
            for own in seen
            if own.id in answers
        ]
        picked = self._run("pick", plan.picker.settings, self._pick, items, stops_after=DOWN_AFTER)
        texts = [own for own in seen if own.id in picked]
        scores: dict[str, Result] = {own.id: {"score": 1.0} for own in texts}
        scored_by: Mapping[str, Any] = {"judges": []}
        if plan.panel is not None:
            items = [Item(own.id, [own.asked.text, own.asked.answer, picked[own.id]["rejected"]], own) for own in texts]
            scored_by = plan.panel.settings
            scores = self._run("score", scored_by, self._score, items, stops_after=DOWN_AFTER)
        drafts = []
        for own in texts:
            if own.id in scores:
                made = {
                    "answers": {**settings, **answers[own.id]},
                    "pick": {**plan.picker.settings, **picked[own.id]},
                    "score": {**scored_by, **scores[own.id]},
                }
                rejected, score = picked[own.id]["rejected"], scores[own.id]["score"]
                drafts.append(self._draft(own, "text", rejected, score, (self.shown[own.image_id],), made))
        return drafts

    def images(self) -> list[Draft]:
        """Pairs whose rejected side is the noised image."""
        plan = self.plan
        items = [
            Item(name, [self.shown[name]["pixels"], plan.localiser.inputs(own)], own)
            for name, own in self.by_image.items()
            if name in self.shown
        ]
        masks = self._run("masks", plan.localiser.settings, self._locate, items, still_holds=self.gallery.holds)
        items = [
            Item(name, [name, self.shown[name]["pixels"], masks[name]["pixels"]], (self.shown[name], masks[name]))
            for name in masks
        ]
        settings = {"step": plan.step, "seed": plan.seed}
        noised = self._run("noise", settings, self._noise, items, still_holds=self.gallery.holds)
        drafts = []
        for own in self.subjects:
            if own.image_id in noised:
                mask, copy = masks[own.image_id], noised[own.image_id]
                # the paper's score of an image pair is how sure the localiser is
                score = 1.0 if mask["confidence"] is None else mask["confidence"]
                made = {"masks": {**plan.localiser.settings, **mask}, "noise": {**settings, **copy}}
                made["score"] = {"score": score, "by": "the localiser" if mask["confidence"] is not None else "nobody"}
                files = (self.shown[own.image_id], copy)
                drafts.append(self._draft(own, "image", own.asked.answer, score, files, made))
        return drafts

    def _run(
        self, name: str, settings: Mapping[str, Any], work: Callable[[Item], Result], items: list[Item], **options: Any
    ) -> dict[str, Result]:
        """Results by item of those that are not left out; the rest goes into the summary."""
        outcome: Outcome = run_stage(Stage(name, settings, work, **options), items, self.plan.out)
        self.summary.failures |= {f"{name} {own}": err for own, err in outcome.failures.items()}
        self.summary.not_tried += [f"{name} {own}" for own in outcome.not_tried]
        left_out = {own: result[LEFT_OUT] for own, result in outcome.results.items() if LEFT_OUT in result}
        self.summary.left_out |= {f"{name} {own}": why for own, why in left_out.items()}
        return {own: result for own, result in outcome.results.items() if own not in left_out}

    def _publish(self, item: Item) -> Result:
        subject: Subject = item.content
        if subject.image is None:
            raise WorkError(f"Image {item.id}", "The data set has no image of that case", "Leave the case out")
        pixels = load_image(subject.image, in_colour=True)
        # a grey image that was stored in colour would else have coloured noise, which alone tells it from the true one
        if pixels.ndim == 3 and np.ptp(pixels.astype(np.int16), axis=-1).max() <= GREY_WITHIN:
            pixels = load_image(subject.image)
        return self.gallery.save(IMAGES, item.id, pixels)

    def _answer(self, item: Item) -> Result:
        own: Subject = item.content
        image = self.plan.out / self.shown[own.image_id]["file"]
        answers = self.plan.target.answer(image, own.asked.text, seed_of(self.plan.seed, own.id, "answers"))
        return {"answers": answers}

    def _pick(self, item: Item) -> Result:
        result = self.plan.picker.pick(*item.inputs)
        if LEFT_OUT in result:
            return result
        given, do = f"The rejected answer of {item.id} is {result['rejected']!r:.80}", "Use another picker"
        try:
            rejected = clean_text(result["rejected"], "rejected")
        except RowError as err:
            raise WorkError(given, f"It {err.reason}", do) from err
        if rejected == item.content.asked.answer:
            raise WorkError(given, "That is the preferred one too, so nothing would be learnt", do)
        return result | {"rejected": rejected}

    def _score(self, item: Item) -> Result:
        assert self.plan.panel is not None
        return self.plan.panel.score(*item.inputs)

    def _locate(self, item: Item) -> Result:
        pixels = self.gallery.load(self.shown[item.id])
        place = self.plan.localiser.find(item.content, pixels)
        if place is None:
            return {LEFT_OUT: "nothing is found that could be noised"}
        _check_mask(item.id, place.mask, pixels)
        folder = f"{MASKS}/{self.plan.localiser.settings['kind']}"
        saved = self.gallery.save(folder, item.id, place.mask.astype(np.uint8) * 255)
        return saved | {"area": round(float(place.mask.mean()), 4), "confidence": place.confidence}

    def _noise(self, item: Item) -> Result:
        shown, found = item.content
        pixels, mask = self.gallery.load(shown), self.gallery.load(found) > 0
        # each colour has its own noise, as the paper's is drawn for every value of the image
        planes = np.moveaxis(np.atleast_3d(pixels), -1, 0)
        seed = seed_of(self.plan.seed, item.id, "noise")
        seeds = [seed + plane for plane in range(len(planes))]
        copy = noise.noised(planes, np.stack([mask] * len(planes)), self.plan.step, seeds)
        noised = np.moveaxis(copy, 0, -1).reshape(pixels.shape)
        if np.array_equal(noised, pixels):
            why = f"At step {self.plan.step} the noise is below one grey level everywhere in the mask"
            raise WorkError(f"The noised image of {item.id} is the image itself", why, "Raise --step")
        folder = f"{IMAGES}/noised-{self.plan.localiser.settings['kind']}-{self.plan.step}-{self.plan.seed}"
        return self.gallery.save(folder, item.id, noised) | {"image_seed": seed}

    def _draft(
        self,
        own: Subject,
        kind: str,
        rejected: str,
        score: float,
        files: Sequence[Result],
        made: Mapping[str, Any],
    ) -> Draft:
        pair = Preference(f"{own.id}-{kind}", own.asked.text, own.asked.answer, rejected, kind, score)
        return Draft(own, pair, tuple(self.plan.out / result["file"] for result in files), made)


def _check_mask(image_id: str, mask: np.ndarray, pixels: np.ndarray) -> None:
    given = f"The mask of image {image_id}"
    if mask.shape != pixels.shape[:2]:
        why = f"It is {mask.shape[1]} x {mask.shape[0]} pixels, and the image {pixels.shape[1]} x {pixels.shape[0]}"
        raise WorkError(given, why, "Make it anew in the image's size")
    if not mask.any():
        raise WorkError(given, "It has no pixel, so both images of the pair would be the same", "Leave the image out")


def _stamp(image: Path | np.ndarray | None) -> Any:
    """What tells a changed image from the one that was read, without reading a file."""
    if image is None:
        return None
    if isinstance(image, np.ndarray):
        return pixels_digest(image)
    try:
        status = image.stat()
    except OSError:  # no such file, which the stage says, or a row of a table
        return [image.name, None, None]
    return [image.name, status.st_size, status.st_mtime_ns]
