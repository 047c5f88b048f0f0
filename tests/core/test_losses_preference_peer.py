"""Preference losses against one step of trl's `DPOTrainer` on the same model, reference and batch."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lightbox.losses.language import IGNORED, row_logps, supervised_rows
from lightbox.losses.preference import Answers, preference_loss

WORDS = ["<pad>", "<end>", "<none>", *"is there an effusion nodule on the left right no yes large small side".split()]
PAIRS = [
    {"prompt": "is there an effusion", "chosen": " yes on the left", "rejected": " no"},
    {"prompt": "nodule side", "chosen": " right", "rejected": " left left large"},
    {"prompt": "is there an nodule on the left side", "chosen": " no", "rejected": " yes small"},
]


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415

    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<none>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<none>")


def tiny(seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), num_key_value_heads=2, initializer_range=0.5, **sizes))


@torch.no_grad()
def answers(model, reference, batch):
    """Chosen and rejected as this project reads them; trl stacks the one above the other."""
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)[:, 1:]
    sums = []
    for own in (model, reference):
        logits = own(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        sums.append(row_logps(*supervised_rows(logits, labels), labels))
    halves = zip(*(column.chunk(2) for column in (sums[0], (labels != IGNORED).sum(dim=1), sums[1])), strict=True)
    return [Answers(policy, tokens, by_reference) for policy, tokens, by_reference in halves]


@pytest.mark.parametrize(
    ("theirs", "ours", "smoothing"), [("sigmoid", "dpo", 0.0), ("robust", "robust", 0.1), ("ipo", "ipo", 0.0)]
)
def test_the_loss_is_that_of_the_usual_trainer(tokenizer, tmp_path, theirs, ours, smoothing):
    from datasets import Dataset  # noqa: PLC0415
    from trl import DPOConfig, DPOTrainer  # noqa: PLC0415

    model, reference = tiny(0), tiny(1)
    settings = DPOConfig(
        str(tmp_path), loss_type=[theirs], label_smoothing=smoothing, beta=0.3, report_to=[], use_cpu=True, bf16=False,
        per_device_train_batch_size=len(PAIRS), disable_dropout=True, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = DPOTrainer(
        model, reference, args=settings, train_dataset=Dataset.from_list(PAIRS), processing_class=tokenizer
    )
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, dict(batch))
    chosen, rejected = answers(model, reference, batch)
    total, pairs = preference_loss(chosen, rejected, ours, beta=0.3, smoothing=smoothing)
    assert int(pairs) == len(PAIRS)
    assert float(chosen.tokens.sum()) > len(PAIRS), "answers were found in the batch"
    assert (total / pairs).item() == pytest.approx(expected.item(), rel=1e-6)
