"""A results document as `reproduce` writes it, decided by the real code on made-up scores. No torch."""

from pathlib import Path
from typing import Any

from lightbox.claims import results
from lightbox.claims.document import Document, ErrorEntry
from lightbox.claims.jobs import Plan
from lightbox.claims.registry import Paper
from lightbox.claims.runner import Finished
from lightbox.claims.spec import Arm, Claim, Gate, Kind, Measure, PaperClaims, Role, difference
from lightbox.errors import WorkError
from lightbox.testing.fake_runs import write_job

LEVELS = {
    "majority": 0.47,
    "question_only": 0.5,
    "untouched": 0.45,
    "none": 0.6,
    "same_answer": 0.605,
    "filler": 0.6,
    "explanation": 0.66,
    "reasoning": 0.585,
}
SEEDS = {"smoke": 1, "quick": 5, "full": 8}


def fake_claims(text: str = "") -> PaperClaims:
    """Claims of every kind but pattern, on the arms of `LEVELS`; `text` is put into every text field."""

    def claim(claim_id: str, kind: Kind, statement: str, *contrasts: Any, **options: Any) -> Claim:
        settings: dict[str, Any] = {"presets": ("smoke", "quick", "full"), "seeds": SEEDS, "min_items": 1}
        settings |= {"note": text, "budget": ""}
        return Claim(
            paper="medthink",
            id=claim_id,
            kind=kind,
            statement=statement + text,
            location="accuracy by strategy, R-RAD and R-SLAKE (table number not found)" + text,
            paper_numbers="83.5 / 86.3 against 79.0 / 82.5: +4.5 / +3.8 points" + text,
            contrasts=contrasts,
            **settings | options,
        )

    gate = Gate(
        tuple(Measure(arm) for arm in ("explanation", "none", "same_answer", "filler")),
        (
            Measure("majority"),
            Measure("question_only"),
            Measure("{best}", condition="blank"),
            Measure("{best}", condition="shuffled"),
            Measure("untouched"),
        ),
    )
    count, rival = (Measure(arm, where=(("kind", "count"),)) for arm in ("explanation", "none"))
    claims = (
        claim(
            "T1",
            Kind.DIRECTIONAL,
            "Training to answer and then explain (Explanation) beats training to answer only.",
            difference("Explanation - answer only", "explanation", "none"),
            difference("true - same-answer rationale", "explanation", "same_answer", Role.CONTROL),
            difference("true rationale - filler", "explanation", "filler", Role.CONTROL),
            difference("count questions: Explanation - answer only" + text, count, rival, Role.SECONDARY),
            gate=gate,
            is_primary=True,
        ),
        claim(
            "T2",
            Kind.CHAIN,
            "Reasoning before answering is worse than answering only, and worse than answering and then explaining.",
            difference("answer only - Reasoning", "none", "reasoning"),
            difference("Explanation - Reasoning", "explanation", "reasoning"),
            gate=gate,
        ),
        claim(
            "T6",
            Kind.EQUIVALENCE,
            "Rationale BLEU does not depend on the order of answer and rationale.",
            difference("Explanation - Reasoning", Measure("explanation", "bleu4"), Measure("reasoning", "bleu4")),
            gate=None,
            unit="BLEU",
            unit_scale=1.0,
            min_effect=1.0,
        ),
    )
    return PaperClaims(
        paper="medthink",
        title="MedThink" + text,
        arxiv="2404.12372",
        arms={name: Arm(name, name) for name in LEVELS},
        claims=claims,
        headline="correct",
        condition="image",
        default_arm="explanation",
    )


def fake_results(
    out: Path,
    *,
    preset: str = "quick",
    ended_seeds: int | None = None,
    text: str = "",
    n_items: int = 400,
) -> Document:
    """Write fake jobs under `out` and return the document of `<out>/reproduce/medthink-<preset>/results.json`.

    Args:
        out: output folder.
        preset: size preset; says how many seeds are planned.
        ended_seeds: how many of them have ended; None means all.
        text: put into every text field, for example a script tag.
        n_items: test items a seed.
    """
    claims = fake_claims(text)
    planned = SEEDS[preset]
    keys, folders = {}, {}
    for arm, accuracy in LEVELS.items():
        for seed in range(planned):
            keys["medthink", arm, seed] = f"{arm}{seed}".encode().hex().ljust(20, "0")[-20:]
            if seed < (planned if ended_seeds is None else ended_seeds):
                key = keys["medthink", arm, seed]
                options = {"accuracy": accuracy, "preset": preset, "text": text, "n_items": n_items}
                folders[key] = write_job(out, arm, seed, key=key, **options)
    paper = Paper("medthink", "medthink", claims)
    plan = Plan(preset, tuple((paper, claim) for claim in claims.claims), {}, keys)
    folder = out / "reproduce" / f"medthink-{preset}"
    folder.mkdir(parents=True, exist_ok=True)
    return results.build(plan, Finished(folders), started="2026-11-22T14:00:00Z", wall_s=412.0, folder=folder, root=out)


def failed_job(text: str = "") -> ErrorEntry:
    """What a job that ran out of memory leaves."""
    error = WorkError("The job folder is jobs/abc", f"The job stopped with MemoryError{text}", "Read its log")
    return ErrorEntry("medthink", "filler", 3, "abc", str(error))
