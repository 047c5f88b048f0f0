"""The project's loss at weight 1 against one step of trl's trainers on the same log-probabilities, with gradients."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lightbox.losses.language import IGNORED, row_logps, supervised_rows
from lightbox.paper.pair_learner import PairBatch
from mmedpo.config import resolve
from mmedpo.train import batch_loss

WORDS = ["<pad>", "<end>", "<none>", *"is there an effusion nodule on the left right no yes large small side".split()]
PAIRS = [
    {"prompt": "is there an effusion", "chosen": " yes on the left", "rejected": " no"},
    {"prompt": "nodule side", "chosen": " right", "rejected": " left left large"},
    {"prompt": "is there an nodule on the left side", "chosen": " no", "rejected": " yes small"},
]
BETA = 0.3


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<none>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<none>")


def tiny(seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(WORDS), num_key_value_heads=2, initializer_range=0.5, **sizes)
    return LlamaForCausalLM(config).eval()


def sums(model, ids, mask, completion):
    """Log-probability and number of tokens of each completion."""
    labels = ids.masked_fill(completion == 0, IGNORED)[:, 1:]
    logits = model(ids, attention_mask=mask).logits[:, :-1]
    return row_logps(*supervised_rows(logits, labels), labels), (labels != IGNORED).sum(dim=1)


def own_loss(method, policy, tokens, reference, *more):
    """What the driver would step on, the sum over the pairs by their number, all weights 1; and the diagnostics."""
    cfg = resolve(["preset=smoke", "run.seed=0", f"objective.method={method}", f"objective.beta={BETA}", *more])
    batch = PairBatch([], [], torch.empty(0), None, torch.ones(policy.shape[1]), reference)
    total, pairs, means = batch_loss(cfg, policy, tokens, batch)
    assert int(pairs) == len(PAIRS)
    return total / pairs, means


def gradients(loss, model):
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


def settings(kind, folder, **more):
    return kind(
        str(folder), beta=BETA, report_to=[], use_cpu=True, bf16=False, disable_dropout=True,
        gradient_checkpointing=False, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("theirs", "method", "smoothing"), [("sigmoid", "dpo", 0.0), ("robust", "robust", 0.1), ("ipo", "ipo", 0.0)]
)
def test_a_step_is_that_of_trl_to_the_gradient(tokenizer, tmp_path, theirs, method, smoothing):
    from datasets import Dataset  # noqa: PLC0415
    from trl import DPOConfig, DPOTrainer  # noqa: PLC0415

    model, reference = tiny(0), tiny(1)
    args = settings(
        DPOConfig, tmp_path, loss_type=[theirs], label_smoothing=smoothing, per_device_train_batch_size=len(PAIRS)
    )
    data = Dataset.from_list(PAIRS)
    trainer = DPOTrainer(model, reference, args=args, train_dataset=data, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, dict(batch))
    rows = batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
    policy, tokens = (own.view(2, -1) for own in sums(model, *rows))  # trl stacks the one above the other
    with torch.no_grad():
        known = sums(reference, *rows)[0].view(2, -1)
    loss, _ = own_loss(method, policy, tokens, known, f"objective.smoothing={smoothing}")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    wanted = gradients(expected, model)
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(gradients(loss, model), wanted, rtol=1e-4, atol=1e-6)


def test_a_step_of_kto_is_twice_that_of_trl_which_counts_answers_and_not_pairs(tokenizer, tmp_path):
    from datasets import Dataset  # noqa: PLC0415
    from trl import KTOConfig, KTOTrainer  # noqa: PLC0415

    model, reference = tiny(0), tiny(1)
    answers = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for side in ("chosen", "rejected")
        for pair in PAIRS
    ]
    args = settings(KTOConfig, tmp_path, per_device_train_batch_size=len(answers))
    data = Dataset.from_list(answers)
    trainer = KTOTrainer(model, reference, args=args, train_dataset=data, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, dict(batch))
    policy, tokens, known = [], [], []
    for prefix in ("", "KL_"):  # the second are the same answers, each beside the prompt of another
        rows = [batch[prefix + name] for name in ("input_ids", "attention_mask", "completion_mask")]
        logps, counts = sums(model, *rows)
        policy, tokens = [*policy, *logps.view(2, -1)], [*tokens, *counts.view(2, -1)]
        with torch.no_grad():
            known += sums(reference, *rows)[0].view(2, -1)
    loss, means = own_loss("kto", torch.stack(policy), torch.stack(tokens), torch.stack(known))
    assert float(means["drift"]) > 0.1, "else it would not matter which answers are mismatched"
    assert loss.item() == pytest.approx(2 * expected.item(), rel=1e-6)
    wanted = 2 * gradients(expected, model)
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(gradients(loss, model), wanted, rtol=1e-4, atol=1e-6)
