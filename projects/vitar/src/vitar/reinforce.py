"""Stage 2: the policy plays in groups, is rewarded, and learns from what it did better (GRPO, as in ViTAR's code).

Episodes are those of `rollout`, tokens that it was told are in no loss. What is logged of a step is the mean over its
episodes: the reward and each term of it, how many acted, how large their boxes are, and how many met each failure.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lightbox.backbones.backbone import Backbone
from lightbox.losses.policy import Clips
from lightbox.paper.group_policy import Alarm, GroupSettings, Played, learn_in_groups
from lightbox.paper.image_tools import Task
from lightbox.paper.learner import base_facts
from lightbox.paper.replies import FAILURES
from vitar.config import Config
from vitar.model import Policy
from vitar.rewards import reward, terms_of
from vitar.rollout import Episode, roll_out

COLLAPSED = (
    "The policy answers at once, so its boxes are no longer learnt, as users of ViTAR's parent project report. Raise "
    "what an act earns (objective.reward), or lower optim.lr"
)


def reinforce(cfg: Config, policy: Policy, tasks: list[Task], folder: Path) -> None:
    """Train a policy by rewards, in place, or continue from the checkpoints in `folder`.

    `tasks` are questions with their true answers; true boxes are read by rewards that ask for them.
    """
    own, learner = cfg.objective, policy.learner
    if cfg.adapter.kind != "none" or cfg.train.checkpoint_layers:
        from lightbox.adapters.attach import attach  # noqa: PLC0415  # peft, which takes seconds

        learner.backbone = attach(learner.backbone, cfg.adapter, checkpoint_layers=cfg.train.checkpoint_layers)
    clips = Clips(own.clip_low, own.clip_high, own.dual_clip or None, own.kl, own.weighs == "tokens")
    learn_in_groups(
        learner.backbone,
        len(tasks),
        player(cfg, policy, tasks),
        settings=GroupSettings(own.group, clips, own.scales_advantages, own.shaping),
        optim=replace(cfg.optim, batch_size=own.prompts),
        run=cfg.run,
        out=folder,
        train=cfg.train,
        facts=base_facts(learner.backbone),
    )


def player(cfg: Config, policy: Policy, tasks: list[Task]) -> Callable[[Backbone, list[int], list[int]], list[Played]]:
    """The function that lets a policy play some tasks and says what it earned."""
    talk = replace(policy.talk, temperature=cfg.objective.temperature)
    alarm = Alarm("the share of episodes that act", cfg.objective.alarm_rate, COLLAPSED)

    def play(backbone: Backbone, indices: list[int], seeds: list[int]) -> list[Played]:
        asked = [tasks[index] for index in indices]
        played = [
            as_played(episode, cfg.objective.reward)
            for episode in roll_out(backbone, asked, talk, seeds=seeds, group=cfg.objective.group)
        ]
        alarm.see(sum(own.values["acted"] for own in played) / len(played))
        return played

    return play


def as_played(episode: Episode, variant: str) -> Played:
    """An episode with what it earned and what is logged of it."""
    result = episode.result
    terms = terms_of(result)
    earned = reward(terms, variant)
    values = {f"reward_{name}": earned.terms.get(name, 0.0) for name in terms} | {
        "iou": terms["iou"],
        "right": terms["accuracy"],
        "acted": float(result.acts > 0),
        "box_area": sum(box.area for box in result.boxes),
        "not_finite": float(len(earned.not_finite)),
    }
    values |= {f"failed_{name}": float(name in episode.failures) for name in FAILURES}
    return Played(episode.ids, episode.is_chosen, episode.logps, episode.images, earned.total, values)
