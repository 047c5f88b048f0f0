"""Kinds of input beside data sets: how one is written sound, how a user has it read, and a verdict on a spoiled one.

A kind names what it is: `pictures` (images, DICOM, NIfTI), `weights` (folders of weights, adapters, checkpoints),
`finished` (the folder of a run). Verdicts are those of `trial`. Settings, which are words and no files, have a judge of
their own in `settings`, and all come together in `every_kind`.
"""

import hashlib
import random
import shutil
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightbox.errors import LightboxError
from lightbox.testing.spoiled.entries import ROOT, Change, Damage
from lightbox.testing.spoiled.trial import Outcome, changes_of, keeps_form, spoil


@dataclass(frozen=True)
class Look:
    """What was read, as a digest, and whether anything was said, such as a checkpoint that is skipped."""

    content: str
    said: str = ""


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Args:
        write: (folder, rng) writes a sound one.
        look: reads it by every way that a user has, and returns what was read.
        changes: what a file of it can suffer.
        keeps_form: (sound, spoiled) -> True where nobody could know the spoiled file for one; not asked where there
            are digests.
        variants: different sound ones.
        has_digests: any other content must be refused or said.
        says_place: a refusal names the folder.
    """

    write: Callable[[Path, random.Random], None]
    look: Callable[[Path], Look]
    changes: Callable[[Path], Mapping[str, Change]] = changes_of
    keeps_form: Callable[[Path, Path], bool] = keeps_form
    variants: int = 6
    has_digests: bool = False
    says_place: bool = True
    _before: dict[Path, Look] = field(default_factory=dict)

    def trial(self, name: str, seed: int, work: Path, change: str | None = None) -> Outcome:
        """Spoil one file of a sound input and judge what is made of it."""
        variant = seed % self.variants
        sound = work / "sound" / name / str(variant) / ROOT
        if sound not in self._before:
            shutil.rmtree(sound, ignore_errors=True)
            sound.mkdir(parents=True)
            self.write(sound, random.Random(f"{name} {variant}"))
            self._before[sound] = self.look(sound)
        folder = work / "spoiled" / ROOT
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder)
        file, chosen, damage = spoil(folder, random.Random(f"{name} {seed}"), change, changes=self.changes)
        relative = str(file.relative_to(folder))
        verdict, detail = self._judge(folder, file, damage, self._before[sound], sound / relative)
        return Outcome(name, seed, relative, chosen, damage.note, verdict, detail.replace(str(work), "..."))

    def _judge(self, folder: Path, file: Path, damage: Damage, before: Look, original: Path) -> tuple[str, str]:
        verdict, after = judged(lambda: self.look(folder), str(folder) if self.says_place else "")
        if not isinstance(after, Look):
            return verdict, after
        if after.content == before.content:
            return "same", after.said
        if after.said != before.said:
            return "said", after.said
        if self.has_digests:
            return "silent", "other content than the digests name"
        is_sound = damage.keeps_form
        if is_sound is None:
            is_sound = file.is_file() and self.keeps_form(original, file)
        return "undetectable" if is_sound else "silent", ""


def judged(call: Callable[[], Any], place: str) -> tuple[str, Any]:
    """Verdict and what was said where a call refuses or fails; "" and what it returned where it does neither."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "", call()
    except LightboxError as err:
        parts = (err.given, err.why, err.do)
        if not all(len(part) > 3 for part in parts):
            return "unnamed", f"not in three parts: {err}"
        return "refused" if place in str(err) else "unnamed", str(err)[:2000]
    except Exception as err:  # noqa: BLE001  whatever a user would see as a traceback is what is looked for
        frames = [frame for frame in traceback.extract_tb(err.__traceback__) if "/lightbox/" in frame.filename]
        ours = [frame for frame in frames if "/testing/" not in frame.filename]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "elsewhere"
        return "traceback", f"{where} | " + "".join(traceback.format_exception_only(err)).strip()[:1000]


def digest_of(*parts: Any) -> str:
    """Digest of anything that prints."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()
