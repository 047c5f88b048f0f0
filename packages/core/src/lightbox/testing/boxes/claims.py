"""What is claimed, before the model: looking beats guessing where such findings usually are. No torch."""

from lightbox.claims.spec import BEST, Arm, Claim, Gate, Kind, Measure, PaperClaims, Role, difference

UNTRAINED = "objective.is_trained=false"
_METHODS = (
    Arm("head", "head trained on frozen features", ("objective.method=head",)),
    Arm("untouched", "arm 0: the head as it is drawn", ("objective.method=head", UNTRAINED), is_trained=False),
    Arm("location_prior", "its median box", ("objective.method=location_prior", UNTRAINED), is_trained=False),
)
ARMS = {arm.name: arm for arm in _METHODS}
_B1 = Claim(
    paper="boxes",
    id="B1",
    kind=Kind.DIRECTIONAL,
    statement="A head on frozen features draws better boxes than the location prior of the finding.",
    location="made up",
    paper_numbers="not found",
    contrasts=(
        difference("head - location prior", "head", "location_prior"),
        difference("own image - shuffled image", "head", Measure("head", condition="shuffled"), Role.CONTROL),
    ),
    gate=Gate((Measure("head"),), (Measure("location_prior"), Measure(BEST, condition="blank"), Measure("untouched"))),
    unit="points of IoU",
    is_primary=True,
    presets=("smoke", "quick"),
    budget="",
)
PAPER = PaperClaims("boxes", "Boxes", "0000.00000", ARMS, (_B1,), headline="iou", condition="image", default_arm="head")
