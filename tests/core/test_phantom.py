"""The phantom world: same everywhere, true by construction, balanced by design."""

import json
from collections import Counter, defaultdict

import numpy as np
import pytest

from lightbox.errors import RequestError
from lightbox.paths import shared_data
from lightbox.phantom import Knobs, draw_cases, seed_range
from lightbox.phantom.facts import parse, reword
from lightbox.phantom.freeze import SAMPLE, describe, sample_cases
from lightbox.phantom.ontology import CLASS_NAMES, DENSITIES, LOCATIONS, PLACE_LOCATION, SHAPES, TRIPLES
from lightbox.phantom.questions import CLOSED_KINDS, COMPARISONS
from lightbox.phantom.scene import MAX_FINDINGS, draw_scene
from lightbox.phantom.splits import SPLITS, load_splits, make_splits
from lightbox.phantom.version import VERSION
from lightbox.records import Case, Question, box_from_mask


def _triple(case_finding) -> str:
    a = case_finding.attributes
    shape = {"mesh": "reticular"}.get(a["shape"], a["shape"])
    density = {"grey": "medium", "hazy": "haze"}.get(a["density"], a["density"])
    place = a["location"]
    location = (
        "hilum" if "hilum" in place else "costophrenic" if "costophrenic" in place else place.removesuffix(" zone")
    )
    return f"{shape} {density} {location}"


@pytest.mark.parametrize("world", list(SAMPLE))
def test_frozen_sample_is_redrawn_to_the_last_pixel(world):
    golden = json.loads((shared_data() / "phantom" / "sample.json").read_text())
    assert golden["version"] == VERSION
    cases = sample_cases(world)
    assert json.loads(json.dumps([describe(c) for c in cases])) == golden["worlds"][world]
    pixels = np.load(shared_data() / "phantom" / "sample.npz", allow_pickle=False)[world]
    assert np.array_equal(np.stack([c.images[0] for c in cases]), pixels)


def test_case_depends_on_its_own_seed_only():
    alone = draw_cases([7_000_123], Knobs())[0]
    among = draw_cases(range(7_000_000, 7_000_200), Knobs())[123]
    assert describe(alone) == describe(among)
    assert np.array_equal(alone.images[0], among.images[0])


def test_texts_without_pixels_are_the_same_texts():
    seeds = seed_range("development", 1, 20)
    with_pixels, without = draw_cases(seeds, Knobs()), draw_cases(seeds, Knobs(), with_pixels=False)
    assert [c.questions for c in with_pixels] == [c.questions for c in without]
    assert [c.report for c in with_pixels] == [c.report for c in without]
    assert without[0].images == ()


def test_boxes_are_the_tight_boxes_of_their_masks():
    for case in draw_cases(seed_range("development", 3, 60), Knobs(distractors=2, vocabulary="triples", triples="all")):
        for finding in case.findings:
            assert finding.mask.any()
            assert finding.boxes == (box_from_mask(finding.mask),)


def test_findings_of_one_case_overlap_little():
    shared = total = 0
    for case in draw_cases(seed_range("development", 4, 200)):
        for i, a in enumerate(case.findings):
            total += a.mask.sum()
            shared += sum((a.mask & b.mask).sum() for b in case.findings[i + 1 :])
    assert shared / total < 0.05


def test_finding_pixels_differ_from_the_same_scene_without_it():
    worlds = (draw_cases(seed_range("development", 5, 80), Knobs(lesion_scale_pct=p)) for p in (60, 140))
    small, large = (np.stack([case.images[0] for case in cases]) for cases in worlds)
    assert (small != large).mean() > 0.01


@pytest.mark.parametrize("part", ["known", "unseen_composition", "unseen_pair", "unseen_value"])
def test_a_world_draws_only_the_triples_of_its_part(part):
    members = set(load_splits()["triples"][part])
    knobs = Knobs(vocabulary="triples", triples=part, distractors=1)
    drawn = {_triple(f) for c in draw_cases(seed_range("development", 6, 200), knobs) for f in c.findings}
    assert drawn <= members
    assert len(drawn) > len(members) / 2


def test_named_world_draws_every_class_and_no_held_out_triple():
    cases = draw_cases(seed_range("development", 7, 800))
    names = Counter(f.name for c in cases for f in c.findings)
    assert set(names) == set(CLASS_NAMES)
    assert min(names.values()) > 0.5 * max(names.values())
    assert {_triple(f) for c in cases for f in c.findings} <= set(load_splits()["triples"]["known"])


def test_committed_splits_are_what_the_rule_gives():
    assert load_splits() == make_splits()


def test_held_out_sets_partition_the_ontology_and_every_other_pair_is_known():
    sets = load_splits()["triples"]
    everything = [t for part in sets.values() for t in part]
    assert sorted(everything) == sorted(" ".join(t) for t in TRIPLES)
    known = [t.split(" ", 2) for t in sets["known"]]
    for axis, values in enumerate((SHAPES, DENSITIES, LOCATIONS)):
        seen = {t[axis] for t in known}
        assert seen == set(values) - ({"ring"} if axis == 0 else set())
    for text in sets[
        "unseen_composition"
    ]:  # each pair of a composition-held-out triple is known, only the triple is not
        s, d, loc = text.split(" ", 2)
        assert any(t[0] == s and t[1] == d for t in known)
        assert any(t[0] == s and t[2] == loc for t in known)
        assert any(t[1] == d and t[2] == loc for t in known)
    for text in sets["unseen_pair"]:  # some pair of it is never seen
        s, d, loc = text.split(" ", 2)
        pairs = [(t[0], t[1]) == (s, d) for t in known], [(t[0], t[2]) == (s, loc) for t in known]
        third = [(t[1], t[2]) == (d, loc) for t in known]
        assert not all(any(p) for p in (*pairs, third))


def test_distractors_share_exactly_two_attributes_with_the_target():
    scene = draw_scene(seed_range("development", 8, 300), Knobs(vocabulary="triples", triples="all", distractors=3))
    location = np.array(PLACE_LOCATION)[scene.place]
    attributes = np.stack([scene.shape, scene.density, location], axis=2)  # b s 3
    shared = (attributes[:, MAX_FINDINGS:] == attributes[:, :1]).sum(axis=2)
    drawn = scene.active[:, MAX_FINDINGS:]
    assert drawn.mean() > 0.7
    assert (shared[drawn] == 2).all()


def test_seed_ranges_never_meet():
    ranges = [seed_range(split, seed, 1_000_000) for split in SPLITS for seed in (0, 1, 999)]
    ends = sorted((r.start, r.stop) for r in ranges)
    assert all(a[1] <= b[0] for a, b in zip(ends, ends[1:], strict=False))


@pytest.mark.parametrize("rho", [0.3, *(pytest.param(rho, marks=pytest.mark.slow) for rho in (0.0, 0.8))])
def test_question_only_accuracy_is_set_by_rho(rho):
    cases = draw_cases(seed_range("development", 9, 5000), Knobs(rho=rho), closed=True, with_pixels=False)
    half = len(cases) // 2
    table: dict[str, Counter] = defaultdict(Counter)
    for case in cases[:half]:
        for q in case.questions:
            table[q.text][q.answer] += 1
    asked = [q for case in cases[half:] for q in case.questions]
    # a text that was never met is answered by a coin
    hits = np.mean([table[q.text].most_common(1)[0][0] == q.answer if q.text in table else 0.5 for q in asked])
    assert abs(hits - (0.5 + rho / 2)) < 0.02


@pytest.mark.slow
def test_label_noise_flips_the_asked_share_of_answers_and_leaves_the_facts():
    seeds = seed_range("development", 10, 1500)
    clean = draw_cases(seeds, Knobs(), closed=True, with_pixels=False)
    noisy = draw_cases(seeds, Knobs(label_noise_pct=25), closed=True, with_pixels=False)
    pairs = [(a, b) for x, y in zip(clean, noisy, strict=True) for a, b in zip(x.questions, y.questions, strict=True)]
    assert abs(np.mean([a.answer != b.answer for a, b in pairs]) - 0.25) < 0.02
    assert all(a.facts == b.facts and a.rationale == b.rationale for a, b in pairs)


def _answer_from_findings(case: Case, q: Question) -> str | None:
    """An independent reading of the records, from pixels where it can be: masks for sizes, boxes for heights."""
    names = [f.name for f in case.findings]
    asked = sorted((f for f in case.findings if f" {f.name} " in f" {q.text} "), key=lambda f: q.text.index(f.name))
    sides = Counter(f.attributes["side"] for f in case.findings)
    if q.kind == "presence" and q.options and any(name in q.text for name in CLASS_NAMES):
        return "yes" if asked else "no"
    if q.kind == "side":
        return asked[0].attributes["side"]
    if q.kind == "zone":
        return asked[0].attributes["location"]
    if q.kind == "count":
        return ("none", "one", "two", "three")[len(names)]
    if q.kind == "count_comparison":
        first, second = sorted(("right", "left"), key=q.text.index)
        return "yes" if sides[first] > sides[second] else "no"
    if q.kind == "size_comparison":
        return "yes" if asked[0].mask.sum() > asked[1].mask.sum() else "no"
    if q.kind == "comparison" and "above" in q.text:
        return min(asked, key=lambda f: f.boxes[0].y0 + f.boxes[0].y1).name
    if q.kind == "comparison":
        largest = max(asked or case.findings, key=lambda f: f.mask.sum())
        return largest.name if asked else largest.attributes["side"]
    return None


def test_answers_agree_with_an_independent_reading_of_the_records():
    checked = Counter()
    for case in draw_cases(seed_range("development", 11, 500), questions_per_case=6):
        for q in case.questions:
            expected = _answer_from_findings(case, q)
            if expected is not None:
                assert q.answer == expected, (case.id, q)
                checked[q.kind] += 1
    assert set(checked) == {"presence", "side", "zone", "count", *COMPARISONS}
    assert min(checked.values()) > 20


@pytest.mark.slow
def test_closed_questions_are_of_every_kind_and_of_both_answers():
    cases = draw_cases(seed_range("development", 15, 4000), closed=True, with_pixels=False)
    asked = [q for case in cases for q in case.questions]
    shares = {kind: count / len(asked) for kind, count in Counter(q.kind for q in asked).items()}
    assert set(shares) == set(CLOSED_KINDS)
    assert shares["comparison"] >= 0.15
    assert min(shares.values()) > 0.07
    assert max(shares.values()) < 0.25
    for kind in shares:
        assert abs(np.mean([q.answer_index for q in asked if q.kind == kind]) - 0.5) < 0.05


def test_every_wording_of_a_sentence_states_the_same_facts():
    """Of the same case, question and draw but for the wording."""
    sentences = (
        "a small dense disc lies in the left hilum .",
        "a small dense disc is a nodule .",
        "an effusion is a dense crescent .",
        "the nodule lies in the left upper zone .",
        "the lungs are clear .",
        "the heart takes no more than half of the chest width .",
        "that is a normal heart .",
        "that makes two on the right , none on the left .",
        "the mass is larger .",
        "the larger one lies on the left .",
        "the dense oval lies above .",
        "the largest is in the upper part .",
        "that makes two .",
    )
    for sentence in sentences:
        wordings = {reword((sentence,), draw)[0] for draw in range(6)}
        assert len(wordings) in (2, 3)
        assert sentence in wordings
        assert {parse(wording) for wording in wordings} == {parse(sentence)}
    assert len({reword(sentences[:2], draw) for draw in range(36)}) == 6


def test_sides_are_the_patients_sides():
    for case in draw_cases(seed_range("development", 12, 100)):
        for f in case.findings:
            centre = (f.boxes[0].x0 + f.boxes[0].x1) / 2
            assert (centre < 0.5) == (f.attributes["side"] == "right")


def test_every_rationale_states_the_facts_of_its_question():
    kinds = set()
    for case in draw_cases(seed_range("development", 13, 200), questions_per_case=6):
        for q in case.questions:
            kinds.add(q.kind)
            assert frozenset(q.facts) == parse(q.rationale)
            assert q.rationale.endswith(".")
            assert q.rationale == q.rationale.lower()
    assert kinds == {"zone", "count", *CLOSED_KINDS}


def test_reports_state_what_is_there_and_name_normals():
    for case in draw_cases(seed_range("development", 14, 100), with_pixels=False):
        assert all(f.name in case.report.findings for f in case.findings)
        assert any(s.startswith("no ") for s in case.report.findings)
        assert all(f"no {f.name}" not in case.report.findings for f in case.findings)


def test_shortcut_letter_is_burned_in_exactly_where_a_finding_is_present():
    seeds = seed_range("development", 15, 100)
    plain, marked = draw_cases(seeds), draw_cases(seeds, Knobs(burned_in_text="shortcut"))
    for a, b in zip(plain, marked, strict=True):
        assert (a.images[0] != b.images[0]).any() == bool(a.findings)


def test_shifted_world_has_more_findings_and_another_grey_level():
    seeds = seed_range("test_shifted", 0, 300)
    normal, shifted = draw_cases(seeds), draw_cases(seeds, Knobs(shifted=True))
    assert sum(len(c.findings) for c in shifted) > 1.2 * sum(len(c.findings) for c in normal)
    assert abs(np.mean([c.images[0].mean() for c in shifted]) - np.mean([c.images[0].mean() for c in normal])) > 1


@pytest.mark.parametrize(
    ("knob", "words"),
    [
        ({"rho": 1.5}, "rho=1.5"),
        ({"modality": "pet"}, "modality='pet'"),
        ({"image_px": 60}, "patches of 8"),
        ({"triples": "unseen_pair"}, "vocabulary='triples'"),
        ({"distractors": 9}, "distractors=9"),
    ],
)
def test_impossible_knobs_are_refused(knob, words):
    with pytest.raises(RequestError, match=words.replace("(", r"\(")):
        Knobs(**knob)


def test_unknown_split_is_refused():
    with pytest.raises(RequestError, match="split='dev'"):
        seed_range("dev", 0, 1)
