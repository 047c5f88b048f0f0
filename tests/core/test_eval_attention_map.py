"""A map of attention: its mean is 1, its places are those of the tokens, and it fits what goes to a region."""

import pytest
import torch

from lightbox.errors import RequestError
from lightbox.eval.attention_map import attention_map
from lightbox.eval.attention_mass import attention_mass


def random_attention(layers=4, heads=2, length=9):
    torch.manual_seed(0)
    scores = torch.randn(layers, heads, length, length) + torch.full((length, length), -torch.inf).triu(1)
    return scores.softmax(dim=-1)


LAST = torch.arange(9) >= 7
PLACES = torch.arange(1, 7)


def test_even_attention_is_one_everywhere():
    even = torch.tril(torch.ones(2, 1, 9, 9)) / torch.arange(1, 10)[:, None]
    torch.testing.assert_close(attention_map(even, LAST, PLACES, (2, 3)), torch.ones(2, 3))


def test_what_one_token_gets_stands_at_its_row_and_column():
    attention = torch.zeros(2, 1, 9, 9)
    attention[..., 0] = 0.5
    attention[..., int(PLACES[4])] = 0.5
    expected = torch.zeros(2, 3)
    expected[1, 1] = 6.0
    torch.testing.assert_close(attention_map(attention, LAST, PLACES, (2, 3)), expected)


def test_only_the_later_layers_count_and_the_mean_is_one():
    attention = random_attention()
    own = attention_map(attention, LAST, PLACES, (2, 3))
    assert float(own.mean()) == pytest.approx(1.0)
    changed = attention.clone()
    changed[:2] = 1 / 9
    torch.testing.assert_close(attention_map(changed, LAST, PLACES, (2, 3)), own)
    assert not torch.allclose(attention_map(attention.flip(0), LAST, PLACES, (2, 3)), own)


def test_its_mean_over_a_region_is_the_enrichment_there():
    attention, weights = random_attention(), torch.tensor([1.0, 0.5, 0.0, 0.0, 0.25, 0.0])
    enrichment = attention_mass(attention, LAST, PLACES, weights).late()["enrichment"]
    own = attention_map(attention, LAST, PLACES, (3, 2)).flatten()
    assert float((own * weights).sum() / weights.sum()) == pytest.approx(enrichment, rel=1e-5)


@pytest.mark.parametrize(
    ("queries", "grid"), [(torch.zeros(9, dtype=torch.bool), (2, 3)), (LAST, (2, 2)), (LAST, (3, 3))]
)
def test_another_number_of_tokens_or_no_query_is_refused(queries, grid):
    with pytest.raises(RequestError, match="Name queries behind the image"):
        attention_map(random_attention(), queries, PLACES, grid)


def test_a_query_that_gives_the_image_nothing_looks_anywhere():
    attention = random_attention()
    attention[:, :, 8] = 0
    attention[:, :, 8, 0] = 1
    one = attention_map(attention, torch.arange(9) == 7, PLACES, (2, 3))
    both = attention_map(attention, LAST, PLACES, (2, 3))
    torch.testing.assert_close(both, (one + 1) / 2)
