"""A folder in the layout of LLaVA's authors becomes one that transformers reads, with the same logits."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel, LlavaForConditionalGeneration
from typer.testing import CliRunner

from lightbox.backbones.conversation import Conversation, user
from lightbox.backbones.convert_llava import convert_llava
from lightbox.backbones.loading import load
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.cli.data import app
from lightbox.errors import RequestError
from lightbox.testing.tiny_models import byte_tokenizer, save_llava

ROWS = 320  # 260 tokens, `<image>` among them, and `<pad>`, up to a multiple of 64
THEIRS = {
    "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
    "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    "model.language_model.": "model.",
    "lm_head.": "lm_head.",
}


def reference(body):
    """A model of transformers with a table of 320 rows whose last ones are the mean of those before."""
    config = LlavaForConditionalGeneration.config_class.from_pretrained(FOLDERS[body])
    config.text_config.vocab_size = ROWS
    config.text_config.rms_norm_eps = 1e-3
    config.text_config.rope_parameters = {"rope_type": "default", "rope_theta": 500.0}
    torch.manual_seed(3)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for table in (model.lm_head.weight, model.model.language_model.embed_tokens.weight):
            table[260:] = table[:260].mean(dim=0)
    return model


FOLDERS = {}


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory):
    for body in ("llama", "mistral"):
        FOLDERS[body] = save_llava(tmp_path_factory.mktemp(body), body=body, width=128)


def write_original(folder, model, body, *, has_tower=True):
    """What the authors' code writes for that model: its names, its config, two files, a tokenizer without `<image>`."""
    tensors = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}
    for name, tensor in model.state_dict().items():
        ours, theirs = next(pair for pair in THEIRS.items() if name.startswith(pair[0]))
        is_table = tensor.shape[0] == ROWS
        tensors[theirs + name.removeprefix(ours)] = (tensor[:260] if is_table else tensor).clone()
    kept = {n: t for n, t in tensors.items() if has_tower or "vision_tower" not in n}
    names = sorted(kept)
    folder.mkdir()
    for place, part in enumerate((names[::2], names[1::2]), start=1):
        file = folder / f"model-0000{place}-of-00002.safetensors"
        save_file({name: kept[name] for name in part}, file, metadata={"format": "pt"})
    text = model.config.text_config
    config = {
        "model_type": f"llava_{body}",
        "architectures": [f"Llava{body.title()}ForCausalLM"],
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 128,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "tune_mm_mlp_adapter": False,
        "rope_theta": 500.0,
        "rope_scaling": None,
        "vocab_size": 260,
    }
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps"):
        config[key] = getattr(text, key)
    config |= {"num_key_value_heads": text.num_key_value_heads, "max_position_embeddings": 256, "hidden_act": "silu"}
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text().replace("<image>", "<spare>").replace("<pad>", "<unk>")
        (folder / name).write_text(text.replace('"image_token": "<spare>",', ""))
    return folder


IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@torch.no_grad()
@pytest.mark.parametrize("body", ["llama", "mistral"])
def test_converted_model_gives_the_logits_of_the_original(body, tmp_path):
    model = reference(body)
    source = write_original(tmp_path / "source", model, body)
    done = convert_llava(source, tmp_path / "dest")
    backbone = load(str(done.folder))
    assert (done.files, done.tensors) == (2, len(model.state_dict()))
    assert backbone.core.config.text_config.model_type == body
    assert backbone.image_token_id == 260
    assert backbone.tokenizer.pad_token_id == 261
    batch = backbone.prepare([IMAGE], ["What is it?"], ["lung"], max_tokens=200)
    model.config.image_token_index = model.model.config.image_token_index = 260
    wanted = model(**batch.inputs).logits
    have = backbone.model(**batch.inputs).logits
    torch.testing.assert_close(have, wanted, rtol=1e-5, atol=1e-6)
    assert have.argmax(dim=-1).max() < 260


@torch.no_grad()
def test_tower_comes_from_its_own_folder_where_the_source_has_none(tmp_path):
    model = reference("mistral")
    source = write_original(tmp_path / "source", model, "mistral", has_tower=False)
    with pytest.raises(RequestError, match="Fetch that tower into a folder and name it with --tower"):
        convert_llava(source, tmp_path / "dest")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]  # nothing half-written is left
    tower = CLIPVisionModel(model.config.vision_config)
    tower.load_state_dict(model.model.vision_tower.state_dict())
    with quiet_loading():
        tower.save_pretrained(tmp_path / "tower")
    result = CliRunner().invoke(
        app, ["convert", str(source), str(tmp_path / "dest"), "--tower", str(tmp_path / "tower")]
    )
    assert result.exit_code == 0, result.output
    assert "in 3 files" in result.output
    have = load(str(tmp_path / "dest")).part("model.vision_tower").state_dict()
    for name, tensor in model.model.vision_tower.state_dict().items():
        assert torch.equal(have[name], tensor), name


def test_prompts_and_images_are_those_of_the_authors(tmp_path):
    """Mistral's instruction brackets; images are padded to a square with the mean colour, not cropped."""
    source = write_original(tmp_path / "source", reference("mistral"), "mistral")
    backbone = load(str(convert_llava(source, tmp_path / "dest").folder))
    wide = Image.fromarray(np.full((8, 32, 3), 255, dtype=np.uint8))
    asked = Conversation((user(wide, "What is it?"),))
    assert backbone.write(asked) == ["[INST] <image>\nWhat is it? [/INST]"]
    pixels = backbone.prepare([wide], ["a"], max_tokens=100).inputs["pixel_values"][0]
    assert pixels[:, 0].abs().max() < 0.02  # the margin is the mean, 0 after normalisation
    assert pixels[:, 16].min() > 1.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type is linear"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type is spatial_unpad"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True"),
        ({"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}, "are in that layout"),
    ],
)
def test_what_is_not_that_layout_is_refused(changes, message, tmp_path):
    source = write_original(tmp_path / "source", reference("llama"), "llama")
    config = json.loads((source / "config.json").read_text()) | changes
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match=message):
        convert_llava(source, tmp_path / "dest")


def test_part_of_a_model_and_foreign_tensors_are_refused(tmp_path):
    source = write_original(tmp_path / "source", reference("llama"), "llama")
    for file in source.glob("*.safetensors"):
        kept = {name: tensor for name, tensor in load_file(file).items() if "mm_projector" not in name}
        save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"lacks multi_modal_projector.linear_1.weight, .* Merge it with its base"):
        convert_llava(source, tmp_path / "dest")
    save_file({"score.weight": torch.ones(2)}, source / "other.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"Tensor 'score.weight'. It is not part"):
        convert_llava(source, tmp_path / "dest")


def test_an_existing_folder_is_not_overwritten(tmp_path):
    with pytest.raises(RequestError, match="It exists already"):
        convert_llava(tmp_path, tmp_path)
