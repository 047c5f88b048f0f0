"""The knobs of the phantom world: one frozen dataclass, validated, hashable, part of every data digest."""

from dataclasses import dataclass

from lightbox.errors import RequestError

MODALITIES = ("chest",)
TRIPLE_SETS = ("known", "unseen_composition", "unseen_pair", "unseen_value", "all")
VOCABULARIES = ("named", "triples")
BURNED_IN = ("none", "marker", "shortcut")


@dataclass(frozen=True)
class Knobs:
    """What kind of world is drawn.

    Args:
        modality: which renderer; one of `MODALITIES`.
        image_px: image side in pixels, a multiple of 8 in 32..512. Cost grows with its square.
        rho: text-prior strength in [0, 1]: the share of questions whose answer follows a fixed stereotype of the
            question text. The best question-only accuracy on closed questions is 0.5 + rho / 2.
        lesion_scale_pct: lesion size in percent of the default, 50..200: the size relative to the pixel grid.
        distractors: 0..3 extra findings that share all but one attribute with the first finding.
        label_noise_pct: percent of closed questions whose answer is flipped (0..100). The facts stay true.
        triples: which part of the ontology is drawn (see `splits`).
        vocabulary: "named" draws the named classes (nodule, effusion, ...), "triples" any triple of the set.
        shifted: shifted priors and appearance, for a second test set.
        burned_in_text: "none"; "marker" draws a side marker; "shortcut" draws a letter P exactly where a finding is
        present.
    """

    modality: str = "chest"
    image_px: int = 64
    rho: float = 0.0
    lesion_scale_pct: int = 100
    distractors: int = 0
    label_noise_pct: int = 0
    triples: str = "known"
    vocabulary: str = "named"
    shifted: bool = False
    burned_in_text: str = "none"

    def __post_init__(self) -> None:
        _one_of("modality", self.modality, MODALITIES)
        _one_of("triples", self.triples, TRIPLE_SETS)
        _one_of("vocabulary", self.vocabulary, VOCABULARIES)
        _one_of("burned_in_text", self.burned_in_text, BURNED_IN)
        _in_range("image_px", self.image_px, 32, 512)
        _in_range("rho", self.rho, 0, 1)
        _in_range("lesion_scale_pct", self.lesion_scale_pct, 50, 200)
        _in_range("distractors", self.distractors, 0, 3)
        _in_range("label_noise_pct", self.label_noise_pct, 0, 100)
        if self.image_px % 8:
            raise RequestError(
                f"image_px={self.image_px}", "The towers cut images into patches of 8 pixels", "Use a multiple of 8"
            )
        # named classes would be drawn at places that the part does not hold
        if self.vocabulary == "named" and self.triples not in ("known", "all"):
            raise RequestError(
                f"vocabulary='named' with triples='{self.triples}'",
                "Named classes lie in the known part of the ontology",
                "Set vocabulary='triples' for a held-out part",
            )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise RequestError(f"{name}='{value}'", "The phantom has no such choice", f"Use one of {', '.join(allowed)}")


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise RequestError(f"{name}={value}", f"It must lie in {low}..{high}", f"Choose {name} in that range")
