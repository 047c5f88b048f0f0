"""What `reproduce --log` does: refuse what is no replay, find out who runs it, append rows at the end. No torch."""

import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lightbox import machine
from lightbox.claims import published, replays
from lightbox.claims.document import ClaimEntry, Document
from lightbox.claims.jobs import Plan
from lightbox.claims.replays import Machine, Replay
from lightbox.claims.runner import Finished
from lightbox.claims.verdicts import PRESETS_WITHOUT_VERDICT
from lightbox.errors import RequestError
from lightbox.paths import default_out
from lightbox.runs import folders


def check_request(preset: str, *, reuse: bool, dry_run: bool, publish: bool) -> None:
    """Refuse `--log` beside what makes no replay.

    Raises:
        RequestError: which says why.
    """
    reasons = {
        f"--preset {preset}": (preset in PRESETS_WITHOUT_VERDICT, "It decides nothing that could agree or differ"),
        "--dry-run": (dry_run, "It runs nothing"),
        "--reuse results": (reuse, "Jobs that are taken from what is published would agree with themselves"),
        "--publish": (publish, "A run is either published, or a replay of what is"),
    }
    for option, (is_given, why) in reasons.items():
        if is_given:
            raise RequestError(f"--log is given with {option}", why, "Leave one of the two out")


def name_of_runner(by: str, root: Path) -> str:
    """Who runs a replay: the name given, or else git's `user.name`.

    Args:
        by: as given; "" asks git.
        root: a folder of the checkout.

    Raises:
        RequestError: where there is neither, before anything has run.
    """
    name = replays.plain_text(by) or replays.plain_text(_git_name(root))
    if not name:
        why = "--by gives no name, and git knows no user.name here"
        raise RequestError("--log is given", why, "Give --by NAME: it stands in the log for everybody to read")
    return name


def log_run(document: Document, finished: Finished, root: Path, *, by: str) -> list[str]:
    """Append the claims of a finished run to the log; lines that say what was done.

    Args:
        document: of the run, all its planned seeds ended.
        finished: its jobs, none reused.
        root: folder of committed results.
        by: who ran it.

    Raises:
        WorkError: see `replays.append_replays`.
    """
    claims = [claim for claim in document.claims if not _is_published_run(claim, document, root)]
    path = root / replays.FILE
    added = replays.append_replays(path, [_row(claim, document, finished, by) for claim in claims])
    lines = [
        f"{claim.paper} {claim.id} is the published run itself, and no replay of it"
        for claim in document.claims
        if claim not in claims
    ]
    if known := len(claims) - len(added):
        lines.append(f"{known} of its claims stand in the log already, as run {_runs(claims, document)}")
    lines += [f"logged: {row.paper} {row.claim}, {row.outcome}, by {row.by}" for row in added]
    if added:
        lines.append(
            f"{len(added)} row{'s' * (len(added) != 1)} added to {path}; send that file as a change to share them"
        )
    return lines


def command_to_log(plan: Plan, out: Path) -> str:
    """The command that adds a finished run to the log; its jobs are kept, so that it runs none of them."""
    papers = {paper.name: paper for paper, _ in plan.claims}
    every = [c.id for paper in papers.values() for c in paper.claims.claims if plan.preset in c.presets]
    ids = [claim.id for _, claim in plan.claims]
    words = ["uv", "run", "lightbox", "reproduce", *papers, "--preset", plan.preset]
    words += [] if ids == every else ["--claims", ",".join(ids)]
    words += [] if out == default_out() else ["--out", str(out)]
    return shlex.join([*words, "--log"])


def _row(claim: ClaimEntry, document: Document, finished: Finished, by: str) -> Replay:
    keys = [key for key in claim.run_ids if key in finished.folders]
    under = _machine([folders.read_record(finished.folders[key]) or {} for key in keys])
    return replays.replay_of(claim, document.preset, document.jobs, by=by, machine=under)


def _machine(records: Sequence[dict]) -> Machine:
    """Versions as the jobs recorded them; the system is not, so it is told where they ran on this machine."""
    versions = [record.get("versions") or {} for record in records]
    python, torch = ("; ".join(sorted({own.get(name, "") for own in versions} - {""})) for name in ("python", "torch"))
    is_here = {record.get("hardware") for record in records} == {machine.hardware()}
    return Machine(f"{platform.system()} {platform.release()} {platform.machine()}" if is_here else "", python, torch)


def _is_published_run(claim: ClaimEntry, document: Document, root: Path) -> bool:
    """Whether the jobs behind a claim are those that are published: then it agrees with itself."""
    earlier = published.committed_claims(root, [claim.paper], document.preset).get((claim.paper, claim.id))
    if earlier is None:
        return False
    jobs = published.committed_jobs(root, [claim.paper], document.preset).values()
    return replays.run_digest(claim, document.jobs) == replays.run_digest(earlier, jobs)


def _runs(claims: Sequence[ClaimEntry], document: Document) -> str:
    return ", ".join(dict.fromkeys(replays.run_digest(claim, document.jobs) for claim in claims))


def _git_name(root: Path) -> str:
    """git's `user.name` as it is set for a folder; "" where git is absent or has none."""
    folder = next((place for place in (root, *root.parents) if place.is_dir()), Path())
    command = ["git", "-C", str(folder), "config", "user.name"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return ""
