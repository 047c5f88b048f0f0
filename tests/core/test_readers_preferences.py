"""Preference pairs in MMedPO's JSON: read, refused row by row, written, and audited; each planted fault is found."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lightbox.cli.data import app
from lightbox.errors import RequestError
from lightbox.readers.all_sets import read_dataset
from lightbox.readers.catalog import DATASETS
from lightbox.readers.dataset_cards import load_dataset_card
from lightbox.readers.preference_audit import LEAST_IMAGES, LEAST_PAIRS, audit_preferences
from lightbox.readers.preference_sets import PREFERENCE_SETS
from lightbox.readers.preferences import write_preferences
from lightbox.readers.rows import ReadResult
from lightbox.readers.text_separability import separability
from lightbox.readers.validate import validate
from lightbox.records import Case, Preference

runner = CliRunner()


def talk(prompt, answer):
    return [{"from": "human", "value": f"<image>\n{prompt}"}, {"from": "gpt", "value": f" {answer}"}]


def pair_row(number, image="a.png", prompt="Where is it?", chosen="left", rejected="right", **fields):
    return {
        "id": number,
        "image": image,
        "conversations": talk(prompt, chosen),
        "rejected_conversations": talk(prompt, rejected),
        "weighted_score": 0.8,
        **fields,
    }


@pytest.fixture
def root(tmp_path):
    """Four pictures, and a function that writes rows beside them."""
    folder = tmp_path / "set"
    (folder / "images" / "lesion").mkdir(parents=True)
    for value, name in enumerate(("a", "b", "c", "lesion/a"), start=1):
        Image.fromarray(np.full((4, 4), value * 10, np.uint8)).save(folder / "images" / f"{name}.png")
    return folder


def put(root, *rows):
    (root / "pairs.json").write_text(json.dumps(rows))


def read_back(root, **options):
    return read_dataset("preference_json", root, **options)


def places(result):
    return [(problem.row, problem.field) for problem in result.problems]


# ------------------------------------------------- reading


def test_golden_pairs_of_text_and_of_image(root):
    put(
        root,
        pair_row(3),
        pair_row("x-1", "b.png", "Is it big?", "Yes", "No, it is small.", weighted_score=1),
        pair_row(5, rejected="left", rejected_image="lesion/a.png"),
        pair_row(6, "b.png", rejected="left", rejected_noised=1, weighted_score=0),
    )
    images = root / "images"
    result = read_back(root)
    assert result.problems == ()
    assert result.cases == (
        Case(
            id="a",
            images=(images / "a.png",),
            licence="not stated",
            preferences=(Preference("3", "Where is it?", "left", "right", relevance=0.8),),
        ),
        Case(
            id="b",
            images=(images / "b.png",),
            licence="not stated",
            preferences=(
                Preference("x-1", "Is it big?", "Yes", "No, it is small."),
                Preference("6", "Where is it?", "left", "left", "image", 0.0),
            ),
        ),
        Case(
            id="a-against-lesion-a",
            images=(images / "a.png", images / "lesion" / "a.png"),
            licence="not stated",
            preferences=(Preference("5", "Where is it?", "left", "left", "image", 0.8),),
        ),
    )
    assert {name: result.counts[name] for name in ("pairs", "text_pairs", "image_pairs", "pairs_without_images")} == {
        "pairs": 4,
        "text_pairs": 2,
        "image_pairs": 2,
        "pairs_without_images": 0,
    }


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


TWO_TALKS = [*talk("Where is it?", "left"), *talk("And now?", "right")]
BAD_ROWS = [
    (without(pair_row(1), "image"), "image", "is missing"),
    (pair_row(1, ""), "image", "is empty"),
    (pair_row(1, "../a.png"), "image", "does not name a file inside the image folder"),
    (pair_row(1, chosen="Left", rejected="Left"), "rejected_conversations", "is the chosen answer itself"),
    (without(pair_row(1), "weighted_score"), "weighted_score", "is missing"),
    (pair_row(1, weighted_score=None), "weighted_score", "is null"),
    (pair_row(1, weighted_score=1.01), "weighted_score", "is 1.01, not a number from 0 to 1"),
    (pair_row(1, weighted_score=-0.1), "weighted_score", "is -0.1, not a number from 0 to 1"),
    (pair_row(1, weighted_score=float("nan")), "weighted_score", "is nan, not a number from 0 to 1"),
    (pair_row(1, weighted_score=10**399), "weighted_score", "not a number from 0 to 1"),
    (pair_row(10**399), "id", "not text"),
    (pair_row(1, weighted_score=True), "weighted_score", "is True, not a number from 0 to 1"),
    (pair_row(1, weighted_score="0.8"), "weighted_score", "is '0.8', not a number from 0 to 1"),
    (without(pair_row(1), "conversations"), "conversations", "is missing"),
    (pair_row(1, conversations={}), "conversations", "is {}, not a list of turns"),
    (pair_row(1, conversations=TWO_TALKS), "conversations", "has 4 turns"),
    (pair_row(1, conversations=talk("Where is it?", "left")[::-1]), "conversations", "'from' is 'gpt'"),
    (pair_row(1, conversations=["x", "y"]), "conversations", "is a str, not an object"),
    (pair_row(1, conversations=talk("", "left")), "conversations", "is empty"),
    (pair_row(1, rejected=""), "rejected_conversations", "turn of gpt whose 'value' is empty"),
    (pair_row(1, rejected_conversations=talk("Who?", "right")), "rejected_conversations", "asks 'Who?'"),
    (pair_row(1, rejected_image="b.png"), "rejected_conversations", "a pair changes one of the two"),
    (pair_row(1, rejected="left", rejected_image="a.png"), "rejected_image", "is the chosen image itself"),
    (pair_row(1, rejected="left", rejected_image="b.png", rejected_noised=1), "rejected_noised", "unclear which image"),
    (pair_row(1, rejected_noised=2), "rejected_noised", "is 2, not 0 or 1"),
    (pair_row(1, chosen_noised=1), "chosen_noised", "noise would be preferred"),
    (pair_row(7), "id", "is 7, as in row 1; the first row is kept"),
    (pair_row(""), "id", "is empty"),
    ("left", "row", "is a str, not an object"),
]


@pytest.mark.parametrize(("bad", "field", "reason"), BAD_ROWS, ids=[f"{field}: {why}" for _, field, why in BAD_ROWS])
def test_malformed_pair_names_file_row_field_and_reason_and_the_rest_is_read(root, bad, field, reason):
    put(root, pair_row(7), bad, pair_row(9, "b.png"))
    result = read_back(root)
    assert places(result) == [("2", field)]
    assert reason in result.problems[0].reason
    assert len(result.problems[0].reason) < 160
    assert result.problems[0].file == str(root / "pairs.json")
    assert [pair.id for case in result.cases for pair in case.preferences] == ["7", "9"]


def test_two_image_names_that_make_one_case_are_not_mixed(root):
    put(root, pair_row(1, "lesion/a.png"), pair_row(2, "lesion-a.png"))
    assert places(read_back(root)) == [("2", "image")]


def test_prompt_without_the_image_mark_is_read_and_counted(root):
    rows = pair_row(1), pair_row(2, "b.png")
    for talks in (rows[0]["conversations"], rows[0]["rejected_conversations"]):
        talks[0]["value"] = "Where is it?"
    put(root, *rows)
    result = read_back(root)
    assert result.counts["prompts_without_image_mark"] == 1
    assert len(result.cases) == 2


def test_pairs_without_an_image_are_refused_one_by_one_where_images_are_needed(root):
    (root / "images" / "b.png").unlink()
    put(root, pair_row(1), pair_row(2, "b.png"), pair_row(3, rejected="left", rejected_image="lesion/none.png"))
    assert places(read_back(root)) == []
    result = read_back(root, needs_images=True)
    assert places(result) == [("2", "image"), ("3", "rejected_image")]
    assert "without its image" in result.problems[0].reason
    assert result.counts["pairs"] == 1


def test_without_an_image_folder_texts_are_read_and_are_refused_where_images_are_needed(tmp_path):
    put(tmp_path, pair_row(1))
    result = read_back(tmp_path)
    assert result.cases[0].images == ()
    assert result.counts["pairs_without_images"] == 1
    with pytest.raises(
        RequestError, match=r"has no readable row.*field 'image': is 'a.png', and there is no such file"
    ):
        read_back(tmp_path, needs_images=True)


def test_file_of_another_base_model_is_refused_where_it_says_so(root):
    put(root, pair_row(1, base_model="LLaVA-Med-1.5"), pair_row(2, "b.png", base_model="LLaVA-Med-1.5"))
    assert read_back(root, base_model="llava-med-1.5").counts["pairs_of_base_model_LLaVA-Med-1.5"] == 2
    with pytest.raises(RequestError) as caught:
        read_back(root, base_model="Qwen2.5-VL")
    assert "'LLaVA-Med-1.5' in 2 pairs, and base_model='Qwen2.5-VL'" in caught.value.given
    assert caught.value.why
    assert caught.value.do
    put(root, pair_row(1))
    assert read_back(root, base_model="Qwen2.5-VL").counts["pairs_of_unnamed_base_model"] == 1


def test_released_sets_find_their_file_and_the_images_of_the_set_beside_them(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTBOX_DATA_ROOT", str(tmp_path))
    file = tmp_path / "mmedpo_preferences" / "data" / "vqa-rad_dpo_weighted.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps([pair_row(1, "synpic1.jpg")]))
    (case,) = read_dataset("mmedpo_vqa_rad").cases
    assert (case.images, case.split, case.licence) == ((), "train", "Apache-2.0")
    images = tmp_path / "vqa_rad" / "images"
    images.mkdir(parents=True)
    (images / "synpic1.jpg").write_bytes(b"picture")
    (case,) = read_dataset("mmedpo_vqa_rad", split="train").cases
    assert case.images == (images / "synpic1.jpg",)
    with pytest.raises(RequestError, match="slake_dpo_weighted.json"):
        read_dataset("mmedpo_slake")


def test_wrong_requests_are_refused(root):
    put(root, pair_row(1))
    for options, reason in (
        ({"split": "test"}, "has no official split"),
        ({"image": "x"}, "Its reader takes file, images, needs_images, base_model"),
        ({"images": "none"}, "no folder and no zip file"),
        ({"file": "none.json"}, "There is no such file"),
    ):
        with pytest.raises(RequestError, match=reason):
            read_back(root, **options)
    (root / "more.json").write_text("[]")
    with pytest.raises(RequestError, match="holds 2 JSON files.*--option file="):
        read_back(root)
    assert read_back(root, file="pairs.json").counts["pairs"] == 1
    with pytest.raises(RequestError, match="There is no dataset 'mmedpo'.*vqa_rad.*preference_json"):
        read_dataset("mmedpo", root)
    with pytest.raises(RequestError, match="this set has no pairs"):
        validate("vqa_rad", root, scored_on="vqa_rad")


def test_every_preference_set_has_a_card_with_its_licence():
    assert DATASETS.keys().isdisjoint(PREFERENCE_SETS)
    for name, reader in PREFERENCE_SETS.items():
        assert load_dataset_card(name).licence == reader.licence
        assert load_dataset_card(name).title == reader.title


# ------------------------------------------------- writing


def test_what_is_written_is_read_back_equal_and_as_the_authors_write_it(root):
    rows = [
        pair_row(3),
        pair_row("CXR1_IM-7", "b.png", "Is it <big>?\nSay so.", "Ja, größer", 'No, "small".', weighted_score=0.25),
        pair_row("007", "c.png"),
        pair_row(5, rejected="left", rejected_image="lesion/a.png"),
        pair_row(6, "b.png", rejected="left", rejected_noised=1),
    ]
    put(root, *rows)
    result = read_back(root)
    assert write_preferences(root / "again.json", result.cases, images=root / "images") == 5
    written = json.loads((root / "again.json").read_text(encoding="utf-8"))
    assert sorted(written, key=str) == sorted(rows, key=str)
    assert read_back(root, file="again.json").cases == read_dataset("preference_json", root, file="pairs.json").cases


def test_base_model_is_written_and_asked_for(root):
    put(root, pair_row(1))
    write_preferences(root / "own.json", read_back(root).cases, images=root / "images", base_model="tiny/llava")
    assert read_back(root, file="own.json", base_model="tiny/llava").counts["pairs"] == 1
    with pytest.raises(RequestError, match="of the base model 'tiny/llava' in 1 pairs"):
        read_back(root, file="own.json", base_model="tiny/t5")


@pytest.mark.parametrize(
    ("pair", "images", "reason"),
    [
        (Preference("1", "Where?", "left", "right"), (), "has no image.*Every row names an image file"),
        (Preference("1", "Where?", "left", "right"), (np.zeros((2, 2), np.uint8),), "which is no file"),
        (Preference("1", "Where?", "left", "left"), ("a.png",), "is the chosen answer itself"),
        (Preference("1", "Where?", "left", "right", "image"), ("a.png", "b.png"), "changes one of the two"),
        (Preference("1", "Where?", "left", "right", relevance=1.5), ("a.png",), "not a number from 0 to 1"),
        (Preference("1", "Where?", "left", "right", relevance=float("nan")), ("a.png",), "not a number from 0 to 1"),
        (Preference("1", " ", "left", "right"), ("a.png",), "is empty"),
    ],
)
def test_pair_that_no_row_can_hold_is_not_written(tmp_path, pair, images, reason):
    paths = tuple(tmp_path / image if isinstance(image, str) else image for image in images)
    with pytest.raises(RequestError, match=reason):
        write_preferences(tmp_path / "x.json", [Case("a", paths, preferences=(pair,))], images=tmp_path)
    assert not (tmp_path / "x.json").exists()


def test_pairs_elsewhere_twice_or_absent_are_not_written(tmp_path):
    pair = Preference("1", "Where?", "left", "right")
    there, elsewhere = (Case("a", (folder / "a.png",), preferences=(pair,)) for folder in (tmp_path, tmp_path.parent))
    for cases, reason in (([elsewhere], "shows"), ([there, there], "as of a pair before"), ([], "hold no preferences")):
        with pytest.raises(RequestError, match=reason):
            write_preferences(tmp_path / "x.json", cases, images=tmp_path)


# ------------------------------------------------- auditing

SIDES = ("left", "right", "upper", "lower", "middle")


def clean_cases(n=60):
    """Pairs with nothing to find: two words each, every word as often chosen as rejected, two pairs an image."""
    rng = np.random.default_rng(0)
    cases = []
    for number in range(n // 2):
        first, second = rng.choice(SIDES, 2, replace=False)
        pairs = tuple(
            Preference(f"{number}{place}", f"Where is finding {place}?", *texts, relevance=0.5 + 0.1 * place)
            for place, texts in enumerate(((f"{first} lobe", f"{second} lobe"), (f"{second} lobe", f"{first} lobe")))
        )
        cases.append(Case(f"c{number}", (np.full((2, 2), number, np.uint8),), preferences=pairs, licence="CC0-1.0"))
    return cases


def changed(cases, n, **changes):
    """The first `n` cases with their first pair changed; a change may be a function of the pair."""

    def change(pair):
        return replace(pair, **{name: made(pair) if callable(made) else made for name, made in changes.items()})

    return [
        replace(case, preferences=(change(case.preferences[0]), *case.preferences[1:])) if number < n else case
        for number, case in enumerate(cases)
    ]


def all_changed(cases, change):
    """Every pair made anew from the numbers of its case and its place, and the pair."""
    return [
        replace(case, preferences=tuple(change(number, place, pair) for place, pair in enumerate(case.preferences)))
        for number, case in enumerate(cases)
    ]


def audited(cases, **more):
    return audit_preferences(ReadResult(tuple(cases)), **more)


def named(audit):
    return {check.name: check for check in audit.checks}


def test_clean_set_has_no_finding():
    audit = audited(clean_cases())
    assert audit.findings == ()
    assert (audit.pairs, audit.text_pairs, audit.image_pairs, audit.images) == (60, 60, 0, 30)
    assert (audit.chosen_words, audit.rejected_words) == (2, 2)
    assert audit.relevance == ((0.5, 30), (0.6, 30))
    checks = named(audit)
    assert checks["length"].count == 0
    assert checks["bag of words"].of == 120
    assert 0.3 < checks["bag of words"].share < 0.6
    assert [check.name for check in audit.checks if not check.of] == [
        "identical images",
        "right yes or no rejected",
        "two sides of a split",
        "images of the scored questions",
    ]


PLANTED = [
    ("identical texts", {"rejected": lambda pair: pair.chosen.upper() + "."}, 3, 60),
    ("leaked wording, rejected", {"rejected": "the dispreferred answer"}, 3, 60),
    ("leaked wording, rejected", {"rejected": "unlike the original finding"}, 3, 60),
    ("leaked wording, chosen", {"chosen": "Question: Where?\n-Original Answer: x\n-Candidate Answer2: y"}, 3, 60),
    ("right yes or no rejected", {"chosen": "Yes", "rejected": "Yes, a lesion"}, 3, 3),
    ("right answer inside the rejected", {"rejected": lambda pair: f"the {pair.chosen}"}, 3, 60),
    ("repeated prompts", {"prompt": "Where is finding 1?"}, 3, 60),
    ("scores of 0", {"relevance": 0.0}, 3, 60),
]


@pytest.mark.parametrize(("name", "changes", "count", "of"), PLANTED, ids=[str(index) for index in range(len(PLANTED))])
def test_planted_fault_is_found_with_its_count_and_an_example(name, changes, count, of):
    before, check = (named(audited(cases))[name] for cases in (clean_cases(), changed(clean_cases(), 3, **changes)))
    assert not before.is_found
    assert check.is_found
    assert (check.count, check.of, check.share) == (count, of, count / of)
    assert check.sentence.startswith(f"{count} of {of} ")
    assert f"({100 * count / of:.1f} %)" in check.sentence
    assert check.example.startswith("pair 0")


def test_labels_of_leaked_wording_are_counted_apart():
    rejected = "the dispreferred answer, not the original answer"
    sentence = named(audited(changed(clean_cases(), 2, rejected=rejected)))["leaked wording, rejected"].sentence
    assert "'dispreferred' 2, 'original answer' 2" in sentence


def test_pairs_that_the_reader_refused_as_identical_are_counted_with_the_rest(root):
    put(root, pair_row(1), pair_row(2, rejected="left"), pair_row(3, "b.png", rejected=" LEFT."))
    check = named(audit_preferences(read_back(root)))["identical texts"]
    assert (check.count, check.of) == (2, 3)
    assert "1 of them the reader refuses, the first in row 2" in check.sentence


def test_answer_that_the_prompt_names_is_no_right_answer_inside():
    cases = changed(clean_cases(), 3, prompt="left or right?", chosen="left", rejected="not left but right")
    assert not named(audited(cases))["right answer inside the rejected"].is_found


def test_contradicting_pairs_are_found():
    """The clean set rejects for finding 1 what it prefers for finding 0: of one prompt that is a contradiction."""
    check = named(audited(changed(clean_cases(), 4, prompt="Where is finding 1?")))["contradictions"]
    assert (check.count, check.of) == (8, 60)


@pytest.mark.parametrize(("longer", "habit"), [("rejected", "shorter"), ("chosen", "longer")])
def test_length_shortcut_is_found_either_way_and_bag_of_words_sees_it(longer, habit):
    cases = changed(clean_cases(), 30, **{longer: lambda pair: f"the image shows the {getattr(pair, longer)}"})
    checks = named(audited(cases))
    assert checks["length"].is_found
    assert checks["length"].count == (30 if longer == "rejected" else 0)
    assert f"prefers the {habit} text wins 75.0 % of the pairs blind" in checks["length"].sentence
    assert checks["bag of words"].is_found
    assert "'image' in " in checks["bag of words"].sentence


def test_bag_of_words_is_separable_where_a_word_gives_the_side_away_and_lengths_are_equal():
    cases = all_changed(
        clean_cases(), lambda _, __, pair: replace(pair, rejected=pair.rejected.replace("lobe", "zone"))
    )
    checks = named(audited(cases))
    assert not checks["length"].is_found
    assert checks["bag of words"].share == 1.0
    assert "most telling: 'lobe' in 0 rejected and 60 chosen, 'zone' in 60 rejected and 0 chosen, " in (
        checks["bag of words"].sentence
    )


def test_words_of_an_image_are_not_learnt_from_the_image_itself():
    """Each image has words of its own in its rejected texts: fitted to the image, they would give them away."""
    cases = all_changed(
        clean_cases(), lambda case, _, pair: replace(pair, chosen=f"p{case} lobe", rejected=f"r{case} lobe")
    )
    assert named(audited(cases))["bag of words"].share == 0.5


def test_too_few_pairs_or_images_are_no_ground_for_a_bag_of_words():
    assert (LEAST_PAIRS, LEAST_IMAGES) == (40, 10)
    few = named(audited(clean_cases(38)))["bag of words"]
    assert (few.of, few.is_found) == (0, False)
    assert few.sentence == "Not looked for: there are 38 pairs of texts on 19 images, and it takes 40 on 10."
    assert named(audited(clean_cases(40)))["bag of words"].of == 80


def test_interval_of_a_bag_of_words_takes_the_texts_of_an_image_together():
    """Twelve images are twelve observations, however many texts each has: the interval is that of their means."""
    rng = np.random.default_rng(0)
    copies = [pair for pair in (tuple(rng.permutation(["left", "right"])) for _ in range(12)) for _ in range(20)]
    mixed = [tuple(rng.choice(SIDES, 2)) for _ in range(240)]
    for texts in (copies, mixed):
        found = separability(texts, np.repeat(np.arange(12), 20))
        of_images = found.is_right.reshape(12, -1).mean(axis=1)
        assert found.accuracy == pytest.approx(of_images.mean())
        assert found.half_width == pytest.approx(1.96 * of_images.std() / np.sqrt(12))
    with pytest.raises(RequestError, match="4 pairs of texts in 4 groups"):
        separability(mixed[:4], np.arange(4))


def test_bag_of_words_cut_to_one_length_forgets_what_length_gave_away():
    rng = np.random.default_rng(0)
    first, second = rng.choice(SIDES, (2, 400))
    texts = [(f"{one} lobe", f"{other} lobe of the image") for one, other in zip(first, second, strict=True)]
    found = separability(texts, np.arange(400) // 2)
    assert found.accuracy == 1.0
    assert found.telling[:3] == (("image", 400, 0), ("of", 400, 0), ("the", 400, 0))
    assert 0.4 < found.cut[0] < 0.6


def test_one_score_for_all_is_found():
    cases = all_changed(clean_cases(), lambda _, __, pair: replace(pair, relevance=1.0))
    assert named(audited(cases))["one score for all"].count == 60


def test_images_that_are_missing_unreadable_or_the_same_twice_are_found(root):
    Image.open(root / "images" / "a.png").save(root / "images" / "lesion" / "a.png", compress_level=0)
    (root / "images" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    put(root, pair_row(1), pair_row(2, "b.png"), pair_row(3, rejected="left", rejected_image="lesion/a.png"))
    found = validate("preference_json", root)
    assert found.failures == ("1 unreadable images",)
    checks = named(found.audit)
    assert (checks["missing images"].count, checks["missing images"].of) == (1, 3)
    assert (checks["identical images"].count, checks["identical images"].of) == (1, 1)
    put(root, pair_row(1))
    assert not named(validate("preference_json", root).audit)["missing images"].is_found


def test_image_or_patient_on_two_sides_is_found(root):
    put(root, pair_row(1), pair_row(2, "b.png"), pair_row(3, "c.png"))
    (root / "ours").mkdir()
    split = root / "ours" / "split.json"
    split.write_text(json.dumps({"train": ["a", "b"], "test": ["c"]}))
    found = validate("preference_json", root, split_file=split)
    assert found.is_ok
    assert not named(found.audit)["two sides of a split"].is_found
    Image.open(root / "images" / "a.png").save(root / "images" / "c.png", compress_level=0)  # another name, one picture
    found = validate("preference_json", root, split_file=split)
    assert not found.is_ok
    check = named(found.audit)["two sides of a split"]
    assert (check.count, check.of) == (1, 3)
    assert check.example.startswith("pair 3")
    pair = Preference("1", "Where?", "left", "right")
    cases = [Case(side, (), patient_id="p", preferences=(pair,), split=side) for side in ("test", "train")]
    check = named(audited(cases))["two sides of a split"]
    assert (check.count, check.of) == (1, 2)


def test_images_that_a_tuned_model_is_scored_on_are_counted(root, tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTBOX_DATA_ROOT", str(tmp_path))
    (tmp_path / "vqa_rad" / "images").mkdir(parents=True)
    row = {"qid": 1, "image_name": "other.png", "question": "q?", "answer": "yes", "phrase_type": "freeform"}
    Image.open(root / "images" / "a.png").save(tmp_path / "vqa_rad" / "images" / "other.png", compress_level=0)
    for split in ("train", "test"):
        (tmp_path / "vqa_rad" / f"{split}set.json").write_text(json.dumps([row]))
    put(root, pair_row(1), pair_row(2, "b.png"))
    check = named(validate("preference_json", root, scored_on="vqa_rad").audit)["images of the scored questions"]
    assert (check.count, check.of, check.is_found) == (1, 2, True)


def test_command_prints_the_audit_and_hides_texts_that_may_not_be_shown(root):
    put(root, pair_row(1, rejected="the dispreferred SECRET"), pair_row(2, "b.png"))
    arguments = ["validate", "preference_json", "--root", str(root)]
    result = runner.invoke(app, arguments)
    printed = " ".join(result.stdout.split())
    assert result.exit_code == 0
    assert "audit of 2 pairs on 2 images: 2 change the answer, 0 the image" in printed
    assert "leaked wording, rejected: 1 of 2 rejected texts (50.0 %) hold words of whoever wrote the pair" in printed
    assert "e.g. pair 1 (text not shown: licence not stated)" in printed
    assert "nothing found: " in printed
    assert "SECRET" not in printed
    plain = json.loads(runner.invoke(app, [*arguments, "--json"]).stdout)
    assert plain["audit"]["pairs"] == 2
    assert "SECRET" not in json.dumps(plain)


def test_show_prints_pairs_where_the_licence_is_public_and_ids_elsewhere(root):
    put(root, pair_row(1, rejected="SECRET"), pair_row(3, rejected="left", rejected_image="lesion/a.png"))
    assert "SECRET" not in runner.invoke(app, ["show", "preference_json", "--root", str(root)]).stdout
    (root / "pairs.json").rename(root / "slake_dpo_weighted.json")
    printed = runner.invoke(app, ["show", "mmedpo_slake", "--root", str(root)]).stdout
    assert "1 [text, relevance 0.8] Where is it?" in printed
    assert "rejected: SECRET" in printed
    assert "rejected: the same answer to the other image" in printed
