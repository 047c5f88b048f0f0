"""Changes that any file can suffer: its bytes, or what stands under its name.

A change takes a random generator and a file, spoils it, and says how: see `Damage`. None means that it does not apply.
"""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NOISE_BYTES = 64
ROOT = "set"  # what the folder of a small set is called, which stays a folder


@dataclass(frozen=True)
class Damage:
    """What a change did.

    `keeps_form` is True where what is left is data of the same form, so that nobody can know it for spoiled without a
    digest; False where the form is broken; None where it depends on the bytes that were hit, see `trial.keeps_form`.
    `rows` is how many rows of the file may be lost by it; None where the whole file may be.
    """

    note: str
    keeps_form: bool | None = False
    rows: int | None = None


Change = Callable[[random.Random, Path], Damage | None]


def _span(rng: random.Random, size: int, most: int = NOISE_BYTES) -> tuple[int, int]:
    start = rng.randrange(size)
    return start, min(size, start + rng.randint(1, most))


def _bytes_change(edit: Callable[[random.Random, bytearray], str | None]) -> Change:
    def change(rng: random.Random, file: Path) -> Damage | None:
        content = bytearray(file.read_bytes())
        note = edit(rng, content) if content else None
        if note is None:
            return None
        file.write_bytes(content)
        return Damage(note, None)

    return change


def _flip(rng: random.Random, content: bytearray) -> str:
    places = [rng.randrange(len(content)) for _ in range(rng.choice((1, 1, 2, 8)))]
    for place in places:
        content[place] ^= 1 << rng.randrange(8)
    return f"a bit flipped at {places}"


def _flip_at_an_end(rng: random.Random, content: bytearray) -> str:
    """Headers, footers and directories are where formats keep their structure."""
    reach = min(len(content), 400)
    places = [rng.choice((rng.randrange(reach), len(content) - 1 - rng.randrange(reach))) for _ in range(3)]
    for place in places:
        content[place] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
    return f"bytes overwritten at {places}"


def _overwrite(rng: random.Random, content: bytearray) -> str:
    start, stop = _span(rng, len(content))
    content[start:stop] = rng.randbytes(stop - start)
    return f"noise over {start}..{stop}"


def _cut(rng: random.Random, content: bytearray) -> str:
    size = rng.choice((rng.randrange(1, len(content) + 1) - 1, len(content) - rng.randint(1, min(8, len(content)))))
    del content[size:]
    return f"cut to {size} bytes"


def _drop(rng: random.Random, content: bytearray) -> str:
    start, stop = _span(rng, len(content))
    del content[start:stop]
    return f"{start}..{stop} taken out"


def _repeat(rng: random.Random, content: bytearray) -> str:
    start, stop = _span(rng, len(content))
    content[stop:stop] = content[start:stop]
    return f"{start}..{stop} repeated"


def _hole(rng: random.Random, content: bytearray) -> str:
    start, stop = _span(rng, len(content), 4096)
    content[start:stop] = bytes(stop - start)
    return f"zeros over {start}..{stop}"


def _zero_tail(rng: random.Random, content: bytearray) -> str:
    start = rng.randrange(len(content))
    content[start:] = bytes(len(content) - start)
    return f"zeros from {start} on, as of a download that stopped"


def _nul(rng: random.Random, content: bytearray) -> str:
    place = rng.randrange(len(content) + 1)
    content[place:place] = b"\0"
    return f"a NUL at {place}"


def _insert(rng: random.Random, content: bytearray) -> str:
    place = rng.randrange(len(content) + 1)
    content[place:place] = rng.randbytes(rng.randint(1, 8))
    return f"noise put in at {place}"


def _append(rng: random.Random, content: bytearray) -> str:
    content += rng.randbytes(rng.randint(1, NOISE_BYTES))
    return "noise at the end"


def _twice(_: random.Random, content: bytearray) -> str:
    content += bytes(content)
    return "the whole content twice"


def _all_zeros(_: random.Random, content: bytearray) -> str:
    content[:] = bytes(len(content))
    return "zeros alone"


def _put_in_place(content: bytes, note: str) -> Change:
    def change(_: random.Random, file: Path) -> Damage:
        file.write_bytes(content)
        return Damage(note)

    return change


def _missing(_: random.Random, file: Path) -> Damage:
    file.unlink()
    return Damage("the file is gone", True)  # a set without one of its parts is a set


def _folder(_: random.Random, file: Path) -> Damage:
    file.unlink()
    file.mkdir()
    return Damage("a folder in its place")


def _loop(_: random.Random, file: Path) -> Damage:
    file.unlink()
    file.symlink_to(file.name)
    return Damage("a link to itself in its place")


def _dangling(_: random.Random, file: Path) -> Damage:
    file.unlink()
    file.symlink_to("nothing-here")
    return Damage("a link to nothing in its place")


def _pipe(_: random.Random, file: Path) -> Damage:
    file.unlink()
    os.mkfifo(file)
    return Damage("a named pipe in its place")


def _device(_: random.Random, file: Path) -> Damage:
    file.unlink()
    file.symlink_to(os.devnull)
    return Damage("a link to a device in its place")


def _file_for_folder(rng: random.Random, file: Path) -> Damage | None:
    if file.parent.name == ROOT:
        return None
    shutil.rmtree(file.parent)
    file.parent.write_bytes(rng.randbytes(NOISE_BYTES))
    return Damage(f"a file in the place of the folder {file.parent.name}")


def _loop_for_folder(_: random.Random, file: Path) -> Damage | None:
    if file.parent.name == ROOT:
        return None
    shutil.rmtree(file.parent)
    file.parent.symlink_to(file.parent.name)
    return Damage(f"a link to itself in the place of the folder {file.parent.name}")


def _link_to_root(_: random.Random, file: Path) -> Damage | None:
    if file.parent.name == ROOT:
        return None
    (file.parent / "again").symlink_to("..", target_is_directory=True)
    return Damage("a link to the folder above beside it", True)


def _renamed(rng: random.Random, file: Path) -> Damage:
    """Files found by a pattern may be called anything between its parts, also bytes that are no UTF-8."""
    odd = rng.choice((b"\xff", b"\x1b[2J", b"\n", b"\xc2\x85"))
    name = file.stem.encode() + b"-" + odd + file.suffix.encode()
    os.rename(file, os.path.join(os.fsencode(file.parent), name))
    # ids are made of the names of shards alone; any other file is missing under its own name
    return Damage(f"called {name}", file.suffix != ".parquet")


CHANGES: dict[str, Change] = {
    "flip": _bytes_change(_flip),
    "flip at an end": _bytes_change(_flip_at_an_end),
    "overwrite": _bytes_change(_overwrite),
    "cut": _bytes_change(_cut),
    "drop": _bytes_change(_drop),
    "repeat": _bytes_change(_repeat),
    "hole": _bytes_change(_hole),
    "zero tail": _bytes_change(_zero_tail),
    "nul": _bytes_change(_nul),
    "insert": _bytes_change(_insert),
    "append": _bytes_change(_append),
    "twice": _bytes_change(_twice),
    "all zeros": _bytes_change(_all_zeros),
    "empty": _put_in_place(b"", "empty"),
    "blank": _put_in_place(b" \n \n", "blanks alone"),
    "git lfs pointer": _put_in_place(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "a pointer"
    ),
    "error page": _put_in_place(b"<!DOCTYPE html><html><title>404</title></html>\n", "an error page as its content"),
    "missing": _missing,
    "renamed": _renamed,
    "folder": _folder,
    "link to itself": _loop,
    "link to nothing": _dangling,
    "pipe": _pipe,
    "device": _device,
    "file for folder": _file_for_folder,
    "link for folder": _loop_for_folder,
    "link to above": _link_to_root,
}
