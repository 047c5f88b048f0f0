import re
from dataclasses import replace

import pytest

from lightbox.claims.budget import Convergence
from lightbox.claims.document import BudgetCurve, BudgetPoint
from lightbox.claims.registry import Paper
from lightbox.claims.replays import Machine, replay_of
from lightbox.claims.spec import REAL, Verdict
from lightbox.report import numbers
from lightbox.report.overview import PublishedSize, part_of, phantom_presets, render_overview
from lightbox.testing.fake_results import fake_claims, fake_results
from lightbox.testing.web_page import PAYLOAD, Page


def with_real(claims):
    """The claims, with one on real images that is published and one that is not."""
    shared = {"images": REAL, "presets": ("real",), "seeds": {"real": 5}, "is_primary": False}
    real = [replace(claims.claims[0], id=name, statement=f"Real statement {name}", **shared) for name in ("R1", "R2")]
    never = replace(claims.claims[0], id="T9", statement="Nobody ran this", is_primary=False)
    return replace(claims, claims=(*claims.claims, never, *real))


def judged(entry, budget, *, plateau=1000):
    """An entry with the curves of a pilot."""
    points = tuple(BudgetPoint(b, b / 500, (b / 500 - 1, b / 500 + 1), 3) for b in (250, 500, 1000, 2000))
    curves = tuple(
        BudgetCurve(name, role, is_pilot=True, points=points)
        for name, role in (("gain", "primary"), ("explanation", "arm"))
    )
    at = Convergence(
        "optim.max_steps", budget, plateau, is_on_plateau=budget == plateau, reason="it moves" * (budget != plateau)
    )
    return replace(entry, budget="optim.max_steps", convergence=at, by_budget=curves)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A paper whose claims are published at quick and full, the first one with a pilot, and one on real images."""
    paper = Paper("medthink", "medthink", with_real(fake_claims()))
    quick = fake_results(tmp_path_factory.mktemp("run"), n_items=60)
    first, *rest = quick.claims
    quick = replace(quick, claims=(judged(first, 500), *rest))
    older = replace(judged(first, 1000), older_source=("abc123",))
    full = replace(quick, preset="full", claims=(older, rest[0]))
    real = replace(first, id="R1", statement="Real statement R1", images=REAL, verdict=Verdict.CONTRADICTED)
    return [
        PublishedSize(
            paper, "quick", quick, committed={c.id: c for c in quick.claims}, page="../published-quick/report.html"
        ),
        PublishedSize(paper, "full", full),
        PublishedSize(paper, "real", replace(quick, preset="real", claims=(real,)), is_compared=False),
    ]


@pytest.fixture(scope="module")
def page(published):
    return Page(render_overview([published[0].paper], published, []))


def cells_of(page, row):
    """Visible text of each cell of a claim's row."""
    found = re.search(rf'<tr id="medthink-{row}">(.*?)</tr>', page.html, re.DOTALL)
    return [Page(cell).text for cell in re.split(r"(?=<td )", found[1])[1:]]


def test_the_page_is_one_file_without_scripts_that_asks_for_nothing(page):
    assert page.is_balanced
    assert page.open == []
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "form")]
    [policy] = [attrs["content"] for attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert all(image["src"].startswith("data:image/svg+xml") and image["alt"] for image in page.all("img"))
    anchors = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    inside = [attrs["href"][1:] for attrs in page.all("a") if attrs["href"].startswith("#")]
    assert inside
    assert set(inside) <= anchors


def test_a_claim_stands_with_the_papers_number_and_its_verdict_at_each_size(published, page):
    claim, paper_says, quick, full, _ = cells_of(page, "T1")
    entry = published[0].document.claims[0]
    assert claim.startswith("T1 directional primary Training to answer")
    assert paper_says == entry.paper_numbers
    assert "● reproduced" in quick
    assert f"{numbers.signed(entry.effect, 1)} points {numbers.interval(entry.ci95, 1)}" in quick
    assert "5 seeds × 60 items 500 steps, not on the plateau source, settings and data of today" in quick
    assert "5 seeds × 60 items 1000 steps, on the plateau older source, settings or data (commit abc123)" in full


def test_every_link_of_a_chain_stands_with_its_interval_and_state(published, page):
    quick = cells_of(page, "T2")[2]
    for link in published[0].document.claims[1].links:
        for said in (numbers.signed(link.effect, 1), numbers.interval(link.ci95, 1), f"{link.name}: {link.state}"):
            assert said in quick


def test_the_numbers_on_real_images_stand_beside_the_claims_on_phantoms(published, page):
    real = cells_of(page, "T1")[4]
    entry = published[2].document.claims[0]
    assert "R1 Real statement R1" in real
    assert "▼ contradicted" in real
    assert numbers.interval(entry.ci95, 1) in real
    assert f"Means: explanation {numbers.level(entry.arms['explanation'].mean)}, none" in real
    assert "not compared with the source of today, as the images are not on this machine" in real
    assert "R2 Real statement R2" in real
    assert real.count("not run") == 1
    assert [len(cells_of(page, row)) for row in ("T1", "T2", "T6", "T9")] == [5, 4, 4, 4]
    assert 'rowspan="4"' in page.html


def test_what_is_not_published_is_said(page):
    assert cells_of(page, "T9")[2:] == ["no published run", "no published run"]
    assert cells_of(page, "T6")[3] == "no published run"
    assert "3 of 4 claims on phantoms have a published run 1 of 2 on real images" in page.text


def test_a_claim_that_does_not_run_at_a_size_and_one_that_is_decided_no_more_are_told_apart(published):
    quick, full, _ = published
    claims = quick.paper.claims
    only_full = replace(claims.claims[1], presets=("smoke", "full"))
    paper = replace(quick.paper, claims=replace(claims, claims=(claims.claims[0], only_full)))
    none = replace(quick.document, claims=())
    said = [
        [cell.said for cell in part_of(paper, [one, full], [], ["quick", "full"]).rows[1].cells]
        for one in (replace(quick, document=none, committed={}), replace(quick, document=none))
    ]
    assert said[0] == ["does not run at quick", ""]
    assert said[1][0].endswith("it was ◐ inconclusive")
    gone = part_of(replace(paper, claims=replace(claims, claims=claims.claims[:1])), [quick], [], ["quick"]).gone
    assert [text.split(" (")[0] for text in gone] == ["T2 at quick", "T6 at quick"]


def test_a_claim_whose_published_seeds_are_not_those_of_today_is_not_said_to_run(published):
    quick = published[0]
    first = quick.document.claims[0]
    empty = replace(first, verdict=Verdict.NONE, contrasts=tuple(replace(c, per_seed=()) for c in first.contrasts))
    old = replace(quick, document=replace(quick.document, claims=(empty,)))
    [cell] = part_of(quick.paper, [old], [], ["quick"]).rows[0].cells
    assert cell.view is None
    assert cell.said.startswith("what is published holds 0 of 5 seeds of what is claimed today; ")


def test_sizes_that_one_pilot_speaks_for_share_a_figure_with_their_budgets_and_the_plateau(published, page):
    [panel] = part_of(published[0].paper, published, [], ["quick", "full"]).panels
    assert "gain 0.5 at 250, 1 at 500, 2 at 1000, 4 at 2000" in panel.alt
    assert panel.alt.endswith("Published: quick at 500, full at 1000. The plateau begins at 1000 steps.")
    assert panel.notes[0] == "quick: 500 steps, not on the plateau: it moves; the plateau begins at 1000."
    assert panel.notes[1] == "full: 1000 steps, on the plateau."
    assert page.html.count('class="panels"') == 1
    assert panel.source in page.html


def test_a_size_that_the_pilot_does_not_speak_for_is_not_marked(published):
    quick, full, _ = published
    first = full.document.claims[0]
    unspoken = replace(first, by_budget=(), convergence=Convergence("optim.max_steps", 1000, reason="no pilot: `it`."))
    full = replace(full, document=replace(full.document, claims=(unspoken,)))
    [panel] = part_of(quick.paper, [quick, full], [], ["quick", "full"]).panels
    assert "Published: quick at 500. " in panel.alt
    assert "full: 1000 steps, not on the plateau: no pilot: `it`." in panel.notes


def test_a_pilot_without_a_plateau_says_so(published):
    quick = published[0]
    entry = judged(quick.document.claims[0], 500, plateau=None)
    [panel] = part_of(
        quick.paper, [replace(quick, document=replace(quick.document, claims=(entry,)))], [], ["quick"]
    ).panels
    assert "The pilot shows no plateau." in panel.notes
    assert "The plateau" not in panel.alt


def test_replays_are_counted_beside_their_claim_and_listed(published, page):
    quick = published[0]
    claim = quick.document.claims[0].beside(quick.document.claims[0])
    row = replay_of(claim, "quick", quick.document.jobs, by="Ada <b>", machine=Machine("Linux", "3.12.1", "2.10.0"))
    another = replace(row, run="2", outcome="differs", hardware="Z80", published_commit="older")
    replayed = Page(render_overview([quick.paper], published, [row, another, replace(row, paper="elsewhere")]))
    said = "2 replays: 1 agrees, 1 differs (1 beside an earlier publication); on Z80"
    assert said in cells_of(replayed, "T1")[2]
    assert "replay" not in cells_of(replayed, "T2")[2]
    assert replayed.text.count("Ada <b>") == 2
    assert "The replay log holds no row of these papers" in page.text
    assert "The replay log holds no row" not in replayed.text


def test_texts_of_claims_are_escaped(tmp_path):
    paper = Paper("medthink", "medthink", fake_claims(PAYLOAD))
    document = fake_results(tmp_path, text=PAYLOAD, n_items=40)
    found = Page(render_overview([paper], [PublishedSize(paper, "quick", document)], []))
    assert found.is_balanced
    assert not found.all("script")
    assert PAYLOAD in " ".join(found.texts)


def test_columns_are_the_sizes_that_decide_claims_on_phantoms(published):
    paper = published[0].paper
    assert phantom_presets([paper]) == ["quick", "full"]
    other = replace(paper.claims.claims[0], presets=("smoke", "cluster", "full"))
    assert phantom_presets([replace(paper, claims=replace(paper.claims, claims=(other,)))]) == ["full", "cluster"]
