"""Episodes of a random tiny Qwen2.5-VL whose words are given: one cache over all turns against one full forward."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken

from lightbox.adapters.tokens import add_tokens
from lightbox.backbones.conversation import Conversation, assistant, user
from lightbox.backbones.loading import load
from lightbox.backbones.rows import IGNORED
from lightbox.errors import RequestError
from lightbox.losses.policy import group_advantages, policy_loss
from lightbox.paper.image_regions import view
from lightbox.paper.image_tools import Action, Feedback, Task, observe
from lightbox.paper.replies import Reply, TagReplies
from lightbox.pruning.pipeline import prune
from lightbox.pruning.turns import over_turns
from lightbox.records import Box
from lightbox.testing.shrunk import save_shrunk
from vitar.actions import JsonReplies
from vitar.rewards import reward, terms_of
from vitar.rollout import Talk, learning_batch, roll_out
from vitar.scores import tally
from vitar.traces import make_trace

CODEC = TagReplies(8)
TRUE = Box(0.25, 0.25, 0.5, 0.5)
MARK = CODEC.write(Reply(actions=(Action("mark", (TRUE,)),)), (128, 128))
CROP = CODEC.write(Reply("look", (Action("crop", (Box(0.5, 0.5, 0.75, 0.75),)),)), (128, 128))
DISC, OVAL = "<answer>disc", "<answer>oval"


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """Knows the tags as tokens; its head is spread out, so that probabilities differ."""
    own = load(str(save_shrunk("qwen2.5-vl-7b", tmp_path_factory.mktemp("qwen"))))
    add_tokens(own.core, own.tokenizer, [AddedToken(tag, special=False, normalized=False) for tag in CODEC.tokens])
    generator = torch.Generator().manual_seed(0)
    head = own.part(own.family.head)
    head.weight = torch.nn.Parameter(0.5 * torch.randn(head.weight.shape, generator=generator))
    return own


def tasks():
    """Two prompts of different length and image size, grey and colour."""
    draw = np.random.default_rng(0)
    grey = Image.fromarray(draw.integers(0, 256, (128, 128), dtype=np.uint8))
    colour = Image.fromarray(draw.integers(0, 256, (100, 160, 3), dtype=np.uint8))
    return [
        Task(grey, "Which shape?", "disc", (TRUE,)),
        Task(colour, "Which shape has the finding in the left upper zone?", "oval", (TRUE,)),
    ]


@pytest.fixture
def say(script, policy):
    """One list of texts a turn; the lists that are left are returned."""
    return lambda *turns: script(policy, turns)


@torch.no_grad()
def full_forward(policy, episode):
    """Log-probabilities of the chosen tokens by one forward over the whole episode, alone and without a cache."""
    ids = torch.tensor([episode.ids])
    types = {policy.TYPE_FIELD: (ids == policy.image_token_id).long()}
    pixels = policy.read_images(episode.images)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **types, **pixels}
    logps = policy.model(**inputs, use_cache=False).logits[0, :-1].log_softmax(dim=-1)
    own = logps.gather(1, ids[0, 1:, None])[:, 0]
    return own[torch.tensor(episode.is_chosen)[1:]]


def assert_cached_equals_full(policy, episodes):
    batch = learning_batch(policy, episodes)
    with torch.no_grad():
        learnt = policy.token_logps(batch)
    for row, episode in enumerate(episodes):
        cached = torch.tensor(episode.logps)
        torch.testing.assert_close(cached, full_forward(policy, episode), rtol=0, atol=1e-5)
        torch.testing.assert_close(cached, learnt[row][batch.labels[row] != IGNORED], rtol=0, atol=1e-5)


# four episodes that go different ways: two turns, an early answer, an error with a longer answer, three turns
SAID = ([MARK, DISC, "what is it?", CROP], [DISC, "it is so " + OVAL, MARK], [OVAL])
TALK = Talk(CODEC, Feedback(view_px=64), most_turns=3)


def test_cached_log_probabilities_of_all_turns_equal_one_full_forward(policy, say):
    """Rows of different length, prompts of different length, rows that stop early, a row with three turns."""
    said = say(*SAID)
    episodes = roll_out(policy, tasks(), TALK, seeds=range(4), group=2)
    assert said == []
    assert [len(episode.replies) for episode in episodes] == [2, 1, 2, 3]
    assert len({len(episode.ids) for episode in episodes}) == 4
    assert [len(episode.logps) for episode in episodes] == [sum(episode.is_chosen) for episode in episodes]
    assert_cached_equals_full(policy, episodes)


def test_tokens_are_those_of_the_conversation_and_only_the_policys_own_words_are_chosen(policy, say):
    """Against the kit's own preparation of the same turns with the same images."""
    say(*SAID)
    episodes = roll_out(policy, tasks(), TALK, seeds=range(4), group=2)
    shown = [view(task.image, 64) for task in tasks()]
    marks = [observe(task.image, CODEC.read(MARK, task.image.size).actions, TALK.feedback) for task in tasks()]
    crop = observe(tasks()[1].image, CODEC.read(CROP, tasks()[1].image.size).actions, TALK.feedback)
    questions = [user(image, task.question) for image, task in zip(shown, tasks(), strict=True)]
    whole = [
        (questions[0], assistant(MARK), user(*marks[0].images), assistant(DISC)),
        (questions[0], assistant(DISC)),
        (questions[1], assistant("what is it?"), user("error"), assistant("it is so " + OVAL)),
        (questions[1], assistant(CROP), user(*crop.images), assistant(MARK), user(*marks[1].images), assistant(OVAL)),
    ]
    wanted = policy.prepare_conversations([Conversation(turns) for turns in whole], max_tokens=400)
    batch = learning_batch(policy, episodes)
    for name in ("input_ids", "attention_mask", policy.TYPE_FIELD):
        assert torch.equal(batch.inputs[name], wanted.inputs[name])
    assert torch.equal(batch.labels, wanted.labels)
    for episode, turns in zip(episodes, whole, strict=True):
        images = [image for turn in turns for image in turn.images]
        assert [image.tobytes() for image in episode.images] == [image.tobytes() for image in images]


def test_a_prompt_is_read_once_a_group_and_a_turn_reads_only_what_is_new(policy, say):
    say(*SAID)
    towers, widths = [], []
    tower = policy.part(policy.family.vision).register_forward_pre_hook(lambda *_: towers.append(1))
    language = policy.part(policy.family.language).register_forward_pre_hook(
        lambda _, __, inputs: widths.append(tuple(inputs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    episodes = roll_out(policy, tasks(), TALK, seeds=range(4), group=2)
    tower.remove()
    language.remove()
    assert len(towers) == 3  # the two prompts together, and each later turn's images together
    prompts = [episode.is_chosen.index(True) for episode in episodes]
    assert widths[0] == (2, max(prompts) - 1)  # two prompts for four episodes, without their last token
    wide = [place for place, (_, width) in enumerate(widths) if place and width > 1]
    assert [widths[place][0] for place in wide] == [3, 1]  # the row that answered early left the batch
    assert max(widths[place][1] for place in wide) < min(prompts)
    assert widths[1] == (4, 1)


def test_every_row_stops_by_itself_and_every_outcome_is_counted_under_its_name(policy, say):
    say([MARK, "...", "<mark><loc_0>", DISC], [CROP, OVAL])
    four = [tasks()[0]] * 4
    episodes = roll_out(policy, four, Talk(CODEC), seeds=range(4))
    assert [episode.failures for episode in episodes] == [
        ["no_answer"],
        ["cut", "no_answer"],
        ["bad_arity"],
        ["early_answer"],
    ]
    assert [episode.answer for episode in episodes] == [None, None, "oval", "disc"]
    assert [len(episode.replies) for episode in episodes] == [2, 1, 2, 1]
    assert sum(episodes[1].is_chosen) == Talk(CODEC).max_new_tokens
    counts = tally(episodes)
    assert {name: counts[name] for name in ("no_answer", "cut", "bad_arity", "early_answer")} == {
        "no_answer": 2, "cut": 1, "bad_arity": 1, "early_answer": 1,
    }  # fmt: skip
    assert counts["act_rate"] == 0.25
    totals = [reward(terms_of(episode.result), "A").total for episode in episodes]
    assert totals == pytest.approx([0.4, 0.0, 0.2, 1.2])
    assert [reward(terms_of(episode.result), "B").total for episode in episodes][1:3] == pytest.approx([-0.2, -0.2])
    assert_cached_equals_full(policy, episodes)


def test_an_image_token_that_the_policy_says_ends_the_episode_before_it(policy, say):
    """A forward over the whole would look for an image to put there."""
    say(["look<|image_pad|>" + MARK, MARK], [DISC])
    said, other = roll_out(policy, [tasks()[0]] * 2, TALK, seeds=range(2))
    assert said.failures == ["image_token", "no_answer"]
    assert said.ids.count(policy.image_token_id) == 4  # of the image in the question
    assert policy.read_ids(torch.tensor(said.ids)[torch.tensor(said.is_chosen)]) == "look"
    assert_cached_equals_full(policy, [said, other])


def test_a_turn_of_tags_takes_at_most_eight_tokens(policy):
    assert len(policy.target_ids(MARK)) == 6
    assert len(policy.target_ids(DISC)) <= 8
    assert policy.read_ids(torch.tensor(policy.target_ids(MARK))) == MARK


def test_boxes_that_are_rewarded_are_the_policys_own_under_every_control(policy, say):
    wrong = CODEC.write(Reply(actions=(Action("mark", (Box(0.75, 0.75, 1.0, 1.0),)),)), (128, 128))
    for control in (Feedback(boxes="true"), Feedback(tool="same"), Feedback(boxes="random")):
        say([wrong], [DISC])
        (episode,) = roll_out(policy, tasks()[:1], Talk(CODEC, control), seeds=[0])
        assert terms_of(episode.result)["iou"] == 0.0
        assert episode.result.boxes == (Box(0.75, 0.75, 1.0, 1.0),)
    assert episode.observations[0].boxes != episode.result.boxes


def drawn(policy, order, *, group=1, temperature=1.0, seeds=(3, 4)):
    chosen = [tasks()[place] for place in order]
    own = [seeds[place] * 10 + sample for place in order for sample in range(group)]
    return roll_out(policy, chosen, Talk(CODEC, max_new_tokens=6, temperature=temperature), seeds=own, group=group)


def test_an_episode_follows_from_its_seed_and_not_from_its_neighbours(policy):
    together, apart = drawn(policy, (0, 1), group=3), drawn(policy, (1,), group=3)
    assert [episode.ids for episode in apart] == [episode.ids for episode in together[3:]]
    assert len({tuple(episode.ids) for episode in together}) == 6
    assert_cached_equals_full(policy, together)
    greedy = drawn(policy, (0,), group=2, temperature=0.0)
    assert greedy[0].ids == greedy[1].ids


def test_a_conversation_that_outgrows_the_context_ends_and_is_counted(policy, say):
    small = policy.with_model(copy.deepcopy(policy.model))
    long = Task(tasks()[0].image, "lung " * 300, "disc")
    talk = Talk(CODEC, Feedback(view_px=64))
    say([MARK], [DISC])
    (whole,) = roll_out(policy, tasks()[:1], talk, seeds=[0])
    first = whole.is_chosen.index(True) + 6
    small.core.config.get_text_config().max_position_embeddings = len(whole.ids)  # less than an answer's room too few
    said = say([MARK])
    episodes = roll_out(small, [long, tasks()[0]], talk, seeds=[0, 1])
    assert said == []
    assert [episode.failures for episode in episodes] == [["too_long", "no_answer"]] * 2
    assert [len(episode.ids) for episode in episodes] == [0, first]
    assert episodes[1].ids == whole.ids[:first]
    assert [len(episode.images) for episode in episodes] == [1, 1]


def test_the_gradient_reaches_the_policy_through_its_own_tokens_only(policy, say):
    say(*SAID)
    episodes = roll_out(policy, tasks(), TALK, seeds=range(4), group=2)
    earned = torch.tensor([reward(terms_of(episode.result), "A").total for episode in episodes])
    assert earned.tolist() == pytest.approx([1.4, 1.2, 1.2, 1.6])
    batch = learning_batch(policy, episodes)
    logps = policy.token_logps(batch)
    old = torch.zeros_like(logps).masked_scatter(
        batch.labels != IGNORED, torch.tensor([logp for episode in episodes for logp in episode.logps])
    )
    total, tokens, shares = policy_loss(logps, group_advantages(earned, 2), batch.labels != IGNORED, old_logps=old)
    assert int(tokens) == sum(len(episode.logps) for episode in episodes)
    assert float(shares["ratio"]) == pytest.approx(1.0, abs=1e-4)
    total.backward()
    head = policy.part(policy.family.head).weight
    assert torch.isfinite(head.grad).all()
    assert head.grad.ne(0).any()
    policy.core.zero_grad()
    # where all of a group earn the same, nothing moves
    same, _, _ = policy_loss(policy.token_logps(batch), group_advantages(torch.ones(4), 2), batch.labels != IGNORED)
    same.backward()
    assert all(weight.grad is None or not weight.grad.any() for weight in policy.core.parameters())
    policy.core.zero_grad()


def test_a_trace_is_read_as_the_episode_that_it_teaches(policy, say):
    """Ids, labels and pixels of imitation are those of the rollouts that follow it."""
    for task, tool in zip(tasks(), ("mark", "crop"), strict=True):
        trace = make_trace(task, CODEC, TALK.feedback, seed=0, tool=tool)
        say(*([answer.text] for answer in trace.answers))
        (episode,) = roll_out(policy, [task], TALK, seeds=[0])
        assert episode.failures == []
        taught, learnt = policy.prepare_conversations([trace], max_tokens=400), learning_batch(policy, [episode])
        assert all(torch.equal(value, learnt.inputs[name]) for name, value in taught.inputs.items())
        assert torch.equal(taught.labels, learnt.labels)


def test_one_pass_has_no_early_answer(policy, say):
    say([DISC])
    (episode,) = roll_out(policy, tasks()[:1], Talk(CODEC, most_turns=1), seeds=[0])
    assert (episode.failures, episode.answer) == ([], "disc")


def test_a_group_shares_its_prompt_and_each_episode_is_shown_boxes_of_its_own_kind(policy, say):
    wrong = CODEC.write(Reply(actions=(Action("mark", (Box(0.75, 0.75, 1.0, 1.0),)),)), (128, 128))
    kinds = ("own", "random", "true")
    say([wrong] * 6, [DISC] * 6)
    episodes = roll_out(policy, tasks(), Talk(CODEC, temperature=0.0), seeds=[5] * 6, group=3, boxes=kinds)
    for own, random, true in (episodes[:3], episodes[3:]):
        assert own.observations[0].boxes == (Box(0.75, 0.75, 1.0, 1.0),)
        assert random.observations[0].boxes not in (own.observations[0].boxes, (TRUE,))
        assert true.observations[0].boxes == (TRUE,)
        assert own.images[0] is random.images[0] is true.images[0]
        assert len({episode.images[1].tobytes() for episode in (own, random, true)}) == 3
    assert_cached_equals_full(policy, episodes)
    for place, kind in enumerate(kinds):  # as alone, with the same seed
        say([wrong] * 2, [DISC] * 2)
        alone = roll_out(policy, tasks(), Talk(CODEC, Feedback(boxes=kind), temperature=0.0), seeds=[5, 5])
        assert [one.observations for one in alone] == [one.observations for one in episodes[place::3]]


def test_an_image_of_several_questions_is_encoded_once_a_turn(policy, say):
    first = tasks()[0]
    pair = [first, Task(first.image, "Which shape has it?", "oval", (TRUE,))]
    images = []
    hook = policy.part(policy.family.vision).register_forward_pre_hook(
        lambda _, args, inputs: images.append(len(inputs["grid_thw"])), with_kwargs=True
    )
    say([MARK] * 2, [DISC] * 2)
    episodes = roll_out(policy, pair, Talk(CODEC, Feedback(view_px=64)), seeds=[0, 1])
    hook.remove()
    assert images == [1, 2]
    assert_cached_equals_full(policy, episodes)


def test_what_cannot_be_asked_is_refused_before_a_run(policy):
    with pytest.raises(RequestError, match="1 seeds for 2 tasks in groups of 2"):
        roll_out(policy, tasks(), TALK, seeds=[0], group=2)
    with pytest.raises(RequestError, match="in groups of 2, shown own"):
        roll_out(policy, tasks(), TALK, seeds=range(4), group=2, boxes=("own",))
    for wrong in ({"most_turns": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}):
        with pytest.raises(RequestError, match="Correct them"):
            Talk(CODEC, **wrong)


def test_vitars_json_protocol_runs_through_the_same_rollout(policy, say):
    """With its system turn, and boxes in pixels of the image as the processor resizes it."""
    wide = policy.with_model(copy.deepcopy(policy.model))
    wide.core.config.get_text_config().max_position_embeddings = 4096
    codec = JsonReplies(seen=wide.seen_size)
    task = tasks()[1]
    act = Reply("look there", (Action("mark", (TRUE,)),))
    text = codec.write(act, task.image.size)
    assert json.loads(text)["actions"][0]["arguments"]["box"] == [[35, 21, 70, 42]]  # of 140 x 84, not of 160 x 100
    say([text, "mark it", text], [codec.write(Reply("so", answer="Oval"), task.image.size)] * 3)
    talk = Talk(codec, max_new_tokens=200)
    episodes = roll_out(wide, [task], talk, seeds=range(3), group=3)
    assert [episode.failures for episode in episodes] == [[], ["no_json"], []]
    assert [reward(terms_of(episode.result), "A").total for episode in episodes] == pytest.approx([1.4, 1.2, 1.4])
    assert wide.read_ids(torch.tensor(episodes[1].ids)).count("Error: that was not one JSON object") == 1
    marked = observe(task.image, codec.read(text, task.image.size).actions).images[0]
    assert episodes[0].images[1].tobytes() == marked.tobytes()
    assert_cached_equals_full(wide, episodes)


@pytest.mark.parametrize("method", ["divprune", "visionzip", "uniform_grid"])
def test_turns_are_pruned_behind_a_cache_as_in_one_forward(policy, say, method):
    """Prompts that lose unlike numbers of tokens, rows that leave, a second and a third image behind the first."""
    said = say(*SAID)
    with over_turns(prune(policy, method=method, budget=0.5, lengths="original")) as block:
        episodes = roll_out(policy, tasks(), TALK, seeds=range(4), group=2)
        assert said == []
        assert [len(episode.images) for episode in episodes] == [2, 1, 1, 3]
        assert_cached_equals_full(policy, episodes)
        report = block.report()
        assert [2 * after for after in report.tokens_after] == report.tokens_before
    with torch.no_grad():
        whole = full_forward(policy, episodes[0])
    assert (whole - torch.tensor(episodes[0].logps)).abs().max() > 1e-2


def test_rows_of_one_length_are_pruned_too(policy, say):
    """`generate` passes no mask where it would hide nothing."""
    said = say([MARK, MARK], [DISC, OVAL])
    with over_turns(prune(policy, budget=0.25, lengths="original")):
        episodes = roll_out(policy, tasks()[:1], TALK, seeds=range(2), group=2)
        assert said == []
        assert [len(episode.images) for episode in episodes] == [2, 2]
        assert_cached_equals_full(policy, episodes)


def test_a_whole_budget_over_turns_is_what_is_said_without(policy, say):
    say(*SAID)
    usual = roll_out(policy, tasks(), TALK, seeds=range(4), group=2)
    say(*SAID)
    with over_turns(prune(policy, budget=1.0, lengths="original")):
        whole = roll_out(policy, tasks(), TALK, seeds=range(4), group=2)
    assert [episode.ids for episode in whole] == [episode.ids for episode in usual]
    for one, other in zip(whole, usual, strict=True):
        torch.testing.assert_close(torch.tensor(one.logps), torch.tensor(other.logps), rtol=0, atol=1e-6)


def test_text_first_and_an_image_later_is_pruned(policy, say):
    """The first turn has no image, so nothing stands beside its cache."""
    say(["what is it?"], [DISC])
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8))
    with over_turns(prune(policy, budget=0.5, lengths="original")) as block, torch.no_grad():
        batch = policy.prepare_conversations([Conversation((user("hello"),))], max_tokens=400, padding="left")
        first = policy.generate(batch, max_new_tokens=12, with_memory=True)
        second = policy.generate(policy.continued(first, [user(image)]), max_new_tokens=12, with_memory=True)
        report = block.report()
        assert [2 * after for after in report.tokens_after] == report.tokens_before
        memory = second.memory
        dropped = report.tokens_before[0] - report.tokens_after[0]
        assert memory.cached == memory.tokens["input_ids"].shape[1] - 1 - dropped


def test_renumbered_positions_over_turns_are_refused(policy):
    with pytest.raises(RequestError, match="positions is 'compact' over several turns"):
        over_turns(prune(policy, budget=0.5, positions="compact"))
