"""Names of weights -> places and digests, without torch: "tiny/<name>", a directory, or a hub id with its revision."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lightbox.errors import RequestError, WorkError
from lightbox.files import file_sha256
from lightbox.paths import shared_data

TINY = "tiny/"
CONFIG = "config.json"
CARD = "card.json"  # says how weights were made, and how long it took; they load without it
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+$")
# no short hash: the hub resolves it today, and another commit may share it tomorrow
_REVISION = re.compile(r"[0-9a-f]{40}$")
_READ_AS_WEIGHTS = (".safetensors", ".json", ".model", ".txt", ".jinja")  # the last is a chat template
_PICKLES = ("pytorch_model*.bin", "*.pth", "*.pt", "*.ckpt")


@dataclass(frozen=True)
class Place:
    """Where weights are: `source` is a folder path or a hub id, `revision` a commit hash for a hub id and None else."""

    source: str
    revision: str | None = None

    @property
    def folder(self) -> Path | None:
        """The local folder, or None for a hub id."""
        return Path(self.source) if self.revision is None else None


def locate(name: str, *, revision: str = "", key: str = "model.backbone") -> Place:
    """Find weights by name: a tiny model, then a local directory, then a hub id.

    Args:
        name: "tiny/t5", a path, or "owner/model".
        revision: full commit hash (40 hex digits), required for a hub id and for nothing else.
        key: config key that gave the name, for messages.

    Raises:
        RequestError: nothing there, no safetensors, or a hub id without a full revision.
        WorkError: a file of a tiny model is not the one on its card.
    """
    folder = shared_data() / "weights" / name.removeprefix(TINY) if name.startswith(TINY) else Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder, key)
        # results rest on these very bytes, so each use compares them; the digest is remembered
        if name.startswith(TINY) and (folder / CARD).is_file():
            check_card(folder)
        return Place(str(folder))
    if name.startswith(TINY):
        tiny_names = sorted(path.parent.name for path in folder.parent.glob(f"*/{CONFIG}"))
        raise RequestError(
            f"{key} is '{name}'",
            f"The tiny models here are {', '.join(tiny_names) or 'none'}",
            f"Choose one of them, or build it with 'lightbox pretrain --only {folder.name}'",
        )
    if not _HUB_ID.match(name):
        raise RequestError(f"{key} is '{name}'", "There is no such directory", f"Set {key} to a directory or a hub id")
    if not _REVISION.match(revision):
        raise RequestError(
            f"{key} is the hub id '{name}' with revision '{revision}'",
            "What a branch or tag names can change, so the same command would load other weights",
            f"Set {key}_revision to the full commit hash, or {key} to a local directory",
        )
    return Place(name, revision)


def read_config(name: str, *, revision: str = "", key: str = "model.backbone") -> dict | None:
    """`config.json` of local weights as a dictionary; None for a hub id, whose config is read when it is loaded."""
    folder = locate(name, revision=revision, key=key).folder
    return None if folder is None else json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def digest_of(name: str, *, revision: str = "", key: str = "model.backbone") -> str:
    """What identifies weights in a job key: SHA-256 over the folder's files, or the hub id with its revision."""
    place = locate(name, revision=revision, key=key)
    if place.folder is None:
        return f"hub:{place.source}@{place.revision}"
    return digest_of_folder(place.folder, suffixes=_READ_AS_WEIGHTS, without=(CARD,))


def digest_of_weights(name: str, *, revision: str = "") -> str:
    """What identifies the tensors alone, whatever lies beside them: SHA-256 over the safetensors, or id and revision.

    Files count by name and content, so the same tensors cut into other files are taken for others.
    """
    place = locate(name, revision=revision)
    if place.folder is None:
        return digest_of(name, revision=revision)
    files = sorted(path for path in place.folder.glob("*.safetensors") if not path.name.startswith("adapter_"))
    lines = [f"{path.name} {digest_of_file(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode("utf-8")).hexdigest()


def digest_of_folder(
    folder: Path, *, suffixes: Sequence[str], without: Sequence[str] = (), may_be_empty: bool = False
) -> str:
    """SHA-256 over names and contents of the files below `folder` with one of `suffixes`, in order of name.

    Args:
        folder: searched with all below it.
        suffixes: endings, in small letters; capitals in a file's name do not matter.
        without: names of files that are left out.
        may_be_empty: True where the folder need not hold such a file.

    Raises:
        RequestError: where the folder is not there or holds no such file.
    """
    named = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.name not in without)
    files = sorted(path for path in named if path.is_file())
    if not files and not may_be_empty:
        raise RequestError(
            f"Folder '{folder}'", f"It holds no file that ends in {', '.join(suffixes)}", "Name the folder that does"
        )
    # relative and with slashes: the same folder elsewhere has the same digest
    lines = [f"{path.relative_to(folder).as_posix()} {digest_of_file(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode("utf-8")).hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 of one file, remembered while its size and time stay.

    Raises:
        RequestError: where it is not there.
    """
    if not path.is_file():
        raise RequestError(f"File '{path}'", "There is no such file", "Correct the path")
    facts = path.stat()
    return _sha256_once(str(path), facts.st_size, facts.st_mtime_ns)


def size_bytes(name: str, *, revision: str = "") -> int:
    """Bytes of the safetensors of local weights; 900 MB (a T5-base in float32) is assumed for a hub id."""
    folder = locate(name, revision=revision).folder
    return 900_000_000 if folder is None else sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@lru_cache(maxsize=4096)
def _sha256_once(path: str, size: int, mtime_ns: int) -> str:
    return file_sha256(Path(path))


def check_card(folder: Path) -> dict:
    """Compare the files of a tiny model with the digests on its card, and return the card.

    Raises:
        WorkError: a card that is none, or a file that is missing or another one, with its name.
    """
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        digests = {str(file): str(recorded) for file, recorded in card["sha256"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as err:
        raise WorkError(
            f"{folder / CARD} cannot be read",
            f"It is no card of a model: {err!r}",
            "Restore the file from the repository, or rebuild it with 'lightbox pretrain'",
        ) from err
    for file, recorded in digests.items():
        actual = digest_of_file(folder / file) if (folder / file).is_file() else "missing"
        if actual != recorded:
            raise WorkError(
                f"{folder / file} has digest {actual[:12]}, its card says {recorded[:12]}",
                "The file is damaged or from another build, so results with it would not be those of this model",
                "Restore the file from the repository, or rebuild it with 'lightbox pretrain'",
            )
    return card


def _check_folder(folder: Path, key: str) -> None:
    request = f"{key} is '{folder}'"
    if not (folder / CONFIG).is_file():
        raise RequestError(request, f"The folder holds no {CONFIG}", "Name a folder that save_pretrained wrote")
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise RequestError(
            request,
            f"It holds {pickles[0]} and no safetensors; unpickling can run any code",
            "Convert it once with 'lightbox data convert' and put the result into that folder as model.safetensors",
        )
    raise RequestError(request, "The folder holds no weights", "Name a folder with model.safetensors")
