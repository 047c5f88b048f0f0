"""The weights that an earlier arm of the same seed left, where an arm goes on from them."""

from collections.abc import Mapping
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.paper.pretrained import Pretrained, find_pretrained
from lightbox.runs import folders


def started(needs: Mapping[str, Path], base: Pretrained) -> Pretrained:
    """The weights of the one arm that is needed; `base` where none is.

    Args:
        needs: folder of each earlier arm.
        base: what the configuration names.

    Raises:
        RequestError: several arms, or a folder without weights.
    """
    if not needs:
        return base
    places = [folder / folders.MODEL for folder in needs.values()]
    if len(places) > 1 or not places[0].is_dir():
        raise RequestError(
            f"needs names {', '.join(f'{arm} in {folder}' for arm, folder in needs.items())}",
            "This arm goes on from the weights of one other, whose folder holds its model",
            "Train that arm first, and name its folder alone, as needs=[FOLDER]",
        )
    return find_pretrained(str(places[0]))
