"""The benchmark of rollouts: all sides have the same conversations, and are timed only then."""

import importlib
import importlib.util
from dataclasses import replace

import pytest
import torch

from lightbox.backbones.conversation import Conversation, assistant, user
from lightbox.bench import rollout
from lightbox.bench.rollout_scene import Transcript, make_scene, scripted, told, weights_name
from lightbox.errors import RequestError, WorkError
from lightbox.paper.image_regions import view
from lightbox.pretrain.qwen2_5_vl_rows import SEEN_PX

PROMPTS, GROUP, TURN_TOKENS = 2, 3, 8


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    return weights_name(tmp_path_factory.mktemp("qwen2_5_vl"))


@pytest.fixture(scope="module")
def scene(name):
    own = make_scene(rollout.load(name), PROMPTS, GROUP, TURN_TOKENS)
    with scripted(own.backbone.core, own.script):
        yield own


@pytest.fixture(scope="module")
def ours(scene):
    return rollout.by_converse(scene)


def test_every_conversation_acts_first_and_sees_its_own_second_image(scene, ours):
    backbone = scene.backbone
    for place, (row, task) in enumerate(zip(ours, scene.tasks, strict=True)):
        first = scene.script.first_turns[place].tolist()
        assert row.is_chosen.count(True) - len(first) <= TURN_TOKENS
        chosen = [i for i, own in zip(row.ids, row.is_chosen, strict=True) if own]
        assert chosen[: len(first)] == first
        text = backbone.read_ids(torch.tensor(first))
        turns = (user(view(task.image, SEEN_PX), task.question), assistant(text), told(task, text))
        wanted = backbone.prepare_conversations([Conversation(turns)], max_tokens=1000, padding="left")
        read = wanted.inputs["input_ids"][0].tolist()
        assert row.ids[: len(read)] == read
        assert row.ids[len(read) :] == chosen[len(first) :]
    shown = [
        told(task, backbone.read_ids(ids)) for task, ids in zip(scene.tasks, scene.script.first_turns, strict=True)
    ]
    assert len({turn.images[0].tobytes() for turn in shown}) == PROMPTS * GROUP


def test_generate_once_a_turn_has_the_same_conversations(scene, ours):
    assert rollout.by_generate(scene) == ours


@pytest.mark.slow
def test_trl_has_the_same_conversations_with_images_from_its_tool_again_and_again(scene, ours, name, tmp_path):
    trl = importlib.import_module("lightbox.bench.rollout_trl")  # trl takes long to import
    with trl.opened(scene, name, tmp_path) as sample:
        assert sample() == ours
        assert sample() == ours  # the tool knows its callers by their order, so none may be left over


def test_a_script_ends_a_turn_at_its_longest_and_forbids_control_tokens(scene):
    script, tokenizer = scene.script, scene.backbone.tokenizer
    header = tokenizer("<|im_start|>user a<|im_end|><|im_start|>assistant")["input_ids"]
    turn_two = torch.tensor([[*header, *header]])
    scores = torch.zeros(1, len(tokenizer))
    free = script(turn_two, scores)[0]
    assert free[tokenizer.convert_tokens_to_ids("<|image_pad|>")] == -torch.inf
    assert free[tokenizer.convert_tokens_to_ids("<|im_start|>")] == -torch.inf
    assert free[tokenizer.eos_token_id] == free[tokenizer.convert_tokens_to_ids("<mark>")] == 0
    spoken = torch.cat([turn_two, torch.full((1, TURN_TOKENS - 1), header[-1])], dim=1)
    assert script(spoken, scores)[0].isfinite().nonzero().tolist() == [[tokenizer.eos_token_id]]


@pytest.mark.slow
def test_a_row_says_who_was_compared_and_one_without_its_peer_is_left_out_aloud(monkeypatch, caplog):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "trl" else find_spec(name, *rest)
    )
    (row,) = rollout.run(prompts=1, group=2, repeats=2)
    assert row["peer"] == rollout.PLAIN
    assert row["goal"] == ">= 2"
    assert row["value"] > 0
    assert row["ratio"] > 0
    assert "1 x 2 conversations" in row["case"]
    assert "2 rounds" in row["notes"]
    assert "trl is not installed" in caplog.text


def test_sides_that_choose_or_read_other_tokens_are_not_timed():
    rows = [Transcript([1, 2, 3], [False, True, True]), Transcript([1, 2, 3], [False, True, True])]
    rollout.check_transcripts({rollout.OURS: rows, rollout.PLAIN: list(rows)})
    for other in (Transcript([1, 2, 4], rows[1].is_chosen), replace(rows[1], is_chosen=[False, False, True])):
        with pytest.raises(WorkError, match="Conversation 1 has 3 tokens, 2 of them chosen, and with Hugging Face"):
            rollout.check_transcripts({rollout.OURS: rows, rollout.PLAIN: [rows[0], other]})


def test_turns_too_short_for_a_mark_are_refused(scene):
    with pytest.raises(RequestError, match="A mark has 6 with its end token"):
        make_scene(scene.backbone, 1, 1, 5)
