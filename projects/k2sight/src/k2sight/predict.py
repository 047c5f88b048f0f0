"""One image, one finding by name or in words: its boxes with confidences. Research and teaching, not clinical use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from k2sight.config import Config
from k2sight.data import Target
from k2sight.descriptions import define, phantom_classes, real_classes
from k2sight.model import Grounder, open_grounder
from k2sight.prompts import MEANS
from lightbox.errors import RequestError
from lightbox.paper import learner as learners
from lightbox.paper.overlay import in_image
from lightbox.paper.pruned import pruned, tokens_read
from lightbox.paper.samples import Sample
from lightbox.readers.images import load_image

IN_WORDS = 'Ask in words, such as "it means coin, white, dextral top"'


def predict(
    image: Path | np.ndarray, question: str, *, folder: Path, options: Sequence[str] = (), opened: Any = None
) -> dict[str, object]:
    """Draw the boxes of a finding.

    Args:
        image: PNG, JPEG or DICOM file, or pixels; it is letterboxed to the tower's size.
        question: name of a class that the run knows, or "NAME means DEFINITION" for any other.
        folder: a finished run of `k2sight train`.
        options: not used; a finding is asked for by its name.
        opened: what `load_run` gave for the folder, where several questions follow one another; None loads it.

    Returns:
        finding, definition as the prompt had it, boxes as `xyxy` fractions of the image, labels, scores (exponential of
        the mean log-probability of a box's location tokens, in [0, 1], not calibrated), and what the model says of it;
        how many tokens of the image it read, where `pruning.method` takes some away.

    Raises:
        RequestError: a run that is not finished, or a class without a definition where the run was taught definitions.
    """
    cfg, grounder = opened or load_run(folder)
    name, _, definition = question.partition(MEANS)
    if cfg.data.prompt == "name" and definition:
        raise RequestError(
            f"'{question}' is asked for",
            "The run was taught names alone, so it would not read what the name means",
            "Ask by the name, or name a run of experiment=defined",
        )
    if cfg.data.prompt != "name" and not definition:
        definition = _definition(cfg, name)
    asked = Sample("asked", Target(name, definition=definition), "asked", 0)
    with pruned(grounder.learner.backbone, cfg.pruning, seed=cfg.run.seed, lengths="original") as pruning:
        reading = grounder.ask([asked], grounder.learner.see_file(image))[0]
        read = tokens_read(pruning, cfg.pruning)
    height, width = load_image(image).shape[:2]
    # a box in the margin around the image is no place in it
    boxes = [(in_image(one.box, (height, width)), one) for one in reading.boxes]
    boxes = [(box, one) for box, one in boxes if box.area > 0]
    return {
        "finding": name,
        "definition": definition,
        "boxes": [tuple(round(side, 4) for side in box) for box, _ in boxes],
        "labels": [one.label or name for _, one in boxes],
        "scores": [round(one.score, 4) for _, one in boxes],
        "says": "where it is" if boxes else "that there is none" if reading.is_parsed else "nothing readable",
        **read,
        "note": "research and teaching only, not for clinical use",
    }


def load_run(folder: Path) -> tuple[Config, Grounder]:
    """What `k2sight train` left in a run folder; see `lightbox.paper.learner.load_run`."""
    cfg, learner = learners.load_run(
        folder, Config, lambda cfg, base, cache: open_grounder(cfg, base, (), cache=cache).learner
    )
    return cfg, Grounder(cfg, learner)


def _definition(cfg: Config, name: str) -> str:
    """What the run was taught that a name means, right or wrong."""
    classes = phantom_classes(cfg.run.seed) if cfg.data.is_phantom else real_classes([name], [name], cfg.run.seed)
    if name not in classes.places:
        raise RequestError(
            f"'{name}' is asked for",
            f"The run knows {len(classes.names)} classes by their names, such as {', '.join(classes.names[:3])}",
            f'Ask for one of them, or in words: "{name}{MEANS}coin, white, dextral top"',
        )
    if cfg.data.definition == "random":
        raise RequestError(f"'{name}' is asked for", "The run was taught a random meaning for each item", IN_WORDS)
    return define(classes, name, cfg.data.definition)
