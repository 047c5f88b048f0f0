"""What is claimed, before the model: looking beats guessing where such findings usually are. No torch."""

from lightbox.claims.spec import Arm, Claim, Gate, Kind, Measure, PaperClaims, Role, difference

UNTRAINED = "objective.is_trained=false"
ARMS = (
    Arm("head", "head trained on frozen features", ("objective.method=head",)),
    Arm("untouched", "arm 0: the head as it is drawn", ("objective.method=head", UNTRAINED), is_trained=False),
    Arm("location_prior", "its median box", ("objective.method=location_prior", UNTRAINED), is_trained=False),
)


def _iou(arm: str, condition: str = "image") -> Measure:
    return Measure(arm, "iou", (("condition", condition),))


_B1 = Claim(
    paper="boxes",
    id="B1",
    kind=Kind.DIRECTIONAL,
    statement="A head on frozen features draws better boxes than the location prior of the finding.",
    location="made up",
    paper_numbers="not found",
    contrasts=(
        difference("head - location prior", _iou("head"), _iou("location_prior")),
        difference("own image - shuffled image", _iou("head"), _iou("head", "shuffled"), Role.CONTROL),
    ),
    gate=Gate((_iou("head"),), (_iou("location_prior"), _iou("{best}", "blank"), _iou("untouched"))),
    unit="points of IoU",
    is_primary=True,
    presets=("smoke", "quick"),
)
PAPER = PaperClaims("boxes", "Boxes", "0000.00000", {arm.name: arm for arm in ARMS}, (_B1,), default_arm="head")
