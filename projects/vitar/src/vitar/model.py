"""The policy: a model that reads several images, with the way it writes; and episodes played by it, greedily."""

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.qwen_vl import Qwen2VlBackbone
from lightbox.errors import RequestError
from lightbox.paper.image_regions import view_size
from lightbox.paper.image_tools import Task
from lightbox.paper.pretrained import Pretrained
from lightbox.paper.pruned_turns import pruned_turns
from lightbox.paper.replies import PlainReplies, ReplyCodec, TagReplies
from lightbox.paper.trace_learner import TraceLearner, open_traces
from vitar.actions import JsonReplies
from vitar.config import Config
from vitar.rollout import Episode, Talk, roll_out


@dataclass(frozen=True)
class Policy:
    """What an arm trains and scores; `codec` is how it writes."""

    cfg: Config
    learner: TraceLearner
    codec: ReplyCodec

    @property
    def talk(self) -> Talk:
        """How it talks when it is scored: likeliest tokens all along."""
        return Talk(
            self.codec,
            self.cfg.feedback,
            most_turns=self.cfg.most_turns,
            max_new_tokens=self.cfg.eval.turn_tokens,
            temperature=0.0,
        )

    def pruned(self) -> AbstractContextManager[Any]:
        """The block in which it is pruned as `pruning` asks, in every turn; gives None where nothing is."""
        return pruned_turns(self.learner.backbone, self.cfg.pruning, seed=self.cfg.run.seed)

    def play(
        self, tasks: Sequence[Task], seeds: Sequence[int], *, boxes: Sequence[str] = ("own",)
    ) -> dict[str, list[Episode]]:
        """One episode a task for each kind of boxes that is shown, likeliest tokens all along.

        Args:
            tasks: in any number; `eval.batch_size` of them share a batch.
            seeds: one a task, of random boxes.
            boxes: see `Feedback.boxes`. What the policy writes first is the same under each, so it is read once.
        """
        self.learner.backbone.model.eval()
        episodes: list[Episode] = []
        size, group = self.cfg.eval.batch_size, len(boxes)
        for start in range(0, len(tasks), size):
            own = [seed for seed in seeds[start : start + size] for _ in boxes]
            part = tasks[start : start + size]
            episodes += roll_out(self.learner.backbone, part, self.talk, seeds=own, group=group, boxes=boxes)
        return {kind: episodes[place::group] for place, kind in enumerate(boxes)}


def open_policy(cfg: Config, base: Pretrained) -> Policy:
    """Load what `model.backbone` names, with the arm's way to write.

    Raises:
        RequestError: tags that the tokenizer does not know, and what loading refuses.
    """
    learner = open_traces(cfg, base, purpose=cfg.purpose)
    return Policy(cfg, learner, codec_of(cfg, learner.backbone))


def codec_of(cfg: Config, backbone: Backbone) -> ReplyCodec:
    """How a policy writes; of tags as many bins as the tokenizer has location tokens."""
    if cfg.objective.replies == "plain":
        return PlainReplies()
    if cfg.objective.replies == "json":
        assert isinstance(backbone, Qwen2VlBackbone), type(backbone)  # `config.check` has refused others
        return JsonReplies(seen=lambda *size: backbone.seen_size(*view_size(size, cfg.model.image_px)))
    words = backbone.tokenizer.get_vocab()
    codec = TagReplies(next(k for k in itertools.count() if f"<loc_{k}>" not in words))
    missing = [token for token in TagReplies(max(codec.bins, 1)).tokens if token not in words]
    if missing:
        raise RequestError(
            f"objective.replies is tags and model.backbone is '{cfg.model.backbone}'",
            f"Its tokenizer does not know {', '.join(missing)}",
            "Set objective.replies=json, or use tiny/qwen2_5_vl",
        )
    return codec
