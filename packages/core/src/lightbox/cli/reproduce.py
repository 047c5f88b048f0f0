"""`lightbox reproduce`, `report`, `explain`: run claims, write their page again, say what one of them is. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lightbox.claims import jobs, published, registry, replays, runner
from lightbox.claims.budget import load_pilot
from lightbox.claims.document import Document, load
from lightbox.claims.jobs import Plan
from lightbox.claims.registry import Paper
from lightbox.claims.replays import read_replays
from lightbox.claims.runner import Finished
from lightbox.claims.verdicts import PRESETS_WITHOUT_VERDICT
from lightbox.cli import claim_tables, job_origin, replay_log
from lightbox.cli.session import PAGE, Session, write_document
from lightbox.errors import RequestError, WorkError
from lightbox.paths import default_out, repo_root, results_dir
from lightbox.runs.folders import RECORD, open_output

OVERVIEW = "published"
"""Folder of the page over all that is published, under the output folder's `reproduce/`."""

Papers = Annotated[list[str] | None, typer.Argument(metavar="[PAPER ...]", help="Papers by name; left out, all.")]
Out = Annotated[Path | None, typer.Option(help="Output folder; left out, ./lightbox-out.")]


def reproduce(
    papers: Papers = None,
    preset: Annotated[str, typer.Option(help="Size: smoke, quick, full, or real for real images.")] = "quick",
    claims: Annotated[
        list[str] | None, typer.Option(help="Claims by id, for example T1,P3; may be given again; left out, all.")
    ] = None,
    out: Out = None,
    engine: Annotated[str, typer.Option(help="Where jobs run: local, or ray with --address.")] = "local",
    address: Annotated[str, typer.Option(help="HOST:PORT of the head of a running Ray cluster.")] = "",
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Keep finished jobs, or recompute beside them.")
    ] = True,
    reuse: Annotated[str, typer.Option(help='"results" takes committed jobs instead of running them.')] = "",
    workers: Annotated[
        int | None, typer.Option(help="Jobs at once, one thread each; left out, 2, or every CPU of a cluster.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show jobs, minutes, memory and widths; run none.")
    ] = False,
    publish: Annotated[bool, typer.Option("--publish", help="Copy scores and rows to results/ at the end.")] = False,
    log: Annotated[
        bool, typer.Option("--log", help="Add a row a claim to the replay log, results/replays.csv, at the end.")
    ] = False,
    by: Annotated[str, typer.Option(help="With --log: who runs it; left out, git's user.name.")] = "",
) -> None:
    """Run the claims of papers and decide them; writes results.json, report.html and an MLflow index."""
    if reuse not in ("", "results"):
        raise RequestError(f"--reuse is '{reuse}'", "Only committed results can be reused", "Give --reuse results")
    if by and not log:
        raise RequestError(f"--by is '{by}'", "It names who stands in the replay log", "Give --log beside it")
    runner.check_engine(engine, address)
    if log:
        replay_log.check_request(preset, reuse=bool(reuse), dry_run=dry_run, publish=publish)
    plan = make_plan(papers or (), preset=preset, claim_ids=split_ids(",".join(claims or ())))
    run_plan(
        plan,
        out or default_out(),
        root=results_dir(),
        engine=engine,
        address=address,
        fresh=not resume,
        reuse=bool(reuse),
        workers=workers,
        dry_run=dry_run,
        publish=publish,
        log_by=replay_log.name_of_runner(by, results_dir()) if log else "",
    )


def report(
    papers: Papers = None,
    source: Annotated[
        str,
        typer.Option("--from", help='"results" (committed), a folder of an earlier `reproduce`, or of one run.'),
    ] = "results",
    preset: Annotated[str, typer.Option(help="Only this preset; left out, a page over all, and one for each.")] = "",
    out: Out = None,
    readmes: Annotated[
        bool, typer.Option("--readmes", help="Write no page; bring the generated blocks of every README up to date.")
    ] = False,
) -> None:
    """Write the page again, at once: from committed results, every interval recomputed, or of an earlier run.

    From committed results, one page over all papers and sizes says what each claim came to, and the others show why.

    Of one training or evaluation, the page shows its score beside what needs no image, its data, and items to look at.
    """
    console = claim_tables.plain_console()
    if readmes:
        from lightbox.report.readme import write_blocks

        paths = write_blocks(repo_root())
    elif source == "results":
        paths = report_published(registry.load_papers(papers or ()), results_dir(), out or default_out(), preset=preset)
    else:
        paths = report_folder(Path(source))
    for path in paths:
        console.print(str(path))


def explain(
    claim_id: Annotated[str, typer.Argument(metavar="[CLAIM]", help="For example T1.")] = "",
    job: Annotated[str, typer.Option(metavar="KEY", help="In place of a claim: a job's key, or how it begins.")] = "",
    out: Out = None,
) -> None:
    """Show a claim on one screen, verdict included; or what a job was made from, and what of it differs today."""
    console = claim_tables.plain_console()
    root = results_dir()
    if bool(claim_id) == bool(job):
        given = f"CLAIM is '{claim_id}' and --job is '{job}'"
        raise RequestError(given, "One thing is explained at a time", "Give a claim, such as T1, or --job KEY")
    if job:
        for line in job_origin.explanation(job, out or default_out(), root):
            console.print(line)
        return
    for paper, claim in registry.choose_claims(registry.load_papers(), [claim_id]):
        entries = [
            (preset, entry)
            for preset in claim.presets
            if (entry := published.committed_claims(root, [paper.name], preset).get((paper.name, claim.id)))
        ]
        for line in claim_tables.explanation(paper, claim, entries):
            console.print(line)


def split_ids(text: str) -> list[str]:
    """Claim ids of a comma-separated list; empty parts do not count."""
    return [part.strip() for part in text.split(",") if part.strip()]


def make_plan(
    papers: Sequence[str], *, preset: str, claim_ids: Sequence[str] = (), packages: Mapping[str, str] | None = None
) -> Plan:
    """Plan a `reproduce`.

    Args:
        papers: names; none means all.
        preset: size preset.
        claim_ids: none means all of those papers.
        packages: package by paper name, in place of the installed papers.

    Raises:
        RequestError: for an unknown paper, claim or preset, listing the known ones, or where no claim runs.
    """
    loaded = registry.load_papers(papers, packages=packages)
    registry.check_preset(preset, registry.choose_claims(loaded))
    plan = jobs.plan(registry.choose_claims(loaded, claim_ids), preset)
    if not plan.claims:
        runs = "; ".join(f"{claim.id} at {', '.join(claim.presets)}" for claim in plan.skipped)
        request = f"--preset {preset} with --claims {','.join(claim_ids)}"
        raise RequestError(request, f"None of them runs there: {runs}", "Choose a preset from those")
    return plan


def run_plan(
    plan: Plan,
    out: Path,
    *,
    root: Path,
    engine: str = "local",
    address: str = "",
    fresh: bool = False,
    reuse: bool = False,
    workers: int | None = None,
    dry_run: bool = False,
    publish: bool = False,
    log_by: str = "",
    console: Console | None = None,
) -> Document | None:
    """Run a plan and write its results and page; the results, None for a dry run.

    Args:
        plan: from `make_plan`.
        out: output folder.
        root: folder of committed results.
        engine, address, fresh, workers: see `runner.run`.
        reuse: take committed jobs of `root` as finished.
        dry_run: print the cost and run nothing.
        publish: copy the finished run to `root`.
        log_by: who stands in the replay log for the finished run; "" adds it to no log.
        console: None prints to standard output.

    Raises:
        RequestError: see `runner.run`, `folders.open_output`, `published.publish`.
        WorkError: where jobs failed, after everything else has been written.
    """
    console = console or claim_tables.plain_console()
    names = list(dict.fromkeys(paper.name for paper, _ in plan.claims))
    runner.check_engine(engine, address)
    for paper in {paper.name: paper for paper, _ in plan.claims}.values():
        load_pilot(root, paper.claims)  # a damaged one is refused before the run and not at its end
    for claim in plan.skipped:
        console.print(f"{claim.paper} {claim.id} does not run at {plan.preset}; it runs at {', '.join(claim.presets)}")
    committed = published.committed_scores(root, names, plan.preset) if reuse else None
    if dry_run:
        waiting = runner.jobs_to_run(plan, runner.find_finished(plan, out, fresh=fresh, committed=committed))
        earlier = published.committed_claims(root, names, plan.preset)
        at_once = runner.LOCAL_WORKERS if workers is None else workers
        claim_tables.show_plan(console, plan, waiting, workers=at_once, published=earlier, root=root)
        return None
    with open_output(out):
        finished = runner.find_finished(plan, out, fresh=fresh, committed=committed)
        total = len(runner.jobs_to_run(plan, finished))
        with Session(plan, out, root=root, console=console, total=total) as session:
            runner.run(
                plan,
                out,
                finished,
                workers=workers,
                engine=engine,
                address=address,
                fresh=fresh,
                on_started=session.open_index,
                on_job_done=session.job_done,
                on_progress=session.write,
            )
            session.index_rest(finished)
        document = session.write(finished)
    claim_tables.show_verdicts(console, document)
    console.print(str(session.folder / PAGE))
    if finished.errors:
        raise failure(plan, finished)
    if publish:
        for path in published.publish(document, plan, finished, root):
            console.print(f"published: {path}")
    if log_by:
        for line in replay_log.log_run(document, finished, root, by=log_by):
            console.print(line)
    elif not (publish or reuse or plan.preset in PRESETS_WITHOUT_VERDICT):
        console.print(f"To add this run to the replay log: {replay_log.command_to_log(plan, out)}")
    return document


def failure(plan: Plan, finished: Finished) -> WorkError:
    """One error for all jobs that failed: how many and which, and the first one's reason."""
    failed = [plan.jobs[key] for key in finished.errors]
    named = "; ".join(f"{job.paper} {job.arm}, seed {job.seed}" for job in failed[:5]) + ("; ..." * (len(failed) > 5))
    first = next(iter(finished.errors.values()))
    return WorkError(f"{len(failed)} of {len(plan.jobs)} jobs failed: {named}", f"{first.given} {first.why}", first.do)


def report_published(papers: Sequence[Paper], root: Path, out: Path, *, preset: str = "") -> list[Path]:
    """Recompute published results: a page over all of them, and one a preset with what is behind it. The pages' paths.

    Args:
        papers: whose results.
        root: folder of committed results.
        out: output folder.
        preset: only this one, and then no page over all; "" writes every page.

    Raises:
        RequestError: where nothing is published for these papers.
    """
    from lightbox.report.overview import PublishedSize, write_overview
    from lightbox.report.page import write_page

    log = read_replays(root / replays.FILE)  # a damaged one is refused before the minutes that follow
    folders = published.published_folders(root, papers, preset)
    if not folders:
        what = f"{', '.join(paper.name for paper in papers)}{f' at {preset}' if preset else ''}"
        why = f"{root} holds no {published.DOCUMENT} of them"
        raise RequestError(f"A report of {what}", why, "Run `lightbox reproduce ... --publish` first")
    pages, publications = [], []
    for name in sorted({folder.name for folder, _ in folders}):
        own = [(published.recompute(folder, paper), paper) for folder, paper in folders if folder.name == name]
        documents = [document for document, _ in own]
        pages.append(write_document(published.joined(documents), out / "reproduce" / f"published-{name}", write_page))
        for document, paper in own:
            publications.append(
                PublishedSize(
                    paper,
                    name,
                    document,
                    committed={
                        key[1]: claim for key, claim in published.committed_claims(root, [paper.name], name).items()
                    },
                    is_compared=not document.is_real or published.can_be_compared(paper, name),
                    page=f"../{pages[-1].parent.name}/{PAGE}",
                )
            )
    return pages if preset else [write_overview(out / "reproduce" / OVERVIEW / PAGE, papers, publications, log), *pages]


def report_folder(folder: Path) -> list[Path]:
    """Write the page of each results.json of an earlier run again: in the folder itself, or under its reproduce/.

    The folder of one training, evaluation or job has no such file; its own page is written into it.

    Raises:
        RequestError: where there is neither, it is of another schema, or the run has no answers to show.
    """
    from lightbox.report.page import write_page

    own = folder / published.DOCUMENT
    if not own.exists() and (folder / RECORD).is_file():
        from lightbox.report.run_page import write_run_page

        return [write_run_page(folder)]
    paths = [own] if own.exists() else sorted(folder.glob(f"reproduce/*/{published.DOCUMENT}"))
    if not paths:
        why = f"It holds no {published.DOCUMENT}, nor does a folder under its reproduce/, and no {RECORD} of a run"
        do = "Give the folder of an earlier `lightbox reproduce`, or of one finished run under its runs/"
        raise RequestError(f"--from is '{folder}'", why, do)
    return [write_document(load(path), path.parent, write_page) for path in paths]
