"""Who is asked what: parts of the ontology, all boxes of a class, findings that are not there, neighbours."""

import itertools

import numpy as np
import pytest

from k2sight.config import resolve
from k2sight.data import class_of, classes_of, defined, load_splits, targets_of
from k2sight.descriptions import PARTS, phantom_classes
from lightbox.phantom import Knobs, draw_cases, seed_range
from lightbox.phantom.ontology import TRIPLES
from lightbox.phantom.splits import triple_mask

SIZES = ("preset=smoke", "data.n_train=60", "data.n_test=30", f"data.parts=[{','.join(PARTS)}]")


def config(*overrides):
    return resolve([*SIZES, "experiment=defined", "run.seed=3", *overrides])


@pytest.fixture(scope="module")
def splits():
    return load_splits(config())


@pytest.mark.slow
@pytest.mark.parametrize("triple", [0, 63, 100, 131, 222])
def test_a_finding_is_placed_in_the_ontology_by_what_it_says(triple):
    part = next(part for part in PARTS if triple_mask(part)[triple])
    drawn = [f for c in draw_cases(seed_range("development", 0, 1500), Knobs(vocabulary="triples", triples=part))
             for f in c.findings]  # fmt: skip
    shape, density, location = TRIPLES[triple]
    placed = [f for f in drawn if class_of(f) == triple]
    assert placed
    assert {location.split()[-1] in f.attributes["location"] for f in placed} == {True}
    if " " in location:
        assert {f.attributes["side"] for f in placed} == {location.split()[0]}
    assert len({(f.attributes["shape"], f.attributes["density"]) for f in placed}) == 1
    assert (shape in placed[0].attributes["shape"]) or shape == "reticular"
    assert density in ("medium", "haze") or placed[0].attributes["density"] == density


def test_training_asks_for_known_classes_alone_and_each_part_for_its_own(splits):
    train, scored = splits
    assert len(train.samples) == 60
    assert [s.record.part for s in scored.samples] == [part for part in PARTS for _ in range(30)]
    for sample in (*train.samples, *scored.samples):
        triple = TRIPLES.index(tuple(sample.record.attributes.values()))
        assert triple_mask(sample.record.part)[triple]
    assert {s.record.part for s in train.samples} == {"known"}


def test_no_image_is_in_two_splits_or_parts(splits):
    digests = [[image.tobytes() for image in split.images] for split in splits]
    assert len({*digests[0], *digests[1]}) == len(digests[0]) + len(digests[1])


def test_a_sample_has_all_boxes_of_its_class_and_an_absent_one_none():
    classes = phantom_classes(3)
    cases = draw_cases(seed_range("development", 1, 200), Knobs(vocabulary="triples", distractors=3))
    n_absent = n_several = 0
    for case in cases:
        for target in targets_of(case, classes, "known", n=4, absent_pct=30.0):
            triple = classes.places[target.name]
            boxes = [box for f in case.findings if class_of(f) == triple for box in f.boxes]
            assert sorted(target.boxes) == sorted(boxes)
            assert target.present == bool(boxes)
            n_absent, n_several = n_absent + (not boxes), n_several + (len(boxes) > 1)
    assert n_absent > 50
    assert n_several > 5


def test_an_absent_class_shares_two_attributes_with_one_that_is_there():
    classes = phantom_classes(0)
    cases = draw_cases(seed_range("development", 2, 60), Knobs(vocabulary="triples", distractors=3))
    absent = 0
    for case in cases:
        here = [TRIPLES[class_of(f)] for f in case.findings]
        for target in targets_of(case, classes, "known", n=4, absent_pct=50.0):
            if not target.present:
                absent += 1
                own = tuple(target.attributes.values())
                assert max(sum(a == b for a, b in zip(own, other, strict=True)) for other in here) == 2
    assert absent > 20


def test_a_neighbour_differs_in_the_one_attribute_that_names_it(splits):
    kinds = set()
    for sample in splits[1].samples:
        for kind, other in sample.record.neighbours.items():
            own, its = sample.record.attributes, other.attributes
            assert [key for key in own if own[key] != its[key]] == [kind]
            assert other.boxes
            kinds.add(kind)
    assert kinds == {"shape", "density", "location"}


def test_most_present_findings_have_a_neighbour_and_none_without_distractors_need_one():
    with_neighbour = [
        np.mean([bool(s.record.neighbours) for s in load_splits(config(f"data.distractors={n}"))[0].samples])
        for n in (0, 3)
    ]
    assert with_neighbour[1] > 0.5 > with_neighbour[0]


def test_a_swapped_definition_is_the_neighbours(splits):
    _, scored = splits
    classes = classes_of(config(), scored)
    asked = defined(scored.samples, classes, "swapped")
    assert 0 < len(asked) < len(scored.samples)
    largest = 0
    for sample in asked:
        target = sample.record
        meant = [place for place, words in enumerate(classes.words) if ", ".join(words.values()) == target.definition]
        others = {classes.places[other.name]: other for other in target.neighbours.values()}
        assert set(meant) <= set(others)
        areas = {place: sum(box.area for box in other.boxes) for place, other in others.items()}
        largest += areas[meant[0]] == max(areas.values())
    assert [s for s in asked if len(s.record.neighbours) > 1]
    assert largest < len(asked)  # not always the one that stands out


def test_arms_of_a_seed_share_images_classes_and_boxes(splits):
    for arm in ("name", "random", "no_shape"):
        others = load_splits(config(f"experiment={arm}"))
        for split, other in zip(splits, others, strict=True):
            assert split.digest() == other.digest()
            assert [s.id for s in split.samples] == [s.id for s in other.samples]
            assert [s.record.boxes for s in split.samples] == [s.record.boxes for s in other.samples]


def test_a_share_of_the_training_items_is_its_beginning(splits):
    part, _ = load_splits(config("data.share_pct=20"))
    assert part.ids == splits[0].ids[:12]


def test_another_seed_draws_other_images_and_other_names(splits):
    other, _ = load_splits(config("run.seed=4"))
    assert other.digest() != splits[0].digest()
    named = [{s.record.name: s.record.attributes for s in split.samples} for split in (splits[0], other)]
    shared = named[0].keys() & named[1].keys()
    assert sum(named[0][name] == named[1][name] for name in shared) <= len(shared) / 4


def test_items_are_named_once(splits):
    for split in splits:
        assert len(set(split.ids)) == len(split.ids)
        assert all(a.image <= b.image for a, b in itertools.pairwise(split.samples))


def test_parts_keep_their_images_whatever_their_order():
    one, other = (load_splits(config(f"data.parts=[{parts}]"))[1] for parts in ("known,unseen_pair", "unseen_pair"))
    assert [s.id for s in one.samples if s.record.part == "unseen_pair"] == other.ids
