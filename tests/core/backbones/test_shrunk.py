"""Published models in miniature: what differs from the real configuration, what is written, what loads again."""

import re

import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import AutoProcessor, AutoTokenizer

from lightbox.backbones.published import GENERATORS, PUBLISHED, TOWERS
from lightbox.testing.shrunk import build, real_config, save_shrunk, shrunk_config

SIZES = set(
    """hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim image_size
    projection_dim projection_size vocab_size max_position_embeddings image_seq_length image_grid_pinpoints
    mrope_section max_window_layers depth embed_dim num_heads num_groups depths window_size out_hidden_size
    fullatt_block_indexes mm_tokens_per_image query_pre_attn_scalar sliding_window layer_types d_model encoder_layers
    decoder_layers encoder_attention_heads decoder_attention_heads encoder_ffn_dim decoder_ffn_dim d_kv d_ff num_layers
    num_decoder_layers embedding_size hidden_sizes stage_names out_features out_indices""".split()
)
TOKEN_IDS = re.compile(r"\w+_token_(id|index)")
TOKENIZERS = {"qwen": "Qwen2Tokenizer", "medg": "GemmaTokenizer", "flor": "RobertaTokenizer", "unif": "T5Tokenizer"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save_shrunk(name, tmp_path_factory.mktemp(name)) for name in PUBLISHED}


def leaves(values, path=()):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def names_without_numbers(model):
    return {re.sub(r"\d+", "N", name) for name in model.state_dict()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_only_sizes_and_token_ids_differ_from_the_published_configuration(name):
    real, small = (dict(leaves(config.to_dict())) for config in (real_config(name), shrunk_config(name)))
    assert real.keys() == small.keys()
    changed = {path[-1] for path in real if real[path] != small[path]}
    assert changed
    assert {key for key in changed - SIZES if not TOKEN_IDS.fullmatch(key)} == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_full_model_has_the_published_size_and_the_small_ones_tensor_names(name):
    with torch.device("meta"):
        real, small = build(name, real_config(name)), build(name, shrunk_config(name))
    millions = sum(parameter.numel() for parameter in real.parameters()) / 1e6
    if PUBLISHED[name].parameters is not None:
        assert millions == pytest.approx(PUBLISHED[name].parameters, rel=0.01)
    assert names_without_numbers(real) == names_without_numbers(small)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_saved_folder_is_small_and_loads_without_a_missing_tensor(name, folders):
    files = list(folders[name].iterdir())
    assert sum(file.stat().st_size for file in files) < 3_000_000
    assert "config.json" in {file.name for file in files}
    model_class = getattr(transformers, PUBLISHED[name].model_class)
    model, found = model_class.from_pretrained(folders[name], dtype="float32", output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(parameter.detach().std() > 1e-3 for parameter in model.parameters() if parameter.ndim > 1)


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    name = "qwen2.5-vl-7b"
    first, again, other = (save_shrunk(name, tmp_path / f"{k}", seed) for k, seed in enumerate((0, 0, 1)))
    read = [(folder / "model.safetensors").read_bytes() for folder in (first, again, other)]
    assert read[0] == read[1] != read[2]
    assert (first / "tokenizer.json").read_bytes() == (again / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", GENERATORS)
def test_tokenizer_has_the_real_class_and_ids_that_the_configuration_names(name, folders):
    tokenizer, config = AutoTokenizer.from_pretrained(folders[name]), shrunk_config(name)
    assert type(tokenizer).__name__ == TOKENIZERS.get(name[:4], "TokenizersBackend")
    vocabulary = config.get_text_config().vocab_size
    assert max(tokenizer.get_vocab().values()) < vocabulary
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    text = "Is there a nodule in the left upper zone? [0.125, 3]"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) < 0.65 * len(text)
    named = {"<image>": "image_token_id", "<|image_pad|>": "image_token_id", "<image_soft_token>": "image_token_id"}
    named |= {"<|vision_start|>": "vision_start_token_id", "<start_of_image>": "boi_token_index"}
    for token, key in named.items():
        if token in tokenizer.get_vocab():
            assert tokenizer.convert_tokens_to_ids(token) == getattr(config, key)


@pytest.mark.parametrize("name", [name for name in GENERATORS if name != "unifiedqa-t5-base"])
def test_processor_loads_and_expands_the_image(name, folders):
    processor = AutoProcessor.from_pretrained(folders[name])
    config = shrunk_config(name)
    if processor.chat_template is None:
        text = "<OD>"
    else:
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it ?"}]}
        text = processor.apply_chat_template([turn], add_generation_prompt=True)
        assert "Is it ?" in text
    image = torch.zeros((3, 70, 90), dtype=torch.uint8)
    batch = processor(images=[image], text=[text], return_tensors="pt")
    expected = {"llava-1.5-7b": 16, "llava-med": 16, "llava-next": 70, "medgemma-4b": 4, "florence-2-base": 10}
    assert (batch["input_ids"] == config.image_token_id).sum() == expected.get(name, 6)


def test_control_tokens_of_qwen_follow_the_text_tokens_in_the_real_order(folders):
    tokenizer = AutoTokenizer.from_pretrained(folders["qwen2-vl-7b"])
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>", "<|box_start|>")}
    assert {token: place - 480 + 151643 for token, place in ids.items()} == {
        "<|endoftext|>": 151643,
        "<|im_end|>": 151645,
        "<|box_start|>": 151648,
    }
    config = real_config("qwen2-vl-7b")
    assert (config.text_config.eos_token_id, config.image_token_id) == (151645, 151655)


def test_location_tokens_of_florence_are_single_ids(folders):
    tokenizer = AutoTokenizer.from_pretrained(folders["florence-2-base"])
    ids = tokenizer("<loc_0><loc_63>", add_special_tokens=False)["input_ids"]
    assert ids == [tokenizer.convert_tokens_to_ids("<loc_0>"), tokenizer.convert_tokens_to_ids("<loc_63>")]
    assert tokenizer.decode(ids) == "<loc_0><loc_63>"


@pytest.mark.parametrize("name", TOWERS)
def test_image_processor_is_written(name, folders):
    written = {file.name for file in folders[name].iterdir()}
    assert written & {"preprocessor_config.json", "processor_config.json"}
    with safe_open(folders[name] / "model.safetensors", "pt") as file:
        assert len(file.keys()) > 10
