"""The one ontology of all papers: shape x density x location x size, of which "nodule" or "effusion" are named points.

A *triple* is (shape, density, location); 7 x 4 x 8 = 224 of them. Size is drawn beside it. Six of the locations carry a
side; hilum and costophrenic angle get theirs from the scene.
"""

from dataclasses import dataclass
from itertools import product

SHAPES = ("disc", "oval", "ring", "band", "wedge", "reticular", "crescent")
DENSITIES = ("dense", "medium", "haze", "lucent")
SIDES = ("right", "left")
ZONES = ("upper", "middle", "lower")
LOCATIONS = (*(f"{side} {zone}" for side, zone in product(SIDES, ZONES)), "hilum", "costophrenic")
SIZES = ("small", "large")
TRIPLES = tuple(product(SHAPES, DENSITIES, LOCATIONS))

DENSITY_WORDS = {"dense": "dense", "medium": "grey", "haze": "hazy", "lucent": "lucent"}
SHAPE_WORDS = {
    "disc": "disc",
    "oval": "oval",
    "ring": "ring",
    "band": "band",
    "wedge": "wedge",
    "reticular": "mesh",
    "crescent": "crescent",
}


@dataclass(frozen=True)
class NamedClass:
    """A named point of the ontology: empty `sizes` or `places` means any.

    `places` are anatomical places as in `PLACES`: "upper", "middle", "lower", "hilum", "costophrenic".
    """

    name: str
    shape: str
    density: str
    sizes: tuple[str, ...] = SIZES
    places: tuple[str, ...] = (*ZONES, "hilum", "costophrenic")

    @property
    def look(self) -> str:
        """The class as an appearance phrase, for example "small dense disc"."""
        size = f"{self.sizes[0]} " if len(self.sizes) == 1 else ""
        return f"{size}{DENSITY_WORDS[self.density]} {SHAPE_WORDS[self.shape]}"


CLASSES = (
    NamedClass("nodule", "disc", "dense", sizes=("small",)),
    NamedClass("mass", "disc", "dense", sizes=("large",)),
    NamedClass("bulla", "disc", "lucent"),
    NamedClass("opacity", "oval", "haze"),
    NamedClass("consolidation", "wedge", "medium"),
    NamedClass("atelectasis", "band", "medium"),
    NamedClass("fibrosis", "reticular", "medium"),
    NamedClass("effusion", "crescent", "dense", places=("costophrenic",)),
    NamedClass("pneumothorax", "crescent", "lucent", places=("upper",)),
)
CLASS_NAMES = tuple(c.name for c in CLASSES)

# A place is where a finding can lie: six zones, then hilum and costophrenic angle of either side. Places of one cell
# overlap in the image, so at most one finding (two with distractors) lies in a cell.
PLACES = tuple(
    [(side, zone) for side in SIDES for zone in ZONES]
    + [(side, special) for special in LOCATIONS[6:] for side in SIDES]
)
# hilum and costophrenic angle of either side are one location of the ontology
PLACE_LOCATION = (0, 1, 2, 3, 4, 5, 6, 6, 7, 7)
PLACE_CELL = (0, 1, 2, 3, 4, 5, 1, 4, 2, 5)  # a hilum overlaps its middle zone, an angle its lower zone


def triple_index(shape: str, density: str, location: str) -> int:
    """Index of a triple in `TRIPLES`.

    Example:
        >>> TRIPLES[triple_index("ring", "haze", "hilum")]
        ('ring', 'haze', 'hilum')
    """
    s, d, loc = SHAPES.index(shape), DENSITIES.index(density), LOCATIONS.index(location)
    return (s * len(DENSITIES) + d) * len(LOCATIONS) + loc


def name_of(shape: str, density: str, size: str, place: str) -> str:
    """The class name of a finding, or its appearance phrase where the ontology has no name for it.

    Example:
        >>> name_of("disc", "dense", "small", "upper"), name_of("oval", "dense", "small", "upper")
        ('nodule', 'dense oval')
    """
    for c in CLASSES:
        if c.shape == shape and c.density == density and size in c.sizes and place in c.places:
            return c.name
    return f"{DENSITY_WORDS[density]} {SHAPE_WORDS[shape]}"


def place_phrase(side: str, place: str) -> str:
    """The place in words.

    Example:
        >>> place_phrase("left", "upper"), place_phrase("right", "costophrenic")
        ('left upper zone', 'right costophrenic angle')
    """
    if place in ZONES:
        return f"{side} {place} zone"
    return f"{side} hilum" if place == "hilum" else f"{side} costophrenic angle"
