"""Requests for masks in modalities that nothing was trained on, of classes whose words training knows. No torch.

The paper tests grounding so, zero-shot. A class that training never named could only be guessed, so those are asked for
that a trained modality shows too. With another class's word the picture is the same and so is the mask that is scored:
what is drawn as well then was not drawn for the word.
"""

from collections.abc import Sequence
from dataclasses import replace

from lightbox.paper.drawn_regions import MASK, Asked, load_asked
from lightbox.paper.samples import Sample, Split
from lightbox.phantom.modalities import EVALUATION_SPLITS, HELD_OUT, shared_classes
from lightbox.phantom.region_questions import PRESENT

UNSEEN, OTHER_WORD = "unseen", "unseen_other_word"
"""Conditions of scores: asked in a held-out modality; the same for what is there, with the word for another class."""
DEVELOPMENT = "development"


def unseen_splits(split: str, *, seed: int, n: int, scale_pct: int = 100) -> dict[str, Split[Asked]]:
    """Requests in every held-out modality by condition, of the same pictures; the kind of a question is its modality.

    So means that weigh kinds alike weigh modalities alike, as the paper's do: of some modalities fewer classes are
    shared, and fewer requests can be made.

    Args:
        split: that is scored; where it is one that choices are made on, such as validation, pictures are of the split
            "development", since no other split has held-out ones.
        seed: run seed.
        n: requests of all modalities together, fewer where the pictures allow fewer.
        scale_pct: size of findings in percent of the default.
    """
    own = split if split in EVALUATION_SPLITS else DEVELOPMENT
    settings = {"seed": seed, "per_picture": 1, "scale_pct": scale_pct}
    drawn = load_asked(own, modalities=HELD_OUT, tasks={MASK: n}, classes_of=shared_classes, **settings)
    samples = [sample.with_record(kind=sample.record.modality) for sample in drawn.samples]
    return {
        UNSEEN: replace(drawn, samples=samples),
        OTHER_WORD: replace(drawn, samples=with_other_words(samples)),
    }


def with_other_words(samples: Sequence[Sample[Asked]]) -> list[Sample[Asked]]:
    """Requests for what is there, with the word for the next class of the modality in place of its own; masks stay.

    Example:
        >>> asked = Asked("1", "segment the vessel .", "present", task="mask", modality="fundus", name="vessel")
        >>> with_other_words([Sample("1", asked, "case", 0)])[0].record.text
        'segment the haemorrhage .'
    """
    renamed = []
    for sample in samples:
        asked = sample.record
        if asked.answer == PRESENT:
            classes = shared_classes(asked.modality)
            other = classes[(classes.index(asked.name) + 1) % len(classes)]
            renamed.append(
                sample.with_record(name=other, text=asked.text.replace(f"the {asked.name} ", f"the {other} "))
            )
    return renamed
