"""Tokens a second that a policy chooses in conversations of two turns, against transformers' `generate` and trl.

Several conversations begin with one prompt, as training by rewards plays them. Each is shown an image for its first
turn and chooses a second one, greedily, on one thread. All sides have the same weights and all conversations in one
batch, and are timed only where they read and chose the same tokens.

- ours: `dialogue.converse`. A prompt is read once a group, and a turn reads what is new.
- `generate`: called once a turn on all that was said, with all images; processor and chat template as usual.
- trl: the loop in which `GRPOTrainer` samples, see `rollout_trl`.
"""

import importlib
import importlib.util
import logging
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightbox.backbones.conversation import Turn
from lightbox.backbones.dialogue import Dialogue, Rules, converse
from lightbox.backbones.loading import load
from lightbox.bench import timing
from lightbox.bench.rollout_scene import TINY, Scene, Transcript, make_scene, message, scripted, told, weights_name
from lightbox.errors import WorkError
from lightbox.paper.image_tools import Task
from lightbox.pretrain.qwen2_5_vl_rows import ASSISTANT

PROMPTS, GROUP, TURN_TOKENS = 8, 8, 8
OURS, PLAIN, TRL = "ours", "Hugging Face generate, once a turn", "trl GRPOTrainer, images returned by a tool"
GOALS = {PLAIN: ">= 2", TRL: ">= 1.5"}
Play = Callable[[], list[Transcript]]
_log = logging.getLogger(__name__)


def run(
    *,
    prompts: int = PROMPTS,
    group: int = GROUP,
    turn_tokens: int = TURN_TOKENS,
    repeats: int = 7,
    ours: Callable[[Scene], list[Transcript]] | None = None,
) -> list[dict]:
    """Measure both ratios.

    Args:
        prompts: that conversations begin with, >= 1.
        group: conversations a prompt, >= 2, or trl has nothing to compare.
        turn_tokens: longest turn, end token included; the first one, a mark, has 6.
        repeats: turns of all sides; who begins alternates, and the median ratio counts.
        ours: our side; None is `by_converse`.

    Returns:
        Rows with case, peer, value (tokens that ours chooses a second), unit, ratio, goal and notes. Where trl is not
        installed its row is missing, which is logged.

    Raises:
        RequestError: turns that are too short for a mark.
        WorkError: sides that do not read and choose the same tokens.
    """
    with tempfile.TemporaryDirectory() as folder, timing.one_thread():
        name = weights_name(Path(folder) / TINY)
        scene = make_scene(load(name), prompts, group, turn_tokens)
        sides: dict[str, Play] = {OURS: partial(ours or by_converse, scene), PLAIN: partial(by_generate, scene)}
        with scripted(scene.backbone.core, scene.script), _trl_side(scene, name, Path(folder) / "trl") as trl:
            sides |= {} if trl is None else {TRL: trl}
            transcripts = {side: play() for side, play in sides.items()}
            check_transcripts(transcripts)
            samples = timing.in_turns(sides, rounds=repeats, round_s=0)
    notes = f"{_counts(transcripts[OURS])}; {_setting(name, turn_tokens)}"
    return [_row(scene, samples, peer, transcripts[OURS], notes) for peer in sides if peer != OURS]


def check_transcripts(transcripts: Mapping[str, list[Transcript]]) -> None:
    """All sides have the same conversations, token for token.

    Args:
        transcripts: of each side, `OURS` among them.

    Raises:
        WorkError: with the first side and conversation that differ.
    """
    ours = transcripts[OURS]
    for side, rows in transcripts.items():
        for place, (row, own) in enumerate(zip(rows, ours, strict=True)):
            if row == own:
                continue
            same = sum(a == b for a, b in zip(row.ids, own.ids, strict=False))
            raise WorkError(
                f"Conversation {place} has {len(own.ids)} tokens, {sum(own.is_chosen)} of them chosen, and with "
                f"{side} {len(row.ids)} and {sum(row.is_chosen)}; {same} are alike at their places",
                "The two sides do not do the same work, so their times cannot be compared",
                "Find the difference before measuring",
            )


# ---- sides


def by_converse(scene: Scene) -> list[Transcript]:
    """Ours."""
    dialogues = [_Exchange(task=task) for task in scene.tasks]
    rules = Rules(most_turns=2, max_new_tokens=scene.script.turn_tokens, temperature=0.0)
    converse(scene.backbone, scene.openings, dialogues, _respond, rules=rules, seeds=range(len(dialogues)))
    return [Transcript(dialogue.ids, dialogue.is_chosen) for dialogue in dialogues]


def by_generate(scene: Scene) -> list[Transcript]:
    """What one would write with transformers alone."""
    core, processor, end_id = scene.backbone.core, scene.backbone.processor, scene.backbone.end_id
    chats = [[message(*opening.turns)] for opening in scene.openings for _ in range(scene.group)]
    images = [list(opening.images) for opening in scene.openings for _ in range(scene.group)]
    rows = [Transcript([], []) for _ in chats]
    for turn in range(2):
        prompts = processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        batch = processor(text=prompts, images=images, padding=True, padding_side="left", return_tensors="pt")
        ids = core.generate(**batch, max_new_tokens=scene.script.turn_tokens, do_sample=False)
        answers = ids[:, batch["input_ids"].shape[1] :]
        texts = processor.batch_decode(answers, skip_special_tokens=True)
        for place, row in enumerate(rows):
            read = batch["input_ids"][place][batch["attention_mask"][place].bool()].tolist()
            chosen = answers[place].tolist()
            chosen = chosen[: chosen.index(end_id) + 1]  # padding stands behind it
            is_chosen = [*row.is_chosen, *[False] * (len(read) - len(row.ids)), *[True] * len(chosen)]
            rows[place] = Transcript(read + chosen, is_chosen)
            if turn == 0:
                answer = told(scene.tasks[place], texts[place])
                chats[place] += [{"role": ASSISTANT, "content": texts[place]}, message(answer)]
                images[place] += answer.images
    return rows


@dataclass(kw_only=True)
class _Exchange(Dialogue):
    task: Task


def _respond(dialogue: _Exchange, text: str, broken: str, seed: int) -> Turn | None:
    return told(dialogue.task, text) if len(dialogue.texts) == 1 and not broken else None


def _trl_side(scene: Scene, name: str, folder: Path) -> AbstractContextManager[Play | None]:
    """A block in which trl's side can be called; None where trl, which nothing else here needs, is missing."""
    if importlib.util.find_spec("trl") is None:
        _log.warning("trl is not installed, so the row against its GRPOTrainer is left out")
        return nullcontext()
    return importlib.import_module("lightbox.bench.rollout_trl").opened(scene, name, folder)


# ---- rows


def _row(scene: Scene, samples: Mapping[str, Any], peer: str, ours: list[Transcript], notes: str) -> dict:
    ratio, each = timing.ratio_of(samples[peer], samples[OURS])
    own, other = (timing.pooled(samples[side]) for side in (OURS, peer))
    spread = f"{own}; peer {other}; {len(each)} rounds in turns, ratios {min(each):.3g} to {max(each):.3g}"
    return {
        "case": f"rollout, {len(scene.openings)} x {scene.group} conversations of 2 turns, CPU",
        "peer": peer,
        "value": round(sum(sum(row.is_chosen) for row in ours) / own.median, 1),
        "unit": "tokens/s",
        "ratio": round(ratio, 3),
        "goal": GOALS[peer],
        "notes": f"{spread}; {notes}",
    }


def _counts(rows: list[Transcript]) -> str:
    read = [row.is_chosen.count(False) for row in rows]
    last_turns = {tuple(row.ids[-row.is_chosen[::-1].index(False) :]) for row in rows}
    return (
        f"{sum(sum(row.is_chosen) for row in rows)} tokens chosen, {min(read)} to {max(read)} read a conversation, "
        f"{len(last_turns)} different second turns, all tokens the same on all sides"
    )


def _setting(name: str, turn_tokens: int) -> str:
    weights = name if name.startswith("tiny/") else f"random weights of the sizes of tiny/{TINY}"
    return (
        f"{weights}, fp32, 1 thread, greedy, at most {turn_tokens} tokens a turn, first turns given; ours also keeps "
        "the log-probability of each token"
    )
