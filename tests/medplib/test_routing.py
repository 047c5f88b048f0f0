"""Who goes where: balance by hand, counts by task and type of token, information in bits, rows under a capacity."""

import math
from collections import Counter

import pytest
import torch
from torch import nn

from lightbox.errors import RequestError
from lightbox.eval.routing_table import EVERY, TASK, TYPE, RoutingTable
from lightbox.paper.padded_experts import padded_rows
from medplib.experts import Mixture, MixtureSettings, TokenRouter
from medplib.routing import (
    Routing,
    balanced,
    centre_routers,
    counted,
    routed_to,
    routing_of,
)

NAMES = ("grounding", "language")


@pytest.fixture
def mixture():
    """Two experts of width 2, and a router that sends a row by the larger of its two numbers."""
    router = TokenRouter(2, NAMES, generator=torch.Generator().manual_seed(0), is_learned=True)
    with torch.no_grad():
        router.rows["grounding"].copy_(torch.tensor([1.0, 0.0]))
        router.rows["language"].copy_(torch.tensor([0.0, 1.0]))
    experts = {name: nn.Linear(2, 2, bias=False) for name in NAMES}
    return Mixture(experts, router, MixtureSettings(), Routing(NAMES), 0).eval()


HIDDEN = torch.tensor(
    [[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]], [[3.0, 0.0], [0.0, 2.0], [9.0, 9.0]]]
)  # the last is padding
PLACES = torch.arange(5)


def test_balance_is_the_sum_of_shares_times_probabilities(mixture):
    mixture.places = PLACES
    with balanced(mixture) as terms:
        mixture(HIDDEN)
    p = torch.tensor([1.0, 2.0, -1.0, 3.0, -2.0]).sigmoid()  # of the first expert, for the five tokens
    wanted = 2 * (p.mean() * 3 / 5 + (1 - p.mean()) * 2 / 5)
    torch.testing.assert_close(sum(terms), wanted)
    sum(terms).backward()
    assert mixture.router.rows["grounding"].grad.abs().max() > 1e-3
    mixture(HIDDEN)
    assert len(terms) == 1  # outside nothing is recorded


def test_balance_is_1_where_experts_are_used_alike(mixture):
    with balanced(mixture) as terms:
        mixture(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    assert float(terms[0].detach()) == pytest.approx(1.0)


def test_tokens_are_counted_by_task_and_by_type(mixture):
    mixture.places = PLACES
    image = torch.tensor([[True, False, False], [True, False, True]])
    with counted(mixture, tasks=("ground", "answer"), token_types={"image": image, "text": ~image}) as table:
        mixture(HIDDEN)
        mixture(HIDDEN)
    assert table.shares()[0, ""] == {"grounding": 0.6, "language": 0.4}
    assert table.shares(TASK) == {
        (0, "ground"): {"grounding": pytest.approx(2 / 3), "language": pytest.approx(1 / 3)},
        (0, "answer"): {"grounding": 0.5, "language": 0.5},
    }
    assert table.rows[0, TYPE, "image", "grounding"] == 4
    assert table.rows[0, TYPE, "text", "language"] == 4
    assert sum(n for key, n in table.rows.items() if key[1] == EVERY) == 10


def test_information_is_one_bit_for_experts_of_tasks_and_none_for_tasks_that_are_routed_alike():
    rows = {("a", "grounding"): 5, ("b", "language"): 5}
    apart = RoutingTable(rows=Counter({(0, TASK, task, name): n for (task, name), n in rows.items()}))
    assert apart.information(TASK) == {0: pytest.approx(1.0)}
    alike = RoutingTable(
        rows=Counter({(0, TASK, task, name): n for task in "ab" for name, n in zip(NAMES, (9, 1), strict=True)})
    )
    assert alike.information(TASK) == {0: pytest.approx(0.0)}
    half = RoutingTable(
        rows=Counter({(1, TASK, "a", "grounding"): 2, (1, TASK, "b", "grounding"): 1, (1, TASK, "b", "language"): 1})
    )
    wanted = 0.5 * math.log2(0.5 / (0.5 * 0.75)) + 0.25 * math.log2(0.25 / (0.5 * 0.75)) + 0.25 * math.log2(2)
    assert half.information(TASK) == {1: pytest.approx(wanted)}


def test_forced_rows_are_counted_and_the_router_is_not_asked(mixture):
    mixture.router = None
    with routed_to(mixture, "language"), counted(mixture) as table:
        out = mixture(HIDDEN)
    assert table.shares()[0, ""] == {"grounding": 0.0, "language": 1.0}
    torch.testing.assert_close(out, mixture.experts["language"](HIDDEN))


def test_counting_in_training_is_refused(mixture):
    with pytest.raises(RequestError, match="Routing counted in training mode"), counted(mixture.train()):
        pass


def test_a_model_without_experts_has_no_routing():
    with pytest.raises(RequestError, match="A model without experts"):
        routing_of(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("counts", "factor", "entering", "dropped"),
    [
        ([350, 350], 1.5, 1050, 0),  # 1.5 times the rows of one expert
        ([350, 350], 2.0, 1400, 0),  # 2 times in evaluation
        ([700, 0], 1.5, 1050, 175),  # a quarter of the tokens loses its expert
        ([700, 0], 2.0, 1400, 0),
        ([1, 0], 1.5, 2, 0),  # a step of decoding reads both experts
    ],
)
def test_rows_of_the_official_settings(counts, factor, entering, dropped):
    rows = padded_rows(counts, factor=factor)
    assert (rows.entering, rows.dropped) == (entering, dropped)


def test_centred_routers_give_each_expert_tokens_where_states_share_a_mean():
    experts = {name: nn.Linear(16, 16) for name in NAMES}
    router = TokenRouter(16, NAMES, generator=torch.Generator().manual_seed(0), is_learned=True)
    first, second = (row.detach() for row in router.parameters())
    apart = torch.randn(1, 200, 16, generator=torch.Generator().manual_seed(1))
    states = apart + 30 * (first - second)  # all of them are nearer to the first
    mixture = Mixture(experts, router, MixtureSettings(), Routing(NAMES), 0).eval()
    shares = []
    for _ in range(2):
        with counted(mixture) as table, torch.no_grad():
            mixture(states)
        shares.append(min(table.shares()[0, ""].values()))
        centre_routers(mixture, lambda: mixture(states))
    assert shares[0] == 0
    assert shares[1] > 0.3
    assert not router._forward_pre_hooks
