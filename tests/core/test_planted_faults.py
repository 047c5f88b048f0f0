"""Faults planted into results, finished jobs and what jobs read: each is refused by name or run again, none is silent.

The feature cache's are in `medthink/test_evaluate.py`, beside the tower that fills it.
"""

import csv
import json
import shutil
import sys

import pyarrow.parquet as pq
import pytest

from lightbox.claims import document, published, results, runner
from lightbox.claims.jobs import arm_job, plan, seeds_of
from lightbox.claims.registry import choose_claims, load_papers
from lightbox.claims.spec import PHANTOM
from lightbox.errors import RequestError, WorkError
from lightbox.files import file_sha256
from lightbox.paths import shared_data
from lightbox.phantom.version import DATA_FILES
from lightbox.runs.finished import finished_folder
from lightbox.runs.folders import read_scores
from lightbox.testing.inline_pool import InlinePool
from lightbox.testing.toy_paper import forget_toy_paper, write_toy_paper


def planned():
    return plan(choose_claims(load_papers(packages={"toy": "toy"})), "quick")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished quick run of the toy and its publication: folder with `src`, `out` and `results`."""
    folder = tmp_path_factory.mktemp("made")
    write_toy_paper(folder / "src")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "Pool", InlinePool)
        todo = planned()
        finished = runner.run(todo, folder / "out", runner.find_finished(todo, folder / "out"))
    places = {"folder": folder / "out", "root": folder / "results"}
    new = results.build(todo, finished, started="2026-01-01T00:00:00Z", wall_s=1.0, **places)
    published.publish(new, todo, finished, folder / "results")
    forget_toy_paper(folder / "src")
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of it that a test may damage, with the toy importable."""
    shutil.copytree(made, tmp_path / "place")
    sys.path.insert(0, str(tmp_path / "place" / "src"))
    monkeypatch.setattr(runner, "Pool", InlinePool)
    yield tmp_path / "place"
    forget_toy_paper(tmp_path / "place" / "src")


# -- published scores ------------------------------------------------------------------------------------------------


class Publication:
    """`results/toy/quick`, with the handles that a fault needs."""

    def __init__(self, place):
        self.folder, self.rows = place / "results" / "toy" / "quick", place / "results" / "runs.csv"
        self.keys = planned().keys

    def scores(self, arm, seed=0):
        return self.folder / f"{self.keys['toy', arm, seed]}.parquet"

    def swap_arms(self):
        for seed in range(5):
            one, other = self.scores("none", seed), self.scores("true", seed)
            content = one.read_bytes()
            one.write_bytes(other.read_bytes())
            other.write_bytes(content)

    def copy_seed(self):
        shutil.copy(self.scores("true", 1), self.scores("true", 3))

    def drop_items(self, *, rewrite=lambda table: table):
        path = self.scores("true", 2)
        table = pq.read_table(path)
        pq.write_table(rewrite(table.slice(0, 120)), path)

    def flip_bit(self):
        path = self.scores("filler", 4)
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 1
        path.write_bytes(content)

    def cut(self):
        path = self.scores("filler", 4)
        path.write_bytes(path.read_bytes()[:-100])

    def remove(self):
        self.scores("none", 0).unlink()

    def edit_rows(self, change):
        """Write `runs.csv` again with `change` applied to its list of rows."""
        with self.rows.open() as file:
            rows = list(csv.DictReader(file))
        with self.rows.open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0], lineterminator="\n")
            table.writeheader()
            table.writerows(change(rows))

    def accept_digests(self):
        """Make `runs.csv` name the files as they are now, as somebody would who trusts them."""
        self.edit_rows(lambda rows: [row | {"scores_sha256": file_sha256(self.file_of(row))} for row in rows])

    def file_of(self, row):
        return self.folder / f"{row['key']}.parquet"

    def edit_document(self, change, *, seals=True):
        """Change `results.json`; a sealed one has a right digest again."""
        path = self.folder / "results.json"
        content = json.loads(path.read_text())
        seal = content.pop("sha256")
        change(content)
        path.write_text(json.dumps(content | {"sha256": document.digest(content) if seals else seal}))


def swap_jobs(content):
    """The arms of two jobs exchange their names."""
    other = {"none": "true", "true": "none"}
    for job in content["jobs"]:
        job["arm"] = other.get(job["arm"], job["arm"])


FAULTS = {
    "arms swapped": (lambda p: p.swap_arms(), "begins .* and .*runs.csv names .* exchanged"),
    "arms swapped, digests accepted": (lambda p: (p.swap_arms(), p.accept_digests()), "of itself: arm '(true|none)"),
    "seed copied": (lambda p: p.copy_seed(), "arm 'true', seed 3 are .* SHA-256"),
    "seed copied, digests accepted": (lambda p: (p.copy_seed(), p.accept_digests()), "arm 'true', seed 1, key"),
    "items missing": (lambda p: p.drop_items(), "SHA-256"),
    "items missing, digests accepted": (lambda p: (p.drop_items(), p.accept_digests()), "400 rows, and it holds 120"),
    "bit flipped": (lambda p: p.flip_bit(), "arm 'filler', seed 4 are .*(SHA-256|cannot be read)"),
    "file cut": (lambda p: p.cut(), "arm 'filler', seed 4 are .*cannot be read"),
    "file gone": (lambda p: p.remove(), "arm 'none', seed 0 are .*cannot be read.*No such file"),
    "rows cut": (lambda p: p.edit_rows(lambda rows: rows[:-3]), r"runs\.csv has no row of arm"),
    "row of another seed": (lambda p: p.edit_rows(lambda rows: [r | {"seed": "0"} for r in rows]), "has no row of arm"),
    "rows without a head": (lambda p: p.rows.write_text(p.rows.read_text().partition("\n")[2]), "first line does not"),
    "document's arms swapped": (lambda p: p.edit_document(swap_jobs), r"runs\.csv has no row of arm"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_published_scores_with_a_fault_are_refused_by_name(place, fault):
    plant, message = FAULTS[fault]
    publication = Publication(place)
    plant(publication)
    paper = load_papers(packages={"toy": "toy"})[0]
    with pytest.raises(WorkError, match=message) as refusal:
        published.recompute(publication.folder, paper)
    assert str(place / "results") in str(refusal.value)
    if fault != "file gone":  # where a file is gone there is nothing to reuse, and the job runs
        with pytest.raises(WorkError, match=message):
            published.committed_scores(place / "results", ["toy"], "quick")


def test_reading_a_run_s_scores_asks_its_record(place):
    folder = place / "out" / "jobs" / planned().keys["toy", "true", 0]
    assert read_scores(folder).num_rows == 400
    flip(folder)
    with pytest.raises(WorkError, match=r"scores\.parquet cannot be read\. It does not match the digest in job\.json"):
        read_scores(folder)


def test_document_that_was_edited_is_refused(place):
    publication = Publication(place)
    publication.edit_document(lambda content: content["claims"][0].update(effect=5.76), seals=False)
    with pytest.raises(RequestError, match=r"results\.json\. It does not match the digest at its end"):
        document.load(publication.folder / "results.json")


def test_publication_without_a_fault_is_read_and_reused(place):
    publication = Publication(place)
    claims = published.recompute(publication.folder, load_papers(packages={"toy": "toy"})[0]).claims
    assert [claim.verdict for claim in claims] == ["reproduced", "reproduced"]
    assert len(published.committed_scores(place / "results", ["toy"], "quick")) == 25


def test_scores_from_before_labels_are_read_by_their_row(place):
    publication = Publication(place)
    for path in publication.folder.glob("*.parquet"):
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    publication.accept_digests()
    paper = load_papers(packages={"toy": "toy"})[0]
    assert published.recompute(publication.folder, paper).claims[0].verdict == "reproduced"
    publication.copy_seed()
    with pytest.raises(WorkError, match="SHA-256"):
        published.recompute(publication.folder, paper)
    publication.accept_digests()  # nothing but the content tells now
    with pytest.raises(WorkError, match=r"arm 'true' are .* for seed 1, .* for 3\. They hold the same scores"):
        published.recompute(publication.folder, paper)


# -- finished jobs ---------------------------------------------------------------------------------------------------


def rename(folder, **changes):
    """Change what `job.json` says of itself."""
    path = folder / "job.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def take(folder, other):
    """Put another job's folder in the place of one."""
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def take_scores(folder, other):
    """Put another job's scores into a folder, with the digest that goes with them."""
    shutil.copy(other / "scores.parquet", folder / "scores.parquet")
    rename(folder, files={"scores.parquet": file_sha256(folder / "scores.parquet")})


def flip(folder):
    path = folder / "scores.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def halve(folder):
    table = pq.read_table(folder / "scores.parquet")
    pq.write_table(table.slice(0, table.num_rows // 2), folder / "scores.parquet")
    rename(folder, files={"scores.parquet": file_sha256(folder / "scores.parquet")})


def other_level(folder):
    config = json.loads((folder / "job.json").read_text())["config"]
    rename(folder, config=config | {"level": 0.9})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "warning"),
    [
        (take, "its job.json is that of another run, arm 'none', seed 3"),
        (
            lambda own, other: (take(own, other), rename(own, key=own.name)),
            "its job.json is that of another run, arm 'none'",
        ),
        (take_scores, "scores.parquet is that of another run, arm 'none', seed 3"),
        (lambda own, _: other_level(own), "its job.json is that of another run"),
        (lambda own, _: flip(own), "scores.parquet does not match its digest"),
        (lambda own, _: halve(own), "scores.parquet is that of another run"),
        (lambda own, _: (own / "scores.parquet").unlink(), "it is damaged, FileNotFoundError"),
        (lambda own, _: rename(own, modules=None), "its job.json is that of another run"),
        (lambda own, _: rename(own, config=None), "it is damaged, AttributeError"),
    ],
)
def test_finished_job_with_a_fault_is_run_anew_beside_it(place, caplog, plant, warning):
    todo, out = planned(), place / "out"
    own, other = (out / "jobs" / todo.keys["toy", arm, seed] for arm, seed in (("filler", 1), ("none", 3)))
    sound = (own / "scores.parquet").read_bytes()
    plant(own, other)
    damaged = {path.name: path.read_bytes() for path in own.iterdir() if path.is_file()}
    assert finished_folder(out, own.name) is None
    assert f"{own} counts as unfinished: {warning}" in caplog.text
    finished = runner.run(todo, out, runner.find_finished(todo, out))
    assert finished.folders[own.name].name == f"{own.name}-2"
    assert (finished.folders[own.name] / "scores.parquet").read_bytes() == sound
    assert {path.name: path.read_bytes() for path in own.iterdir() if path.is_file()} == damaged
    assert [path.name for path in (out / "jobs").iterdir() if path.name.endswith("-2")] == [f"{own.name}-2"]


# -- what jobs read --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("world.py", "return cfg.level", "return cfg.level * 1.0"),
        ("evaluate.py", '("blank", 0.4)', '("blank", 0.3)'),
        ("start.bin", "weights", "weightz"),
        ("config.py", 'GENERATOR = "1"', 'GENERATOR = "2"'),  # where a paper names its splits and balance
    ],
)
def test_jobs_run_again_after_a_change_of_what_they_read_and_the_publication_is_marked(place, file, old, new):
    before = planned()
    path = place / "src" / "toy" / file
    path.write_text(path.read_text().replace(old, new))
    forget_toy_paper(place / "src")
    sys.path.insert(0, str(place / "src"))
    after = planned()
    trained = {pair for pair in before.keys if pair[1] != "majority"}
    assert {pair for pair in before.keys if before.keys[pair] != after.keys[pair]} >= trained
    waiting = {job.key for job in runner.jobs_to_run(after, runner.find_finished(after, place / "out"))}
    assert waiting >= {after.keys[pair] for pair in trained}
    claims = published.recompute(place / "results" / "toy" / "quick", load_papers(packages={"toy": "toy"})[0]).claims
    assert all(claim.older_source for claim in claims)


@pytest.mark.parametrize("name", DATA_FILES)
def test_other_splits_or_balance_are_other_jobs(monkeypatch, tmp_path, name):
    """Of a paper on phantoms: MedThink."""
    paper = load_papers(["medthink"])[0]
    before = arm_job(paper, "none", preset="smoke", seed=0).key
    shutil.copytree(shared_data() / "phantom", tmp_path / "phantom")
    monkeypatch.setattr("lightbox.phantom.version.shared_data", lambda: tmp_path)
    assert arm_job(paper, "none", preset="smoke", seed=0).key == before
    path = tmp_path / "phantom" / name
    path.write_text(path.read_text().replace("1", "2", 1))
    assert arm_job(paper, "none", preset="smoke", seed=0).key != before


@pytest.mark.parametrize("name", ["ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR"])
def test_switch_of_the_environment_that_changes_bits_changes_every_key(place, monkeypatch, name):
    before = planned()
    monkeypatch.setenv(name, "2")
    after = planned()
    assert not set(before.jobs) & set(after.jobs)
    assert {job.inputs[name] for job in after.jobs.values()} == {"2"}


def test_switch_at_its_own_default_is_no_other_job(place, monkeypatch):
    before = planned()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    assert planned().jobs.keys() == before.jobs.keys()


def test_full_shares_no_seed_with_quick_nor_either_with_development():
    for paper in load_papers():
        for claim in paper.claims.claims:
            seeds = {preset: set(seeds_of(claim, preset)) for preset in claim.presets}
            assert max(set.union(*seeds.values())) < 900
            if claim.images == PHANTOM:
                assert not seeds["full"] & (seeds.get("quick", set()) | seeds.get("smoke", set()))
            else:  # its images are the same for all seeds
                assert set(seeds) == {"real"}
