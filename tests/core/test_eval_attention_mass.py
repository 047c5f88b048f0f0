"""Shares of attention on rows that are made by hand."""

import pytest
import torch

from lightbox.errors import RequestError
from lightbox.eval.attention_mass import attention_mass

QUERIES = torch.tensor([False] * 6 + [True, True])
PLACES, REGION = torch.arange(1, 5), torch.tensor([1.0, 0.5, 0.0, 0.0])


def rows(*given):
    """Attention of two layers with one head: the last two rows as given, in both layers."""
    attention = torch.zeros(2, 1, 8, 8)
    attention[:, :, 6:] = torch.tensor(given)
    return attention


EVEN = rows([1 / 7] * 7 + [0.0], [1 / 8] * 8)


def test_even_attention_is_chance():
    mass = attention_mass(EVEN, QUERIES, PLACES, REGION)
    assert mass.allocation.tolist() == pytest.approx([(4 / 7 + 4 / 8) / 2] * 2)
    assert mass.per_key.tolist() == pytest.approx([1.0, 1.0])
    assert mass.in_region.tolist() == pytest.approx([1.5 / 4] * 2)
    assert mass.enrichment.tolist() == pytest.approx([1.0, 1.0])


def test_attention_on_one_token_counts_by_the_fraction_of_it_that_is_inside():
    whole, half, none = (attention_mass(rows(*[one_hot(k)] * 2), QUERIES, PLACES, REGION) for k in (1, 2, 3))
    assert [float(mass.in_region[0]) for mass in (whole, half, none)] == pytest.approx([1.0, 0.5, 0.0])
    assert float(whole.enrichment[0]) == pytest.approx(4 / 1.5)
    assert float(whole.allocation[0]) == 1


def test_a_query_that_gives_the_image_nothing_looks_anywhere():
    mass = attention_mass(rows(one_hot(0), one_hot(1)), QUERIES, PLACES, REGION)
    assert float(mass.allocation[0]) == 0.5
    assert float(mass.in_region[0]) == pytest.approx((1.5 / 4 + 1) / 2)


def test_late_layers_are_the_second_half():
    attention = EVEN.clone()
    attention[1] = rows(one_hot(1), one_hot(1))[1]
    assert attention_mass(attention, QUERIES, PLACES, REGION).late()["in_region"] == 1.0


def one_hot(place):
    return [float(k == place) for k in range(8)]


@pytest.mark.parametrize(
    ("queries", "places", "region"),
    [
        (torch.zeros(8, dtype=torch.bool), PLACES, REGION),
        (QUERIES, PLACES + 3, REGION),
        (QUERIES, PLACES, torch.zeros(4)),
    ],
)
def test_what_cannot_be_measured_is_refused(queries, places, region):
    with pytest.raises(RequestError, match="a region covers"):
        attention_mass(EVEN, queries, places, region)
