import base64
import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image, ImageColor

from lightbox.claims import document as documents
from lightbox.claims.document import ShownExample
from lightbox.claims.spec import Kind
from lightbox.records import Box
from lightbox.report import figures, gallery, numbers
from lightbox.report.claim_view import ClaimView
from lightbox.report.page import write_page
from lightbox.runs.examples import BoxMark, Example, MaskMark, Picture, Step
from lightbox.testing.fake_results import failed_job, fake_results
from lightbox.testing.web_page import PAYLOAD, Page


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A finished quick run: its document, its output folder and its page."""
    out = tmp_path_factory.mktemp("quick")
    document = fake_results(out)
    first, second, third = document.claims
    weak = second.deciding
    moved = replace(
        weak, effect=30.0, ci95=(28.0, 32.0), per_seed=tuple(30 + d for d in weak.per_seed), seeds=range(9, 14)
    )
    another = replace(second, contrasts=tuple(moved if c == weak else c for c in second.contrasts), hardware=("Z80",))
    document = replace(document, claims=(first.beside(first), second.beside(another), third.beside(third)))
    (out / "mlflow-runs.json").write_text(json.dumps({document.jobs[0].key: "e" * 32}))
    return document, out, page_of(document, out)


def page_of(document, out, folder=None):
    path = out / "reproduce" / f"medthink-{document.preset}" / "report.html"
    write_page(document, path, folder=folder)
    return Page(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_page_is_one_file_that_asks_for_nothing(quick):
    _, _, page = quick
    assert page.is_balanced
    assert page.open == []
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "embed", "base", "form")]
    addresses = [attrs.get("src") or attrs.get("href") for _, attrs in page.tags if "src" in attrs or "href" in attrs]
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert "url(" not in page.html
    assert "@import" not in page.html


def test_the_policy_lets_no_script_run(quick):
    _, _, page = quick
    [policy] = [attrs["content"] for attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_every_claim_shows_effect_interval_verdict_and_the_papers_numbers(quick):
    document, _, page = quick
    for claim in document.claims:
        assert numbers.signed(claim.effect, 1) in page.text
        assert claim.paper_numbers in page.text
        assert claim.statement in page.text
        assert claim.reason in page.text
        assert {"id": f"medthink-{claim.id}", "class": "claim"} in page.all("section")
    first = document.claims[0]
    assert first.verdict == "reproduced"
    assert "● reproduced" in page.text
    assert numbers.interval(first.ci95, 1) in page.text


def test_an_equivalence_shows_the_90_percent_interval_that_decides(quick):
    document, _, page = quick
    contrast = document.claims[2].contrasts[0]
    assert f"{numbers.interval(contrast.ci90, 1)} at 90 %" in page.text


def test_published_effects_stand_beside_ours_and_say_whether_they_agree(quick):
    document, _, page = quick
    assert [claim.published.agrees for claim in document.claims] == [True, False, True]
    rows = page.html.split("<tbody>")[1].split("</tr>")
    assert "= agrees" in rows[0]
    assert "≠ differs" in rows[1]
    assert "+30.0 [28.0, 32.0] points" in page.text
    assert f"power 80 % from {numbers.number(document.claims[1].published.detectable)} points" in page.text


def test_both_processors_are_named_where_they_differ(quick):
    document, _, page = quick
    first, second, _ = page.html.split('<section class="claim"')[1:]
    own = "; ".join(document.claims[1].hardware) or "no machine yet"
    assert f"published from Z80, this run from {own}: another processor gives other bits" in second
    assert "another processor" not in first


def test_every_link_of_a_chain_is_shown_with_interval_and_state(quick):
    document, _, page = quick
    rows = page.html.split("<tbody>")[1].split("</tr>")
    for link in document.claims[1].links:
        for said in (numbers.signed(link.effect, 1), numbers.interval(link.ci95, 1), f"{link.name}: {link.state}"):
            assert said in rows[1]


def test_caveats_stand_beside_the_verdict(quick, tmp_path):
    document, _, page = quick
    assert "Caveat" not in page.text
    claim = replace(document.claims[0], caveats=("True by construction.",), older_source=("abc123",))
    page = page_of(replace(document, claims=(claim,)), tmp_path)
    row, section = page.html.split("<tbody>")[1].split("</tr>")[0], page.html.split('<section class="claim"')[1]
    for caveat in ("True by construction.", "An older result: its source, settings or data are not today"):
        assert caveat in row
        assert caveat in section


def test_the_head_tells_the_time_of_all_jobs_and_counts_shared_ones_once(quick):
    document, _, page = quick
    assert document.job_s == 40 * 31.5
    assert "21.0 min of job time in all" in page.text
    again = replace(document, jobs=(*document.jobs, replace(document.jobs[0], arm="other")))
    assert again.job_s == document.job_s


def test_no_arm_is_drawn_twice(quick):
    claim = quick[0].claims[0]
    both = replace(claim, arms=claim.arms | {"untouched": claim.baselines["untouched"]})
    drawn = ClaimView(both, quick[0], "T1").figure[1]
    assert drawn.count("untouched") == 1
    assert drawn == ClaimView(claim, quick[0], "T1").figure[1]


def test_the_page_counts_verdicts_and_the_false_ones_to_expect(quick):
    document, _, page = quick
    assert document.family.verdicts == 3
    assert "3 verdicts drawn, 1 of them “reproduced”" in page.text
    assert "0.1 false “reproduced” would be expected among 3 (chance of at least one: 10 %)" in page.text


def test_the_page_says_what_a_verdict_cannot_say(quick):
    _, _, page = quick
    assert "It says nothing about clinical performance" in page.text
    assert "not for clinical use" in page.text


def test_every_figure_has_alternative_text_with_its_numbers(quick):
    document, _, page = quick
    images = page.all("img")
    assert len(images) == 5  # forest, levels of three claims, curves
    assert all(image["alt"].strip() for image in images)
    forest = next(image["alt"] for image in images if image["alt"].startswith("Forest plot"))
    for contrast in document.claims[0].contrasts:
        assert f"{contrast.name} ({contrast.role}) {numbers.signed(contrast.effect, 1)}" in forest


def test_gate_baselines_and_oracle_are_printed(quick):
    document, _, page = quick
    gate = document.claims[0].gate
    assert f"the best arm, {gate.best} ({gate.best_mean:.1f})" in page.text
    for name in ("majority", "question_only", "explanation [blank]", "explanation [shuffled]", "untouched", "oracle"):
        assert name in page.text
    assert "oracle the truth itself oracle ceiling 100.0 by construction" in page.text


def test_jobs_are_listed_with_keys_and_known_mlflow_runs(quick):
    document, _, page = quick
    assert len(document.jobs) == 40
    assert all(job.key in page.text for job in document.jobs)
    assert page.text.count("e" * 32) == 1
    assert "lightbox reproduce medthink --preset quick" in page.text
    assert document.commit in page.text
    assert document.machine["hardware"] in page.text


def test_example_cards_embed_each_image_once_and_mark_right_and_wrong(quick):
    document, out, page = quick
    shown = gallery.Gallery(document.examples, folder=out / "reproduce" / "medthink-quick")
    assert [len(card.arms) for card in shown.cards] == [8] * gallery.MOST_CARDS
    assert {one.example.is_right for one in shown.cards[0].arms} == {True, False}
    assert page.html.count('class="card"') == gallery.MOST_CARDS
    assert page.html.count('class="mark right"') + page.html.count('class="mark wrong"') == 8 * gallery.MOST_CARDS
    sources = [attrs["href"] for attrs in page.all("image")]
    assert len(set(sources)) == len(sources) == 6 * (2 + 1)  # two pictures and a mask an item, for all arms
    for source in sources:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(gallery.PNG)


def test_every_image_that_a_card_uses_is_on_the_page(quick):
    _, _, page = quick
    assert {attrs["href"] for attrs in page.all("use")} == {f"#{attrs['id']}" for attrs in page.all("symbol")}


def test_a_picture_says_what_it_shows_and_what_is_marked_on_it(quick):
    _, _, page = quick
    texts = [attrs["aria-label"] for attrs in page.all("svg") if attrs.get("role") == "img"]
    assert len(texts) == 6 * (2 + 8 * 2)  # a card's two pictures, and of each arm the marked one and one of its trace
    assert "frontal of item case-0-0000 with truth nodule" in texts
    assert "frontal of item case-0-0000 with truth nodule, predicted majority, predicted nodule" in texts


def test_boxes_are_drawn_where_they_lie_in_the_roles_colour(tmp_path):
    Image.new("L", (64, 32)).save(tmp_path / "a.png")
    marks = (BoxMark(Box(0.25, 0.5, 0.75, 1.0), "truth"), BoxMark(Box(0, 0, 0.5, 0.25), "predicted", "n"))
    shown = (ShownExample("medthink", "x", 0, Example("a", (Picture("a.png", boxes=marks),))),)
    page = page_of(replace(fake_results(tmp_path, ended_seeds=0), examples=shown), tmp_path, folder=tmp_path)
    drawn = [tuple(float(attrs[name]) for name in ("x", "y", "width", "height")) for attrs in page.all("rect")]
    truth, predicted = (25.0, 25.0, 50.0, 25.0), (0.0, 0.0, 50.0, 12.5)
    assert drawn == [truth, truth, predicted]  # what is true stands on the card's picture too
    assert [attrs["class"] for attrs in page.all("g")] == ["truth", "truth", "predicted"]


def test_a_mask_is_translucent_inside_and_clear_outside(tmp_path):
    mask = Image.new("L", (4, 4))
    mask.putpixel((1, 2), 255)
    mask.save(tmp_path / "m.png")
    shown = gallery.Gallery((), folder=tmp_path)
    source = shown.images[shown.mask(MaskMark("m.png", "predicted"))]
    layer = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert layer.getpixel((1, 2)) == (*ImageColor.getrgb(gallery.COLOURS["predicted"]), gallery.MASK_ALPHA)
    assert layer.getchannel("A").getextrema() == (0, gallery.MASK_ALPHA)
    assert layer.getpixel((2, 1))[3] == 0


def test_an_arm_that_marks_nothing_shares_the_pictures_of_its_card():
    true, guess = (BoxMark(Box(0, 0, 1, 1), role) for role in ("truth", "predicted"))
    plain, marked = Picture("a.png", boxes=(true,)), Picture("b.png", boxes=(true, guess))
    assert gallery.own_pictures(Example("a", (plain, marked))) == [marked]
    assert gallery.shared_pictures(Example("a", (plain, marked))) == [plain, replace(marked, boxes=(true,))]


def test_items_come_first_on_which_arms_disagree_or_scores_are_apart(tmp_path):
    def shown(item, arm, **outcome):
        return ShownExample("p", arm, 0, Example(item, **outcome))

    rows = [shown("same", arm, score=0.5, is_right=True) for arm in "xy"]
    rows += [shown("near", arm, score=score) for arm, score in (("x", 0.5), ("y", 0.6))]
    rows += [shown("far", arm, score=score) for arm, score in (("x", 0.1), ("y", 0.9))]
    rows += [shown("split", arm, is_right=arm == "x") for arm in "xy"]
    cards = gallery.Gallery(rows, folder=tmp_path).cards
    assert [card.arms[0].example.item for card in cards] == ["split", "far", "near", "same"]


def test_only_a_small_png_is_embedded(tmp_path):
    (tmp_path / "note.png").write_text("secret")
    (tmp_path / "large.png").write_bytes(gallery.PNG + bytes(gallery.LARGEST_IMAGE))
    (tmp_path / "broken.png").write_bytes(gallery.PNG + bytes(40))
    shown = gallery.Gallery((), folder=tmp_path)
    assert [shown.image(name)[0] for name in ("note.png", "large.png", "absent.png", "")] == [""] * 4
    marks = [MaskMark(name, "truth") for name in ("note.png", "large.png", "broken.png", "absent.png")]
    assert [shown.mask(mark) for mark in marks] == [""] * 4
    assert shown.images == {}


def test_an_example_reads_back_as_it_was_written():
    picture = Picture(
        "a.png", "t", (BoxMark(Box(0.1, 0.2, 0.3, 0.4), "truth", "n"),), (MaskMark("m.png", "predicted"),)
    )
    one = Example("a", (picture,), (("question", "q"),), (), (Step("s", picture), Step("t")), "blank", 0.5, None)
    assert Example.from_row(json.loads(json.dumps(one.to_row()))) == one


@pytest.mark.slow
def test_text_of_data_and_models_is_escaped_everywhere(tmp_path):
    document = fake_results(tmp_path, text=PAYLOAD, n_items=60)
    changes = {"reason": PAYLOAD, "older_source": (PAYLOAD,), "run_ids": (PAYLOAD,)}
    document = replace(
        document,
        errors=(failed_job(PAYLOAD),),
        skipped=(PAYLOAD,),
        machine=document.machine | {"hardware": PAYLOAD},
        jobs=tuple(replace(job, commit=PAYLOAD) for job in document.jobs),
        claims=tuple(replace(claim, unit=claim.unit + PAYLOAD, **changes) for claim in document.claims),
        curves={"medthink": {f"train/{PAYLOAD}": {PAYLOAD: [[(0, 1.0), (1, 0.5)]]}}},
    )
    page = page_of(document, tmp_path)
    assert "<script" not in page.html
    assert page.is_balanced
    assert [name for name, _ in page.tags if name == "script"] == []
    shown = page.text
    for place in ("asked", "film", "answers", "claim-text", "note", "failed", "facts"):
        assert f'class="{place}' in page.html
    assert shown.count("<script>alert(1)</script>\"'&{{ 7 * 7 }}$x^2$") > 40
    assert all("<" not in name for _, attrs in page.tags for name in attrs)


def test_an_svg_figure_cannot_carry_a_script_into_the_page(quick):
    _, _, page = quick
    svgs = [image["src"] for image in page.all("img") if image["src"].startswith("data:image/svg+xml;base64,")]
    assert len(svgs) == 5
    text = base64.b64decode(svgs[0].partition(",")[2]).decode()
    assert "<svg" in text
    assert "<script" not in text


@pytest.mark.slow
def test_a_smoke_run_shows_no_verdict(tmp_path):
    page = page_of(fake_results(tmp_path, preset="smoke", n_items=60), tmp_path)
    assert "Smoke run: no verdicts." in page.text
    assert page.text.count("smoke: no verdict") == 6
    assert "not decided" in page.text
    assert "✗ failed" not in page.text


@pytest.mark.slow
def test_a_claim_whose_jobs_still_run_says_how_far_it_is(tmp_path):
    page = page_of(fake_results(tmp_path, ended_seeds=3, n_items=60), tmp_path)
    assert page.text.count("running, 3 of 5 seeds") == 6
    assert "No verdict drawn yet; 3 claims still running." in page.text


@pytest.mark.slow
def test_a_published_claim_that_lacks_seeds_of_today_is_no_running_one(tmp_path):
    document = fake_results(tmp_path, ended_seeds=3, n_items=60)
    claims = (replace(document.claims[0], older_source=("abc123",)), *document.claims[1:])
    page = page_of(replace(document, claims=claims), tmp_path)
    assert page.text.count("to be run again, 3 of 5 seeds") == 2
    assert page.text.count("running, 3 of 5 seeds") == 4
    assert "No verdict drawn yet; 2 claims still running." in page.text


def test_a_failed_job_is_told_from_a_running_one(tmp_path):
    document = fake_results(tmp_path, ended_seeds=3, n_items=60)
    page = page_of(replace(document, errors=(failed_job(),)), tmp_path)
    assert "incomplete, 3 of 5 seeds" in page.text
    assert "1 job failed." in page.text
    assert "MemoryError" in page.text


def test_a_page_before_any_job_has_ended_can_be_written(tmp_path):
    page = page_of(fake_results(tmp_path, ended_seeds=0), tmp_path)
    assert page.text.count("running, 0 of 5 seeds") == 6
    assert page.is_balanced


def test_a_document_without_extras_still_makes_a_page(quick, tmp_path):
    content = documents.to_json(quick[0])
    for name in ("examples", "curves", "jobs", "errors", "skipped"):
        del content[name]
    for claim in content["claims"]:
        del claim["published"], claim["older_source"]
    content["sha256"] = documents.digest(content)
    (tmp_path / "results.json").write_text(json.dumps(content))
    page = page_of(documents.load(tmp_path / "results.json"), tmp_path)
    assert page.text.count("● reproduced") == 3  # table, glossary, section
    assert "Learning curves" not in page.text


def test_an_exact_claim_shows_its_bound_and_no_interval(quick, tmp_path):
    exact = replace(quick[0].claims[0], kind=Kind.EXACT, ci95=None, bound=0.25, min_effect=0.0, gate=None)
    page = page_of(replace(quick[0], claims=(exact,)), tmp_path)
    assert "exact, no interval" in page.text
    assert "bound 0.25" in page.text


def test_claims_of_two_papers_carry_their_papers_name(quick, tmp_path):
    first, second, third = quick[0].claims
    page = page_of(replace(quick[0], claims=(first, replace(second, paper="mmedpo"), third)), tmp_path)
    assert "medthink T1" in page.text
    assert "mmedpo T2" in page.text
    ids = [attrs["id"] for attrs in page.all("section") if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_same_document_gives_the_same_page(quick, tmp_path):
    document, out, page = quick
    assert page_of(document, out).html == page.html


def test_figures_draw_dollars_and_percent_signs_as_they_are():
    rows = (figures.ForestRow("$\\frac{", "primary", 1.0, (0.5, 1.5), (0.8, 1.2)),)
    assert "<svg" in figures.forest((figures.ForestPanel("$x", "100 % $", "points", 2.0, rows),))
    assert "<svg" in figures.levels((figures.Level("$\\frac{", (1.0,)),), unit="$")


def test_curves_with_gaps_and_no_points_are_drawn():
    svg = figures.curves({"val/loss": {"a": [[(0, 1.0), (10, None)], [(0, 2.0)]], "b": [[]]}})
    assert svg.count("<svg") == 1


def test_arms_differ_in_line_style_and_roles_in_marker_not_in_colour_alone():
    assert len({marker for marker, _ in figures.ROLES.values()}) == len(figures.ROLES)
    assert len({str(line) for line in figures.LINES}) == len(figures.LINES)
    by_place = range(len(figures.COLOURS) * len(figures.LINES))
    styles = [(figures.arm_colour(i), str(figures.LINES[i % len(figures.LINES)])) for i in by_place]
    assert len(set(styles)) == len(styles)


@pytest.mark.parametrize(
    ("value", "digits", "expected"), [(None, 1, "–"), (-0.04, 1, "0.0"), (2.25, 2, "+2.25"), (-3.0, 0, "−3")]
)
def test_signed_numbers_read_well(value, digits, expected):
    assert numbers.signed(value, digits) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(None, "–"), (42, "42 s"), (412, "6.9 min"), (5400, "1.5 h")])
def test_durations_read_well(seconds, expected):
    assert numbers.duration(seconds) == expected


@pytest.mark.slow
def test_writing_the_page_imports_neither_torch_nor_mlflow(quick, tmp_path):
    document, _, _ = quick
    documents.write(document, tmp_path / "results.json")
    code = (
        "import sys; from pathlib import Path; from lightbox.report.page import write_page\n"
        "from lightbox.claims.document import load\n"
        "write_page(load(Path('results.json')), Path('report.html'))\n"
        "sys.exit(any(name in sys.modules for name in ('mlflow', 'torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, env=dict(os.environ)).returncode == 0
    assert (tmp_path / "report.html").stat().st_size > 100_000
