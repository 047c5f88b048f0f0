"""Where things are: the repository root, shared data, committed results, the default output folder. No torch."""

import os
from pathlib import Path

from lightbox.errors import RequestError

HOME_VARIABLE = "LIGHTBOX_HOME"


def repo_root() -> Path:
    """Folder that holds `shared_data/`: LIGHTBOX_HOME, else upward from the current folder, else from this file.

    Raises:
        RequestError: where LIGHTBOX_HOME holds no `shared_data/`, or no folder above does.
    """
    home = os.environ.get(HOME_VARIABLE)
    if home:
        root = Path(home).expanduser().resolve()
        if not (root / "shared_data").is_dir():
            raise RequestError(
                f"{HOME_VARIABLE} is '{home}'",
                "That folder holds no shared_data/",
                f"Set {HOME_VARIABLE} to a checkout of Lightbox, or unset it",
            )
        return root
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if (folder / "shared_data").is_dir():
                return folder
    raise RequestError(
        f"The current folder is '{Path.cwd()}'",
        "Neither it nor a folder above it holds shared_data/, and the installed package does not lie in a checkout",
        f"Run inside a checkout of Lightbox, or set {HOME_VARIABLE} to one",
    )


def shared_data() -> Path:
    """Folder with the phantom sample, splits, knowledge tables, dataset cards and tiny weights."""
    return repo_root() / "shared_data"


def results_dir() -> Path:
    """Folder with the committed rows and per-item scores behind published numbers."""
    return repo_root() / "results"


def default_out() -> Path:
    """`./lightbox-out`, not created here; every command takes another one as `--out`."""
    return Path("lightbox-out")
