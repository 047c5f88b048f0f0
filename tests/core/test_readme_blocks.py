"""Blocks that a machine writes into Markdown: up to date, complete, plain about negative verdicts, and nothing else."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lightbox.claims.budget import Convergence
from lightbox.claims.document import BudgetCurve, BudgetPoint, to_json, write
from lightbox.claims.spec import Role, Verdict
from lightbox.cli import app as front
from lightbox.config import leaf_docs
from lightbox.errors import RequestError
from lightbox.report import readme
from lightbox.report.numbers import interval, signed
from lightbox.report.paper_map import locate, read_map
from lightbox.testing.fake_results import fake_results
from medthink.config import Config

ROOT = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?\d+(?:\.\d+)?(?![\w])")
BLOCK = "<!-- results: medthink/quick -->\n<!-- end results -->\n"


def recorded_numbers(value):
    """Every number of a document, those inside of texts too."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [number for part in inner for number in recorded_numbers(part)]
    return [float(found.replace("\u2212", "-")) for found in NUMBER.findall(str(value))]


def is_rounded_from(shown, recorded):
    """True where a recorded number rounds to the shown one at the shown precision."""
    text = shown.replace("\u2212", "-").lstrip("+")
    half = 0.5 * 10 ** -len(text.partition(".")[2]) + 1e-9
    return any(abs(float(text) - number) <= half for number in recorded)


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    return fake_results(tmp_path_factory.mktemp("out"), n_items=200)


@pytest.fixture
def checkout(tmp_path, document):
    """A checkout with published results and one document around a block."""

    def build(changed=document, text=f"# Title\n\nBefore.\n\n{BLOCK}\nAfter 99.9 points.\n"):
        place = tmp_path / "results" / "medthink" / "quick" / "results.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        write(changed, place)
        (tmp_path / "docs").mkdir(exist_ok=True)
        (tmp_path / "docs" / "page.md").write_text(text, encoding="utf-8")
        return tmp_path

    return build


def first_claim_changed(document, **changes):
    first, *others = document.claims
    return replace(document, claims=(replace(first, **changes), *others))


def table(root):
    """Cells of each row of the written table, header left out."""
    text = (root / "docs" / "page.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_prose_is_left_alone_and_a_second_writing_changes_nothing(checkout):
    root = checkout()
    assert readme.write_blocks(root) == [root / "docs" / "page.md"]
    text = (root / "docs" / "page.md").read_text(encoding="utf-8")
    assert text.startswith("# Title\n\nBefore.\n\n<!-- results: medthink/quick -->\n")
    assert text.endswith("<!-- end results -->\n\nAfter 99.9 points.\n")
    assert readme.write_blocks(root) == []


def test_table_says_everything_about_a_claim(checkout, document):
    root = checkout()
    readme.write_blocks(root)
    rows = table(root)
    assert [row[0] for row in rows] == ["T1 (primary)", "T2", "T6"]
    name, statement, paper, measured, least, size, budget, verdict = rows[0]
    claim = document.claims[0]
    assert (statement, paper) == (claim.statement, claim.paper_numbers)
    low, high = claim.ci95
    assert measured == f"{claim.effect:+.1f} [{low:.1f}, {high:.1f}] points".replace("-", "\u2212")
    assert (least, size, budget) == ("2 points", "5 × 200", "none")
    assert claim.verdict in verdict


def test_table_says_the_budget_the_plateau_and_where_a_sign_turns(checkout, document):
    def budget_cell(**changes):
        root = checkout(first_claim_changed(document, budget="optim.max_steps", **changes))
        readme.write_blocks(root)
        return table(root)[0][6]

    judged = Convergence("optim.max_steps", 300, 1200, reason="it moves")
    points = tuple(BudgetPoint(b, mean, None, 3) for b, mean in ((300, -5.0), (600, -1.0), (1200, 8.0)))
    curves = (BudgetCurve("link", "primary", True, points),)
    turned = "300 steps, not on the plateau; 'link' turns its sign between 600 and 1200 steps, in the pilot"
    assert budget_cell(convergence=judged, by_budget=curves) == turned
    assert budget_cell(convergence=replace(judged, is_on_plateau=True)) == "300 steps, on the plateau"
    assert budget_cell() == "no pilot"


def test_origin_baselines_and_controls_stand_under_the_table_and_keys_do_not(checkout, document):
    root = checkout()
    readme.write_blocks(root)
    text = (root / "docs" / "page.md").read_text(encoding="utf-8")
    for said in ("Preset quick; run 2026-11-22; commit 0123456; on ", "never about patients", "would be expected"):
        assert said in text
    assert 'control "true rationale - filler" ' in text
    assert "baselines majority " in text
    assert "explanation [blank]" in text
    assert "none [blank]" not in text  # only the best arm's
    assert not [key for claim in document.claims for key in claim.run_ids if key[:8] in text]
    assert "[results.json](../results/medthink/quick/results.json)" in text


def test_every_number_of_a_table_is_recorded(checkout, document):
    root = checkout()
    readme.write_blocks(root)
    recorded = recorded_numbers(to_json(document))
    shown = [number for row in table(root) for cell in row for number in NUMBER.findall(cell)]
    assert len(shown) > 20
    assert [number for number in shown if not is_rounded_from(number, recorded)] == []
    assert not is_rounded_from("99.9", recorded)


@pytest.mark.parametrize(
    "verdict", ["absent", "contradicted", "control failed", "inconclusive", "not testable", "still learning"]
)
def test_negative_verdicts_are_shown_as_such(checkout, document, verdict):
    link, *others = document.claims[0].contrasts
    contrasts = (replace(link, effect=-4.26, ci95=(-6.1, -2.4)), *others)
    root = checkout(
        first_claim_changed(document, verdict=Verdict(verdict), effect=-4.26, contrasts=contrasts, reason="it is so")
    )
    readme.write_blocks(root)
    row = table(root)[0]
    assert f"**{verdict}**" in row[7]
    assert row[3] == "\u22124.3 [\u22126.1, \u22122.4] points"
    assert "T1: it is so; primary " in (root / "docs" / "page.md").read_text(encoding="utf-8")


def test_every_link_of_a_chain_stands_in_the_table_with_its_state(checkout, document):
    root = checkout()
    readme.write_blocks(root)
    chain = document.claims[1]
    assert len(chain.links) == 2
    said = [
        f"{link.name}: {signed(link.effect, 1)} {interval(link.ci95, 1)} points, {link.state}" for link in chain.links
    ]
    assert table(root)[1][3] == "; ".join(said)


def test_caveats_stand_beside_the_verdict(checkout, document):
    root = checkout(first_claim_changed(document, caveats=("True by construction.", "At one budget.")))
    readme.write_blocks(root)
    text = (root / "docs" / "page.md").read_text(encoding="utf-8")
    assert f"- T1: caveat: True by construction; caveat: At one budget; {document.claims[0].reason}" in text


def test_a_score_that_is_shown_by_itself_is_told_with_its_interval(checkout, document):
    claim = document.claims[0]
    alone = replace(
        claim.contrasts[0], name="plane: accuracy", role=Role.SECONDARY, rival="", effect=56.81, ci95=(54.0, 59.7)
    )
    root = checkout(first_claim_changed(document, contrasts=(*claim.contrasts, alone)))
    readme.write_blocks(root)
    assert "plane: accuracy 56.8 [54.0, 59.7] points" in (root / "docs" / "page.md").read_text(encoding="utf-8")


def test_several_machines_are_named_with_what_that_means(checkout, document):
    first, *others = document.jobs
    root = checkout(
        replace(document, jobs=(replace(first, hardware="Xeon"), *(replace(j, hardware="EPYC") for j in others)))
    )
    readme.write_blocks(root)
    text = (root / "docs" / "page.md").read_text(encoding="utf-8")
    assert "on EPYC; Xeon;" in text
    assert "another processor gives other bits" in text


def test_a_commit_with_changes_is_told_and_each_stands_once(checkout, document):
    commits = ["a1b2c3d4e5f6", "a1b2c3d4e5f6-dirty"] * len(document.jobs)
    jobs = [replace(job, commit=commit) for job, commit in zip(document.jobs, commits, strict=False)]
    root = checkout(replace(document, jobs=tuple(jobs)))
    readme.write_blocks(root)
    text = (root / "docs" / "page.md").read_text(encoding="utf-8")
    assert "commit a1b2c3d, a1b2c3d with uncommitted changes; on" in text


def test_equivalence_names_the_interval_that_decides(checkout, document):
    root = checkout()
    readme.write_blocks(root)
    link = document.claims[2].links[0]
    assert table(root)[2][3] == f"{signed(link.effect, 1)} {interval(link.ci90, 1)} at 90 % BLEU"
    line = next(x for x in (root / "docs" / "page.md").read_text(encoding="utf-8").splitlines() if x.startswith("- T6"))
    assert "at 90 %" in line


def test_a_bar_in_a_text_does_not_end_its_cell(checkout, document):
    root = checkout(first_claim_changed(document, statement="p(a|b)"))
    readme.write_blocks(root)
    assert table(root)[0][1] == r"p(a\|b)"


def test_block_that_is_not_closed_is_refused_and_nothing_written(checkout):
    text = f"{BLOCK}\n<!-- results: medthink/quick -->\nprose\n"
    root = checkout(text=text)
    with pytest.raises(RequestError, match="would swallow the prose"):
        readme.write_blocks(root)
    assert (root / "docs" / "page.md").read_text(encoding="utf-8") == text


def test_block_without_a_recorded_run_is_refused(checkout):
    root = checkout(text=BLOCK.replace("quick", "full"))
    with pytest.raises(RequestError, match=r"full.results\.json"):
        readme.write_blocks(root)


def test_hidden_and_built_folders_are_not_searched(checkout):
    root = checkout()
    for folder in (".venv", "lightbox-out"):
        (root / folder).mkdir()
        (root / folder / "page.md").write_text(BLOCK, encoding="utf-8")
    assert readme.write_blocks(root) == [root / "docs" / "page.md"]


def test_config_table_has_every_leaf_with_its_default(checkout):
    root = checkout(text="<!-- config: medthink -->\n<!-- end config -->\n")
    readme.write_blocks(root)
    rows = {key.strip("`"): (default, doc) for key, default, doc in table(root)}
    assert set(rows) == set(leaf_docs(Config))
    assert rows["model.gate_bias"][0] == "0.0"
    assert rows["data.n_train"][0] == "required"
    assert rows["run.out"][0] == "empty"
    assert all(len(doc) > 14 for _, doc in rows.values())


def test_map_links_each_item_to_the_line_that_defines_it(checkout):
    root = checkout(text="<!-- map: toy -->\n<!-- end map -->\n")
    source = root / "projects" / "toy" / "src" / "toy"
    source.mkdir(parents=True)
    (source / "model.py").write_text("LIMIT: int = 3\n\nclass Net:\n    def forward(self):\n        pass\n")
    declared = "PAPER_MAP = (('p(a|b)', 'toy.model.Net.forward'), ('limit', 'toy.model.LIMIT'))\n"
    (root / "projects" / "toy" / "walkthrough.py").write_text(declared)
    readme.write_blocks(root)
    assert table(root) == [
        [r"p(a\|b)", "`toy.model.Net.forward`", "[model.py:4](../projects/toy/src/toy/model.py#L4)"],
        ["limit", "`toy.model.LIMIT`", "[model.py:1](../projects/toy/src/toy/model.py#L1)"],
    ]


@pytest.mark.parametrize("name", ["medthink.model.Fusion.backward", "medthink.nowhere.f", "nobody.model.f"])
def test_name_that_nothing_defines_is_refused(name):
    with pytest.raises(RequestError, match="No source file"):
        locate(ROOT, name)


def test_project_without_a_map_is_refused(tmp_path):
    with pytest.raises(RequestError, match="There is no"):
        read_map(tmp_path, "toy")
    (tmp_path / "projects" / "toy").mkdir(parents=True)
    (tmp_path / "projects" / "toy" / "walkthrough.py").write_text("OTHER = ()\n")
    with pytest.raises(RequestError, match="binds no PAPER_MAP"):
        read_map(tmp_path, "toy")


def test_report_command_writes_the_blocks_when_asked(checkout, monkeypatch, capsys):
    root = checkout()
    (root / "shared_data").mkdir()
    monkeypatch.setenv("LIGHTBOX_HOME", str(root))
    with pytest.raises(SystemExit) as stopped:
        front.main(["report", "--readmes"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.split() == [str(root / "docs" / "page.md")]
    assert table(root)


def test_a_claim_stands_once_for_each_preset_with_a_link_to_its_runs(checkout, document):
    root = checkout(text="<!-- claim: medthink/T1 -->\n<!-- end claim -->\n")
    full = root / "results" / "medthink" / "full" / "results.json"
    full.parent.mkdir()
    changed = first_claim_changed(document, verdict=Verdict.CONTRADICTED)
    write(replace(changed, preset="full"), full)
    readme.write_blocks(root)
    quick_row, full_row = table(root)
    first = document.claims[0]
    assert (quick_row[0], full_row[0]) == ("quick", "full")  # as sizes grow, not by name
    assert quick_row[2] == f"{len(first.seeds)} × {first.items}"
    assert str(first.verdict) in quick_row[4]
    assert "contradicted" in full_row[4]
    assert f"[{len(first.run_ids)} runs](../results/medthink/full/results.json)" == full_row[5]


def test_a_claim_that_nobody_has_published_is_refused(checkout):
    root = checkout(text="<!-- claim: medthink/T9 -->\n<!-- end claim -->\n")
    with pytest.raises(RequestError, match="'claim: medthink/T9'.*Name a published claim as PAPER/ID"):
        readme.write_blocks(root)


def test_cost_is_that_of_each_job_once_on_the_machine_that_ran_it(checkout, document):
    root = checkout(text="<!-- cost: runs -->\n<!-- end cost -->\n")
    readme.write_blocks(root)
    assert table(root)[0][5] == "–"  # nobody had measured it
    measured = replace(document, jobs=tuple(replace(job, peak_gib=1.0 + 0.1 * job.seed) for job in document.jobs))
    write(measured, root / "results" / "medthink" / "quick" / "results.json")
    readme.write_blocks(root)
    [[paper, preset, jobs, minutes, halved, peak, hardware]] = table(root)
    own = {job.key: job for job in measured.jobs}
    assert (paper, preset, int(jobs)) == ("medthink", "quick", len(own))
    total = sum(job.wall_s for job in own.values()) / 60
    assert (minutes, halved) == (f"{total:.0f}", f"{total / 2:.0f}")
    assert peak == f"{max(job.peak_gib for job in own.values()):.1f}"
    assert hardware == "; ".join(sorted({job.hardware for job in own.values() if job.hardware}))
    with pytest.raises(RequestError, match="'cost: disk'.*Name it runs"):
        readme.cost_lines("disk", root=root, folder=root)
