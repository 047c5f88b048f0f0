"""A Qwen2.5-VL of random weights, as the shipped one is made, and words to put into a policy's mouth."""

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from lightbox.backbones import backbone as backbone_module
from lightbox.backbones.generation import Choice
from lightbox.paths import shared_data
from lightbox.pretrain.qwen2_5_vl import make_model, make_processor, make_tokenizer


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen2_5_vl")
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    start = LlavaForConditionalGeneration.from_pretrained(shared_data() / "weights" / "llava")
    make_model(tokenizer, start).eval().save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def script(monkeypatch):
    """Put words into a backbone's mouth: one list of texts a turn, one text a row; "..." never ends.

    Log-probabilities stay those of the model, as `Choice` keeps them. The lists that are left are returned.
    """

    def given(backbone, turns):
        left = [list(texts) for texts in turns]

        class Scripted(Choice):
            def __init__(self, sampling, max_new_tokens):
                super().__init__(None, max_new_tokens)
                self.rows = [
                    backbone.tokenizer("a " * 40)["input_ids"] if text == "..." else backbone.target_ids(text)
                    for text in left.pop(0)
                ]

            def __call__(self, input_ids, scores):
                assert len(scores) == len(self.rows)
                step = len(self.logps)
                chosen = torch.tensor([[row[min(step, len(row) - 1)]] for row in self.rows])
                self.logps.append(scores.log_softmax(dim=-1).gather(1, chosen)[:, 0])
                return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)

        monkeypatch.setattr(backbone_module, "Choice", Scripted)
        return left

    return given
