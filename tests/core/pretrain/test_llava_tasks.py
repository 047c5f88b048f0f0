"""What the tiny `llava` may and must not see, and how what it says is read back."""

import re
from collections import Counter

import numpy as np
import pytest

from lightbox.phantom import draw_cases
from lightbox.phantom.facts import state_look
from lightbox.phantom.knobs import Knobs
from lightbox.phantom.ontology import CLASS_NAMES, DENSITY_WORDS, LOCATIONS, SHAPE_WORDS
from lightbox.phantom.questions import CLOSED_KINDS
from lightbox.phantom.splits import load_splits, seed_range
from lightbox.pretrain.llava_rows import CAPTION, NAMING, WORLDS, chat_set, majority_answers
from lightbox.pretrain.llava_scores import read_report, score_captions


@pytest.fixture(scope="module")
def stream():
    return chat_set("pretrain", 2400)


def all_turns(chats):
    return [turn for turns in chats.turns for turn in turns]


def triple_of(finding):
    words = finding.attributes
    shape = next(key for key, word in SHAPE_WORDS.items() if word == words["shape"])
    density = next(key for key, word in DENSITY_WORDS.items() if word == words["density"])
    place = words["location"].removesuffix(" zone").removesuffix(" angle")
    location = place if place in LOCATIONS else place.removeprefix("right ").removeprefix("left ")
    return f"{shape} {density} {location}"


@pytest.mark.slow
def test_images_come_from_pretraining_seeds_only(stream):
    low, high = load_splits()["seed_ranges"]["pretrain"]
    assert len(stream.cases) == 2400
    assert all(low <= int(case.id.removeprefix("chest-")) < high for case in stream.cases)
    assert all(case.split == "pretrain" for case in stream.cases)
    assert len({case.id for case in stream.cases}) == 2400


def test_no_image_shows_a_held_out_triple_pair_or_value(stream):
    triples = load_splits()["triples"]
    seen = {triple_of(finding) for case in stream.cases for finding in case.findings}
    assert seen <= set(triples["known"])
    assert len(seen) == len(triples["known"])
    for part in ("unseen_composition", "unseen_pair", "unseen_value"):
        assert not seen & set(triples[part])


def test_no_world_has_a_text_prior_or_label_noise():
    assert all(knobs.rho == 0 and knobs.label_noise_pct == 0 for knobs in WORLDS)
    assert all(knobs.triples == "known" and knobs.burned_in_text == "none" for knobs in WORLDS)


def test_no_turn_holds_a_rationale_or_coordinates(stream):
    looks = {state_look(name).rstrip(" .") for name in CLASS_NAMES}
    for turn in all_turns(stream):
        assert turn.kind == CAPTION or len(turn.answer.split()) <= 3
        for text in (turn.prompt, turn.answer):
            assert " lies in the " not in text
            assert "the heart takes" not in text
            assert "that makes" not in text
            assert not any(look in text for look in looks)
            assert not re.search(r"\d|<", text)
    assert not any(case.preferences for case in stream.cases)


def test_each_case_has_its_report_and_questions_of_every_kind_occur(stream):
    assert all(turns[0].answer == case.report.text for case, turns in zip(stream.cases, stream.turns, strict=True))
    assert all([turn.kind for turn in turns].count(CAPTION) == 1 for turns in stream.turns)
    assert {turn.kind for turn in all_turns(stream)} == {CAPTION, NAMING, "zone", "count", *CLOSED_KINDS}
    assert np.mean([len(turns) for turns in stream.turns]) > 6


def test_every_closed_question_text_has_its_answers_equally_often(stream):
    counts = Counter((turn.prompt, turn.answer) for turn in all_turns(stream) if turn.options)
    for turn in all_turns(stream):
        if turn.options:
            first, second = turn.options
            assert counts[turn.prompt, first] == counts[turn.prompt, second] > 0


@pytest.mark.slow
def test_text_alone_is_at_chance_on_closed_questions_never_seen(stream):
    guess = majority_answers(all_turns(stream))
    asked = [turn for turn in all_turns(chat_set("pretrain_validation", 2100)) if turn.options]
    assert len(asked) > 4000
    # a text that was never met is answered by a coin
    hits = [guess[turn.prompt] == turn.answer if turn.prompt in guess else 0.5 for turn in asked]
    assert abs(np.mean(hits) - 0.5) < 0.03
    for kind in CLOSED_KINDS:
        of_kind = [hit for turn, hit in zip(asked, hits, strict=True) if turn.kind == kind]
        assert abs(np.mean(of_kind) - 0.5) < 0.1, kind


def test_majority_answers_are_the_commonest_and_ties_go_by_name():
    chats = chat_set("pretrain", 3)
    turn = chats.turns[0][0]
    made = [type(turn)("count", "how many ?", answer) for answer in ("two", "one", "two")]
    assert majority_answers(made) == {"how many ?": "two"}
    assert majority_answers(made[:2]) == {"how many ?": "one"}


@pytest.mark.parametrize("knobs", [Knobs(), Knobs(vocabulary="triples")])
def test_reports_are_read_back_in_every_wording(knobs):
    for case in draw_cases(seed_range("pretrain_validation", 7, 300), knobs, questions_per_case=0, with_pixels=False):
        said = read_report(case.report.text)
        assert said.names == {finding.attributes["location"]: finding.name for finding in case.findings}
        absent = {name.removeprefix("no ") for name in case.report.findings if name.startswith("no ")}
        assert said.absent == absent - {"cardiomegaly"}
        assert said.is_heart_large == ("cardiomegaly" in case.report.findings)
        for finding in case.findings:
            look = said.looks[finding.attributes["location"]]
            assert look.items() <= finding.attributes.items()


def test_true_reports_score_one_and_reports_of_other_cases_do_not():
    cases = draw_cases(seed_range("pretrain_validation", 8, 200), questions_per_case=0, with_pixels=False)
    reports = [case.report.text for case in cases]
    assert set(score_captions(reports, cases).values()) == {1.0}
    others = score_captions([*reports[1:], reports[0]], cases)
    assert others["caption_finding_recall"] < 0.2
    assert others["caption_absent"] < 1


def test_a_caption_that_makes_up_a_finding_loses_precision_and_one_that_says_nothing_loses_recall():
    case = next(
        case
        for case in draw_cases(seed_range("pretrain_validation", 9, 50), questions_per_case=0, with_pixels=False)
        if len(case.findings) == 1 and case.findings[0].name == "nodule"
    )
    where = case.findings[0].attributes["location"]
    other = "left hilum" if where != "left hilum" else "right hilum"
    made_up = score_captions([f"there is a nodule in the {where} . there is a mass in the {other} ."], [case])
    assert (made_up["caption_finding_precision"], made_up["caption_finding_recall"]) == (0.5, 1.0)
    wrong_name = score_captions([f"a large dense disc in the {where} is a mass ."], [case])
    assert (wrong_name["caption_place_precision"], wrong_name["caption_finding_precision"]) == (1.0, 0.0)
    assert (wrong_name["caption_size"], wrong_name["caption_shape"], wrong_name["caption_density"]) == (0, 1, 1)
    assert score_captions(["the heart is not enlarged ."], [case])["caption_place_recall"] == 0
