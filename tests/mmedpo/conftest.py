"""A LLaVA of random weights that every test of the paper shares."""

import pytest
import torch

from lightbox.pretrain.llava import make_model, make_processor, make_tokenizer


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    make_model(tokenizer).eval().save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    return folder
