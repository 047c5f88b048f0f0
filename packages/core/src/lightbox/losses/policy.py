"""Losses of a policy that is rewarded for whole episodes in groups (GRPO), over the tokens that it chose itself.

With rho = pi(token) / pi_old(token), A the advantage of the token's episode, e the clips, c the dual clip, and d =
log pi_ref - log pi, the loss of a token is

    -min(rho A, clip(rho, 1 - e_low, 1 + e_high) A), for A < 0 at most -c A,  + kl (exp(d) - d - 1)

| part | source |
|---|---|
| advantages of a group, k3 | Shao et al. 2024 (DeepSeekMath), section 4.1; without std: Liu et al. 2025 (Dr. GRPO) |
| clip, dual clip | Schulman et al. 2017, eq. 7; Ye et al. 2020, eq. 5 |
| mean over tokens or over sequences | verl and DAPO (Yu et al. 2025) the first, DeepSeekMath the second |
| shaping by uncertainty | OphthaReason (arXiv 2508.16129), whose formula is not published: our reading |
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightbox.errors import RequestError

MOST_LOG_RATIO = 20.0  # exp of more would be infinite in half precision, and 0 times that is NaN where A is 0


@dataclass(frozen=True)
class Clips:
    """How far a policy may move on a batch of episodes.

    Args:
        low, high: how far rho may fall below and rise above 1 before an advantage stops counting; low in [0, 1), high
            at least 0.
        dual: the most that a bad episode's token counts, as a multiple of its advantage, above 1 + high; None is no
            limit.
        kl: weight of the divergence from a reference, >= 0; 0 reads no reference.
        is_token_mean: True weighs tokens alike, so long episodes more; False weighs sequences alike.

    Raises:
        RequestError: a number out of its range.
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = 3.0
    kl: float = 0.0
    is_token_mean: bool = True

    def __post_init__(self) -> None:
        is_dual = self.dual is None or self.dual > 1 + self.high
        if not (0 <= self.low < 1 and self.high >= 0 and self.kl >= 0 and is_dual):
            raise RequestError(
                f"Clips low {self.low}, high {self.high}, dual {self.dual}, kl {self.kl}",
                "low lies in [0, 1), high and kl are at least 0, and dual lies above 1 + high, or the clip hides it",
                "Correct them; ViTAR's are 0.2, 0.2, 3 and 0",
            )


def group_advantages(
    rewards: Float[Tensor, " b"], group: int, *, is_scaled: bool = True, eps: float = 1e-6
) -> Float[Tensor, " b"]:
    """How much better each episode is than its group, exactly 0 in a group whose episodes all earn the same.

    Args:
        rewards: finite; the episodes of a prompt stand in a row.
        group: episodes a prompt, >= 1; one alone has advantage 0.
        is_scaled: divide by the group's sample standard deviation; False is Dr. GRPO, which does not weigh prompts up
            that are nearly always or nearly never solved.
        eps: beside the deviation; 1e-6 in verl, 1e-4 in trl.

    Raises:
        RequestError: a number of rewards that is no multiple of `group`, or a reward that is not finite.

    Example:
        >>> import torch
        >>> group_advantages(torch.tensor([0.0, 2.0, 0.1, 0.1]), 2, is_scaled=False)
        tensor([-1.,  1.,  0.,  0.])
    """
    if group < 1 or len(rewards) % group or not bool(torch.isfinite(rewards).all()):
        raise RequestError(
            f"{len(rewards)} rewards in groups of {group}, {int((~torch.isfinite(rewards)).sum())} of them not finite",
            "Each is compared with the others of its prompt",
            "Give a whole number of groups, and count terms that are not finite before",
        )
    grouped = rewards.detach().view(-1, group)
    advantages = grouped - grouped.mean(dim=1, keepdim=True)
    if is_scaled and group > 1:
        advantages = advantages / (grouped.std(dim=1, keepdim=True) + eps)
    is_same = grouped.amin(dim=1, keepdim=True) == grouped.amax(dim=1, keepdim=True)
    # a mean of equal numbers may differ from them by rounding, which the deviation would then blow up
    return torch.where(is_same, 0.0, advantages).flatten()


def zero_variance_share(rewards: Float[Tensor, " b"], group: int) -> float:
    """Share of groups whose episodes all earn the same, in [0, 1]: they teach nothing.

    Example:
        >>> import torch
        >>> zero_variance_share(torch.tensor([1.0, 1.0, 0.2, 1.4]), 2)
        0.5
    """
    return float(group_advantages(rewards, group, is_scaled=False).view(-1, group).eq(0).all(dim=1).float().mean())


def shaped_advantages(
    advantages: Float[Tensor, " b"], entropies: Float[Tensor, " b"], threshold: float, *, strength: float = 0.3
) -> Float[Tensor, " b"]:
    """Let uncertain episodes count more where they were good, and less where they were bad; our reading of UADT.

    With w = tanh((H - threshold) / threshold), A becomes A (1 + strength w) above 0 and A (1 - strength w) below.

    Args:
        advantages: of the episodes.
        entropies: H, mean entropy of each episode's own tokens, in nats, >= 0.
        threshold: from `moved_threshold`, > 0.
        strength: in [0, 1); 0 changes nothing.

    Raises:
        RequestError: a threshold or strength out of its range.
    """
    if not (threshold > 0 and 0 <= strength < 1):
        raise RequestError(
            f"threshold {threshold}, strength {strength}",
            "The threshold is a mean entropy above 0, and from strength 1 on an advantage could change its sign",
            "Correct them",
        )
    moved = strength * torch.tanh((entropies.detach() - threshold) / threshold)
    return advantages * (1 + torch.sign(advantages) * moved)


def moved_threshold(before: float | None, entropies: Float[Tensor, " b"], *, decay: float = 0.9) -> float:
    """The running mean of entropies after another batch; the batch's own mean where there was none before."""
    mean = float(entropies.mean())
    return mean if before is None else decay * before + (1 - decay) * mean


def token_entropies(logits: Float[Tensor, "n v"]) -> Float[Tensor, " n"]:
    """Entropy of each row's distribution in nats, in [0, log v]; computed in float32 at least."""
    logps = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(dim=-1)
    return -(logps.exp() * logps.clamp(min=torch.finfo(logps.dtype).min)).sum(dim=-1)  # 0 times -inf is NaN


def policy_loss(
    logps: Float[Tensor, "b t"],
    advantages: Float[Tensor, " b"],
    is_chosen: Bool[Tensor, "b t"],
    *,
    old_logps: Float[Tensor, "b t"] | None = None,
    reference_logps: Float[Tensor, "b t"] | None = None,
    clips: Clips = Clips(),
) -> tuple[Float[Tensor, ""], Int[Tensor, ""], dict[str, Tensor]]:
    """Sum the loss of episodes.

    Args:
        logps: log-probability of each token under the policy, with gradient.
        advantages: of the episodes; no gradient flows to them.
        is_chosen: True for tokens that the policy chose; what it was told (prompt, observations, padding) is neither
            read nor counted.
        old_logps: of the policy that chose; None takes `logps` themselves, for one step a batch.
        reference_logps: of the reference, where `clips.kl` is above 0.
        clips: see `Clips`.

    Returns:
        The sum over chosen tokens, or over sequences of the mean of each, with gradient; how many tokens, or sequences
        with a token, that is; detached shares of the chosen tokens in [0, 1], `clipped` and `dual_clipped`, the mean
        `ratio`, and the mean `kl` in nats. Where nothing was chosen all are 0, and so is the gradient.

    Raises:
        RequestError: a divergence without a reference.

    Example:
        >>> import torch
        >>> chosen = torch.tensor([[True, True, False]])
        >>> total, tokens, _ = policy_loss(torch.full((1, 3), -1.0), torch.tensor([0.5]), chosen)
        >>> float(total), int(tokens)
        (-1.0, 2)
    """
    if clips.kl > 0 and reference_logps is None:
        raise RequestError(
            f"kl is {clips.kl} without a reference",
            "The divergence is from its log-probabilities",
            "Give reference_logps, or set kl to 0",
        )
    zero = logps.new_zeros(())
    own = torch.where(is_chosen, logps, zero)  # before any exponential: a place that is not read may hold anything
    old = own.detach() if old_logps is None else torch.where(is_chosen, old_logps, zero).detach()
    ratio = (own - old).clamp(max=MOST_LOG_RATIO).exp()
    gain = advantages.detach()[:, None]
    clipped = ratio.clamp(1 - clips.low, 1 + clips.high) * gain
    objective = torch.minimum(ratio * gain, clipped)
    is_clipped = ratio * gain > clipped
    is_dual = torch.zeros_like(is_clipped)
    if clips.dual is not None:
        is_dual = (gain < 0) & (objective < clips.dual * gain)
        objective = torch.where(is_dual, clips.dual * gain, objective)
    losses, divergence = -objective, torch.zeros_like(own)
    if reference_logps is not None:
        log_ratio = torch.where(is_chosen, reference_logps, zero).detach() - own
        divergence = log_ratio.clamp(max=MOST_LOG_RATIO).exp() - log_ratio - 1  # k3
        losses = losses + clips.kl * divergence if clips.kl > 0 else losses
    losses = torch.where(is_chosen, losses, zero)
    tokens = is_chosen.sum(dim=1)  # b
    count = tokens.sum() if clips.is_token_mean else (tokens > 0).sum()
    total = losses.sum() if clips.is_token_mean else (losses.sum(dim=1) / tokens.clamp(min=1)).sum()
    values = {"clipped": is_clipped, "dual_clipped": is_dual, "ratio": ratio, "kl": divergence}
    means = {name: (value.detach() * is_chosen).sum() / tokens.sum().clamp(min=1) for name, value in values.items()}
    return total, count, means
