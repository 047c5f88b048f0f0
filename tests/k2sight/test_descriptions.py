"""Names and definitions, and the controls that take the meaning out of them."""

from collections import Counter

import pytest

from k2sight.descriptions import FILLERS_A_WORD, KNOWN, PARTS, define, phantom_classes, real_classes
from lightbox.errors import RequestError
from lightbox.phantom.ontology import TRIPLES


@pytest.fixture(scope="module")
def classes():
    return phantom_classes(7)


def test_each_triple_has_a_name_of_its_own_and_another_one_in_another_run(classes):
    assert len(set(classes.names)) == len(TRIPLES) == len(classes.values)
    other = phantom_classes(8)
    assert set(other.names) == set(classes.names)
    assert sum(a == b for a, b in zip(classes.names, other.names, strict=True)) < 10


def test_names_say_nothing_about_attributes(classes):
    """The share of classes with the commonest value among names of one first letter is that of chance."""
    for letter in "vzjq":
        shapes = [value[0] for name, value in zip(classes.names, classes.values, strict=True) if name[0] == letter]
        assert Counter(shapes).most_common(1)[0][1] / len(shapes) < 0.35


def test_a_definition_names_three_attributes_in_words_of_their_own(classes):
    said = {tuple(words.values()) for words in classes.words}
    assert len(said) > 150
    name = classes.names[TRIPLES.index(("disc", "dense", "hilum"))]
    shape, density, location = define(classes, name, "true").split(", ")
    assert shape in ("coin", "ball", "button")
    assert density in ("white", "solid", "opaque")
    assert location in ("root", "gate", "hub")


def test_a_scrambled_definition_is_always_the_same_other_class_of_the_same_part(classes):
    partners = classes.partners
    assert sorted(partners) == list(range(len(TRIPLES)))
    assert all(place != other for place, other in enumerate(partners))
    assert all(classes.parts[place] == classes.parts[other] for place, other in enumerate(partners))
    name = classes.names[5]
    assert define(classes, name, "scrambled", item=1) == define(classes, name, "scrambled", item=2)
    assert define(classes, name, "scrambled") == define(classes, classes.names[partners[5]], "true")


def test_a_random_definition_is_another_one_for_each_item_and_never_the_own(classes):
    name = classes.names[5]
    said = [define(classes, name, "random", item=item) for item in range(300)]
    own = [define(classes, one, "true") for one in classes.names]
    places = {own.index(text) for text in said}
    assert len(places) > 30
    assert 5 not in places
    assert {classes.parts[place] for place in places} == {classes.parts[5]}


def test_the_nearest_class_is_known_and_shares_two_attributes(classes):
    for place, part in enumerate(classes.parts):
        near = classes.nearest(place)
        assert near != place
        assert classes.parts[near] == KNOWN
        if part == "unseen_composition":
            assert sum(a == b for a, b in zip(classes.values[place], classes.values[near], strict=True)) == 2


@pytest.mark.parametrize("kind", ["shape", "density", "location"])
def test_an_attribute_can_be_left_out_or_stand_alone(classes, kind):
    name, words = classes.names[9], classes.words[9]
    assert define(classes, name, f"no_{kind}") == ", ".join(v for k, v in words.items() if k != kind)
    assert define(classes, name, f"only_{kind}") == words[kind]


def test_a_long_definition_says_the_same_with_more_words(classes):
    short, long = (define(classes, classes.names[9], how) for how in ("true", "long"))
    assert long.startswith(short)
    assert len(long.split()) == (1 + FILLERS_A_WORD) * len(short.split())
    words = {word for said in classes.words for text in said.values() for word in text.split()}
    assert not {*long.removeprefix(short).split()} & words


def test_parts_are_those_of_the_phantom(classes):
    assert set(classes.parts) == set(PARTS)


def test_a_real_class_is_described_by_the_knowledge_table():
    classes = real_classes(["Pneumothorax", "Cardiomegaly", "Atelectasis"], ["Cardiomegaly"], seed=0)
    assert len(define(classes, "Pneumothorax", "true").split(", ")) >= 3
    assert classes.parts == ("new", "known", "new")


def test_a_real_class_without_a_row_is_refused():
    with pytest.raises(RequestError, match="'leukocyte'"):
        real_classes(["leukocyte"], ["leukocyte"], seed=0)
