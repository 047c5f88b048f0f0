"""A policy that learns from its own episodes, each compared with the others of its prompt (GRPO).

A step has two stages: the policy, as it is, plays every prompt of the step `group` times, and what each episode earned
above its group's mean is its advantage; then one update follows over the tokens that the policy chose. There is one
update a batch of episodes, as in ViTAR's launcher, so the ratio to the policy that played is 1 up to rounding, and the
clips act only where an engine with other numbers played.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.episodes import batch_of_ids
from lightbox.backbones.rows import IGNORED, VlmBatch, stacked
from lightbox.config import OptimConfig, RunConfig, TrainConfig
from lightbox.errors import RequestError
from lightbox.losses.language import token_logps
from lightbox.losses.policy import (
    Clips,
    group_advantages,
    moved_threshold,
    policy_loss,
    shaped_advantages,
    token_entropies,
    zero_variance_share,
)
from lightbox.train.batches import BatchSource
from lightbox.train.driver import History, fit

MOST_SEED = 2**31
ALARM_STEPS = 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Played:
    """One episode.

    Args:
        ids: all tokens that were read or chosen, without padding; none where nothing could be read.
        is_chosen: beside them, True for what the policy chose.
        logps: of each chosen token under the policy that played, in nats.
        images: in order, one for each run of image tokens.
        reward: finite.
        values: what is logged of it, by name.
    """

    ids: Sequence[int]
    is_chosen: Sequence[bool]
    logps: Sequence[float]
    images: Sequence[Image.Image]
    reward: float
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupSettings:
    """How episodes are compared and learnt from.

    Args:
        group: episodes a prompt, >= 2: one alone has nothing to be compared with.
        clips: how far an update may go, see `losses.policy.Clips`.
        is_scaled: divide advantages by the group's deviation; False is Dr. GRPO.
        shaping: strength in [0, 1) by which uncertain episodes count more where they were good, see
            `losses.policy.shaped_advantages`; 0 costs nothing, more costs another forward a step.

    Raises:
        RequestError: a number out of its range.
    """

    group: int = 8
    clips: Clips = Clips()
    is_scaled: bool = True
    shaping: float = 0.0

    def __post_init__(self) -> None:
        if self.group < 2 or not 0 <= self.shaping < 1:
            raise RequestError(
                f"Groups of {self.group} with shaping {self.shaping}",
                "An episode is compared with the others of its group, and shaping must not turn an advantage round",
                "Set the group to at least 2 and the strength in [0, 1)",
            )


Play = Callable[[Backbone, list[int], list[int]], list[Played]]
"""(policy, indices of prompts, a seed an episode) -> episode g of prompt i at i * group + g. Nothing that a policy does
may raise."""


@dataclass(frozen=True)
class Group:
    """The episodes of one prompt.

    Args:
        episodes: as they were played.
        advantages: one each.
        values: means over all episodes of the step, by name.
    """

    episodes: Sequence[Played]
    advantages: Sequence[float]
    values: dict[str, float]


@dataclass(frozen=True)
class GroupBatch:
    """Episodes with tokens, to be learnt from.

    Args:
        rows: their tokens; labels are those that the policy chose. None where no episode has any.
        advantages: one an episode.
        old_logps: b t, beside the labels, of the policy that played.
        values: means over the episodes of the step, by name.
    """

    rows: VlmBatch | None
    advantages: Float[Tensor, " b"]
    old_logps: Float[Tensor, "b t"]
    values: dict[str, float]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch on a device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=non_blocking) for name in ("advantages", "old_logps")
        }
        rows = None if self.rows is None else self.rows.to(device, non_blocking=non_blocking)
        return replace(self, rows=rows, **moved)


@dataclass
class Alarm:
    """Warns once where a share stays low for `ALARM_STEPS` steps on end.

    Args:
        what: the share, for the message.
        floor: below which it is low.
        advice: what that means and what to do.
    """

    what: str
    floor: float
    advice: str
    steps: int = field(default=0, init=False)

    def see(self, share: float) -> None:
        """Take note of a step."""
        self.steps = self.steps + 1 if share < self.floor else 0
        if self.steps == ALARM_STEPS:
            _log.warning("In %d steps on end %s was below %g. %s", ALARM_STEPS, self.what, self.floor, self.advice)


class Learning(nn.Module):
    """A policy as the driver trains it: of its parameters it names those that are trained.

    The driver asks of a model that is partly frozen that a gradient reach all that is not. Here none does where all
    episodes of each group earn the same, which is no fault of the settings, and at the start not rare.
    """

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.module = policy  # the name by which wrappers are looked through, see `Reader.core`

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The policy's own."""
        return self.module(*args, **kwargs)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those that are trained."""
        return (own for own in super().parameters(recurse) if own.requires_grad)


def learn_in_groups(
    backbone: Backbone,
    n_prompts: int,
    play: Play,
    *,
    settings: GroupSettings,
    optim: OptimConfig,
    run: RunConfig,
    out: Path,
    train: TrainConfig | None = None,
    facts: Mapping[str, Any] | None = None,
) -> History:
    """Train a policy, or continue from the checkpoints in `out`; see `train.driver.fit`.

    Args:
        backbone: a causal family; what of it needs gradients is trained. Its model is trained in place.
        n_prompts: that there are; a step takes `optim.batch_size` of them.
        play: lets the policy play.
        settings: see `GroupSettings`.
        optim, run, out, train, facts: see `fit`.

    Returns:
        Its curves, with train/reward, train/zero_variance (share of groups that teach nothing), train/entropy (mean of
        the policy's choices, nats), train/clipped, train/dual_clipped, train/ratio, train/kl, and the mean of each of
        the episodes' values.

    Raises:
        RequestError: episodes in another number, and as `fit`.
    """
    reference = _reference(backbone) if settings.clips.kl > 0 else None

    def prepare(model: nn.Module, indices: list[int]) -> list[Group]:
        policy = backbone.with_model(model)
        seeds = torch.randint(MOST_SEED, (len(indices) * settings.group,)).tolist()
        return _compared(policy, play(policy, indices, seeds), len(indices), settings)

    def step(model: nn.Module, batch: GroupBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return _loss(backbone.with_model(model), batch, settings.clips, reference)

    batches = BatchSource(
        n_prompts,
        lambda groups: batch_of_groups(backbone, groups),  # pyright: ignore[reportArgumentType] # see `prepare`
        batch_size=optim.batch_size,
        seed=run.seed,
    )
    return fit(
        Learning(backbone.model),
        step,
        batches,
        optim=optim,
        run=run,
        out=out,
        train=train,
        facts=facts,
        prepare=prepare,
    )


def batch_of_groups(backbone: Backbone, groups: Sequence[Group]) -> GroupBatch:
    """Groups as one batch; episodes without tokens are left out, as nothing was chosen in them."""
    pairs = [
        (episode, advantage)
        for own in groups
        for episode, advantage in zip(own.episodes, own.advantages, strict=True)
        if any(episode.is_chosen)
    ]
    values = groups[0].values
    if not pairs:
        return GroupBatch(None, torch.empty(0), torch.empty(0, 0), values)
    episodes = [episode for episode, _ in pairs]
    rows = batch_of_ids(
        backbone, *([getattr(own, name) for own in episodes] for name in ("ids", "is_chosen", "images"))
    )
    is_label = stacked([list(map(int, own.is_chosen)) for own in episodes], 0, side="right").bool()
    logps = torch.tensor([value for own in episodes for value in own.logps])
    old = torch.zeros(is_label.shape).masked_scatter(is_label, logps)
    return GroupBatch(rows, torch.tensor([advantage for _, advantage in pairs]), old, values)


def _compared(policy: Backbone, episodes: list[Played], n: int, settings: GroupSettings) -> list[Group]:
    if len(episodes) != n * settings.group:
        raise RequestError(
            f"{len(episodes)} episodes of {n} prompts in groups of {settings.group}",
            "Each is compared with the others of its prompt",
            "Let play give one episode a seed, those of a prompt in a row",
        )
    rewards = torch.tensor([own.reward for own in episodes])
    advantages = group_advantages(rewards, settings.group, is_scaled=settings.is_scaled)
    values = {name: sum(own.values[name] for own in episodes) / len(episodes) for name in episodes[0].values}
    values |= {
        "reward": float(rewards.mean()),
        "zero_variance": zero_variance_share(rewards, settings.group),
        "chosen_tokens": sum(len(own.logps) for own in episodes) / len(episodes),
    }
    parts = [slice(start, start + settings.group) for start in range(0, len(episodes), settings.group)]
    if settings.shaping > 0:
        entropies = torch.cat([_entropies(policy, episodes[part]) for part in parts])
        threshold = moved_threshold(None, entropies)
        if threshold > 0:
            advantages = shaped_advantages(advantages, entropies, threshold, strength=settings.shaping)
    return [Group(episodes[part], advantages[part].tolist(), values) for part in parts]


def _entropies(policy: Backbone, episodes: Sequence[Played]) -> Float[Tensor, " b"]:
    """Mean entropy of the choices of each episode of a group, in nats; 0 where it chose nothing."""
    entropies = torch.zeros(len(episodes))
    own = batch_of_groups(policy, [Group(episodes, [0.0] * len(episodes), {})]).to(policy.device).rows
    if own is None or own.labels is None:
        return entropies
    values = token_entropies(policy.supervised_logits(own)[0]).cpu()
    row = (own.labels != IGNORED).nonzero()[:, 0].cpu()
    counts = torch.bincount(row, minlength=len(own.labels))
    means = torch.zeros(len(own.labels)).index_add(0, row, values.float()) / counts
    there = torch.tensor([place for place, episode in enumerate(episodes) if any(episode.is_chosen)])
    return entropies.index_copy(0, there, means)


def _loss(
    policy: Backbone, batch: GroupBatch, clips: Clips, reference: Callable[[VlmBatch], Tensor] | None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    means = {name: torch.tensor(value) for name, value in batch.values.items()}
    if batch.rows is None or batch.rows.labels is None:  # nothing was chosen in the whole step, so nothing is learnt
        trained = next(own for own in policy.model.parameters() if own.requires_grad)
        return trained.sum() * 0, torch.tensor(0), means
    is_chosen = batch.rows.labels != IGNORED
    logits, targets, _ = policy.supervised_logits(batch.rows)
    loss, count, more = policy_loss(
        token_logps(logits, targets, is_chosen),
        batch.advantages,
        is_chosen,
        old_logps=batch.old_logps,
        reference_logps=None if reference is None else reference(batch.rows),
        clips=clips,
    )
    return loss, count, means | more | {"entropy": token_entropies(logits.detach()).mean()}


def _reference(backbone: Backbone) -> Callable[[VlmBatch], Tensor]:
    """Log-probabilities under the weights as they are now: adapters are switched off, other weights copied."""
    has_adapter = hasattr(backbone.model, "disable_adapter")
    frozen = backbone if has_adapter else backbone.with_model(copy.deepcopy(backbone.model))
    if not has_adapter:
        frozen.model.requires_grad_(False)

    @torch.no_grad()
    def logps(batch: VlmBatch) -> Tensor:
        frozen.model.train()  # the mode that the update uses
        model: Any = frozen.model
        with model.disable_adapter() if has_adapter else nullcontext():
            return frozen.token_logps(batch)

    return logps
