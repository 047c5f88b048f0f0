"""Losses over preference pairs, all from the log-probabilities of whole answers: one signature, many objectives.

Each pair has an answer that is preferred and one that is not, or one answer under the true image and another image.
An objective reads of an answer how likely the policy finds it, how likely the reference found it, and its length.

With h = log pi(y|x) - log pi_ref(y|x), sums over the n tokens of an answer, w preferred, l not, and L(d) = -log
sigmoid(d):

| objective | loss of a pair | source |
|---|---|---|
| dpo | L(beta (h_w - h_l)) | Rafailov et al. 2023, eq. 7 |
| dpo, smoothing e | (1 - e) L(beta (h_w - h_l)) + e L(beta (h_l - h_w)) | cDPO, Mitchell 2023 |
| robust | the same with weights (1 - e) / (1 - 2e) and -e / (1 - 2e) | Chowdhury et al. 2024 |
| ipo | (h_w / n_w - h_l / n_l - 1 / (2 beta))^2 | Azar et al. 2023, eq. 17, its h a mean over tokens |
| kto | sigmoid(-beta (h_w - z)) + sigmoid(-beta (z - h_l)), z the drift | Ethayarajh et al. 2024 |
| simpo | L(beta (log pi_w / n_w - log pi_l / n_l) - margin); no reference | Meng et al. 2024 |
| orpo | -log pi_w / n_w + beta L(o_w - o_l), o the log odds of the mean token; no reference | Hong et al. 2024 |
| vco | L(beta (h_w - h_o)) + L(beta (h_o - h_l)), o the same answer without an image | S-VCO, Wu et al. 2025 |

S-VCO takes each pair twice, the second time with the roles of the images switched and the answer of the other: give
both rows. A set whose other image is a destroyed one has no answer of its own and gives one row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightbox.errors import RequestError


@dataclass(frozen=True)
class Answers:
    """One answer of each pair.

    Args:
        policy: sum of the log-probabilities of its tokens, <= 0, with gradient.
        tokens: how many tokens that is; where it is 0 the pair gives no loss.
        reference: the same sum by the reference, without gradient; None for objectives without one.
    """

    policy: Float[Tensor, " b"]
    tokens: Int[Tensor, " b"]
    reference: Float[Tensor, " b"] | None = None

    @property
    def gain(self) -> Float[Tensor, " b"]:
        """h: how much likelier than to the reference, in nats."""
        assert self.reference is not None, "checked by preference_loss"
        return self.policy - self.reference.detach()

    def mean(self, value: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """A sum over tokens as a mean over them."""
        return value / self.tokens.clamp(min=1)


@dataclass(frozen=True)
class Settings:
    """Numbers of an objective.

    Args:
        beta: how far the policy may leave the reference, > 0; the smaller the farther. In orpo the weight of the odds.
        smoothing: dpo, robust: share of pairs taken to be the wrong way round, in [0, 0.5).
        margin: simpo: what the preferred answer shall lead by, >= 0.
        drift: kto: z, see `kto_drift`, >= 0, without gradient.
    """

    beta: float = 0.1
    smoothing: float = 0.0
    margin: float = 0.0
    drift: float = 0.0


@dataclass(frozen=True)
class Pairs:
    """What an objective reads: the preferred answer, the other, and the preferred one without an image (vco alone)."""

    chosen: Answers
    rejected: Answers
    blind: Answers | None = None


def preference_loss(
    chosen: Answers,
    rejected: Answers,
    objective: str = "dpo",
    *,
    weights: Float[Tensor, " b"] | None = None,
    blind: Answers | None = None,
    beta: float = 0.1,
    smoothing: float = 0.0,
    margin: float = 0.0,
    drift: float = 0.0,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Sum an objective over pairs.

    Args:
        chosen: the preferred answers; under the true image, where the images differ.
        rejected: the others; the same answers under the other image, where the images differ.
        objective: a name in `OBJECTIVES`.
        weights: of the pairs, >= 0, such as MMedPO's clinical relevance; None is 1 each.
        blind: vco: the preferred answers without an image.
        beta, smoothing, margin, drift: see `Settings`.

    Returns:
        The weighted sum, with gradient to the policy's log-probabilities, and the number of pairs that count: those
        with at least one token in each answer. The mean is over pairs and not over weights, so that weights scale a
        pair's part. Where no pair counts, both are 0 and so is the gradient.

    Raises:
        RequestError: an unknown objective, a number out of its range, or a reference or `blind` that is
            needed and missing.

    Example:
        >>> import torch
        >>> same = Answers(torch.tensor([-3.0]), torch.tensor([4]), torch.tensor([-3.0]))
        >>> round(float(preference_loss(same, same)[0]), 4)  # log 2: nothing is preferred yet
        0.6931
    """
    entry, settings = objective_of(objective), _checked(Settings(beta, smoothing, margin, drift))
    answers = [chosen, rejected] if blind is None else [chosen, rejected, blind]
    _check_answers(objective, answers, has_blind=blind is not None)
    counts = torch.stack([own.tokens > 0 for own in answers]).all(dim=0)  # b
    losses = entry.of(Pairs(chosen, rejected, blind), settings)
    if weights is not None:
        losses = losses * weights
    # where and not a product: a pair without tokens may have an infinite loss, and 0 times that is NaN
    return torch.where(counts, losses, torch.zeros_like(losses)).sum(), counts.sum()


def rewards(chosen: Answers, rejected: Answers, beta: float) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """What DPO takes to be the rewards of both answers, beta h, without gradient; a pair is won where the first leads.

    Raises:
        RequestError: answers without a reference.
    """
    _check_answers("dpo", [chosen, rejected], has_blind=False)
    return beta * chosen.gain.detach(), beta * rejected.gain.detach()


def kto_drift(mismatched: Sequence[Answers]) -> float:
    """z of kto: how far the policy has left the reference, the mean of h over answers to other prompts, at least 0.

    Implements the estimate of Ethayarajh et al. 2024, section 4.1, as trl does: the answers that rewards are computed
    of, each beside the prompt of another one.

    Args:
        mismatched: answers with a reference; rows without tokens are left out.
    """
    gains = torch.cat([own.gain.detach()[own.tokens > 0] for own in mismatched])
    return max(0.0, float(gains.mean())) if len(gains) else 0.0


def is_won(chosen: Answers, rejected: Answers) -> Bool[Tensor, " b"]:
    """Whether the policy already finds the preferred answer the likelier one; read at step 0, where no reward leads."""
    return chosen.policy > rejected.policy


def _cost(lead: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """L of the module's table: -log sigmoid, log 2 where nothing leads."""
    return -F.logsigmoid(lead)


def _lead(pairs: Pairs, settings: Settings) -> Float[Tensor, " b"]:
    return settings.beta * (pairs.chosen.gain - pairs.rejected.gain)


def _dpo(pairs: Pairs, settings: Settings) -> Float[Tensor, " b"]:
    lead = _lead(pairs, settings)
    return (1 - settings.smoothing) * _cost(lead) + settings.smoothing * _cost(-lead)


def _robust(pairs: Pairs, settings: Settings) -> Float[Tensor, " b"]:
    lead = _lead(pairs, settings)
    return ((1 - settings.smoothing) * _cost(lead) - settings.smoothing * _cost(-lead)) / (1 - 2 * settings.smoothing)


def _ipo(pairs: Pairs, settings: Settings) -> Float[Tensor, " b"]:
    lead = pairs.chosen.mean(pairs.chosen.gain) - pairs.rejected.mean(pairs.rejected.gain)
    return (lead - 1 / (2 * settings.beta)) ** 2


def _kto(pairs: Pairs, settings: Settings) -> Float[Tensor, " b"]:
    above = settings.beta * (pairs.chosen.gain - settings.drift)
    below = settings.beta * (settings.drift - pairs.rejected.gain)
    return (1 - above.sigmoid()) + (1 - below.sigmoid())


def _simpo(pairs: Pairs, settings: Settings) -> Float[Tensor, " b"]:
    lead = pairs.chosen.mean(pairs.chosen.policy) - pairs.rejected.mean(pairs.rejected.policy)
    return _cost(settings.beta * lead - settings.margin)


def _orpo(pairs: Pairs, settings: Settings) -> Float[Tensor, " b"]:
    chosen, rejected = (own.mean(own.policy) for own in (pairs.chosen, pairs.rejected))
    return -chosen + settings.beta * _cost(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(logp: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """log(p / (1 - p)) from log p <= 0."""
    # a probability that rounds to 1 has infinite odds and no gradient; the smallest step below 1 has both
    logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    return logp - torch.log(-torch.expm1(logp))


def _vco(pairs: Pairs, settings: Settings) -> Float[Tensor, " b"]:
    assert pairs.blind is not None, "checked by preference_loss"
    attends = settings.beta * (pairs.chosen.gain - pairs.blind.gain)
    rejects = settings.beta * (pairs.blind.gain - pairs.rejected.gain)
    return _cost(attends) + _cost(rejects)


@dataclass(frozen=True)
class Objective:
    """A loss of each pair, and what it reads beside what the policy finds of both answers.

    Args:
        of: the loss.
        has_reference: what the reference finds of them.
        reads_blind: the preferred answer without an image.
        reads_mismatched: both answers of another pair beside the prompt of this one, for `kto_drift`.
    """

    of: Callable[[Pairs, Settings], Float[Tensor, " b"]]
    has_reference: bool = True
    reads_blind: bool = False
    reads_mismatched: bool = False

    @property
    def n_answers(self) -> int:
        """Answers of a pair that it reads, in the order of the fields above."""
        return 2 + self.reads_blind + 2 * self.reads_mismatched


OBJECTIVES = {
    "dpo": Objective(_dpo),
    "robust": Objective(_robust),
    "ipo": Objective(_ipo),
    "kto": Objective(_kto, reads_mismatched=True),
    "simpo": Objective(_simpo, has_reference=False),
    "orpo": Objective(_orpo, has_reference=False),
    "vco": Objective(_vco, reads_blind=True),
}
"""Every objective by name."""


def objective_of(name: str) -> Objective:
    """What an objective reads.

    Raises:
        RequestError: an unknown name.
    """
    if name not in OBJECTIVES:
        raise RequestError(
            f"objective is '{name}'", f"The objectives are {', '.join(OBJECTIVES)}", "Choose one of them"
        )
    return OBJECTIVES[name]


def _checked(settings: Settings) -> Settings:
    ranges = {
        "beta": (settings.beta > 0, "above 0"),
        "smoothing": (0 <= settings.smoothing < 0.5, "in [0, 0.5): beyond half, the pairs are the other way round"),
        "margin": (settings.margin >= 0, "at least 0"),
        "drift": (settings.drift >= 0, "at least 0, as a divergence is"),
    }
    for name, (is_right, bound) in ranges.items():
        if not is_right:
            raise RequestError(f"{name} is {getattr(settings, name)}", f"It must be {bound}", f"Set {name} so")
    return settings


def _check_answers(objective: str, answers: list[Answers], *, has_blind: bool) -> None:
    entry = OBJECTIVES[objective]
    if entry.reads_blind != has_blind:
        raise RequestError(
            f"objective '{objective}' {'with' if has_blind else 'without'} answers that saw no image",
            "It compares both images with none" if entry.reads_blind else "It reads two answers",
            "Give blind=" if entry.reads_blind else "Leave blind out, or choose vco",
        )
    if entry.has_reference and any(own.reference is None for own in answers):
        raise RequestError(
            f"objective '{objective}' with answers that have no reference",
            "It rewards what the policy finds likelier than the reference did",
            "Compute the reference's log-probabilities once, or choose simpo or orpo",
        )
