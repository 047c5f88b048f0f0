"""MedPLIB in the layout of its own code, in miniature -> our folders: logits, routing, prompts, masks, refusals."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import nn
from transformers import LlavaForConditionalGeneration

from lightbox.backbones.segmenter import load_segmenter
from lightbox.errors import RequestError
from lightbox.paper.pixel_items import PixelItem
from lightbox.testing.official_sam import official_sam
from lightbox.testing.tiny_models import byte_tokenizer, save_llava
from medplib.artifact import open_model, save_model
from medplib.assembly import mixtures
from medplib.official.__main__ import main
from medplib.official.convert import convert_medplib

WIDTH, HIDDEN, PROMPT, WORDS = 128, 256, 32, 260
TOKENS = ["<SEG>", "<ref>", "</ref>", "<region>", "</region>", "<sr>", "</sr>", "<mask>", "</mask>"]
TOKENS += [f"<gen_{number}>" for number in range(1, 257)] + ["<im_start>", "<im_end>"]
THEIRS = {
    "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
    "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    "model.language_model.": "model.",
    "lm_head.": "lm_head.",
}
NETWORKS = {"gate_proj": (HIDDEN, WIDTH), "up_proj": (HIDDEN, WIDTH), "down_proj": (WIDTH, HIDDEN)}


def at_layer(layer, rest):
    return f"model.layers.{layer}.mlp.deepspeed_moe.{rest}"


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A LLaVA of transformers with all rows that a converted MedPLIB has, those behind its words their mean."""
    config = LlavaForConditionalGeneration.config_class.from_pretrained(
        save_llava(tmp_path_factory.mktemp("llava"), width=WIDTH)
    )
    rows = WORDS + len(TOKENS)
    config.text_config.vocab_size = -(-(rows + 2) // 64) * 64
    config.image_token_index = rows
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlavaForConditionalGeneration(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            for table in (model.lm_head.weight, model.model.language_model.embed_tokens.weight):
                table[rows:] = table[:rows].mean(dim=0)
    return model


@pytest.fixture(scope="module")
def tensors(dense):
    """What the official code would save of a mixture on that LLaVA."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) * shape[-1] ** -0.5

    saved = {f"model.visual_model.{name}": tensor for name, tensor in official_sam().items()}
    for name, tensor in dense.state_dict().items():
        ours, theirs = next(pair for pair in THEIRS.items() if name.startswith(pair[0]))
        is_table = tensor.shape[0] == dense.config.text_config.vocab_size
        if ".mlp." not in name or "vision_tower" in name:
            saved[theirs + name.removeprefix(ours)] = (tensor[: WORDS + len(TOKENS)] if is_table else tensor).clone()
    for layer in range(dense.config.text_config.num_hidden_layers):
        saved[at_layer(layer, "gate.wg.weight")] = draw(2, WIDTH)
        for expert in range(2):
            for part, shape in NETWORKS.items():
                saved[at_layer(layer, f"experts.deepspeed_experts.{expert}.{part}.weight")] = draw(*shape)
    for name, shape in {"text_hidden_fcs.0.0": (WIDTH, WIDTH), "text_hidden_fcs.0.2": (PROMPT, WIDTH)}.items():
        saved |= {f"model.{name}.weight": draw(*shape), f"model.{name}.bias": draw(shape[0])}
    saved |= {"model.region_fea_adapter.weight": draw(WIDTH, WIDTH), "model.region_fea_adapter.bias": draw(WIDTH)}
    return saved


@pytest.fixture
def write_source(tmp_path, dense, tensors):
    """Write a folder as the official merging script does, with changes of config and tensors; None leaves out."""

    def write(changes=(), **config_changes):
        folder = tmp_path / "source"
        folder.mkdir()
        whole = {name: tensor for name, tensor in (tensors | dict(changes)).items() if tensor is not None}
        names = sorted(whole)
        for place, part in enumerate((names[::2], names[1::2]), start=1):
            own = {name: whole[name] for name in part}
            save_file(own, folder / f"model-0000{place}-of-00002.safetensors", metadata={"format": "pt"})
        text = dense.config.text_config
        config = {
            "model_type": "medplib_moe_llama",
            "architectures": ["MedPLIBForCausalLM"],
            "mm_vision_tower": "openai/clip-vit-large-patch14-336",
            "mm_projector_type": "mlp2x_gelu",
            "mm_hidden_size": WIDTH,
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch",
            "mm_use_im_start_end": True,
            "image_aspect_ratio": "square",
            "moe": {"num_experts": [2], "top_k_experts": 1, "capacity_factor": 1.5, "use_residual": False},
            "vocab_size": WORDS + len(TOKENS),
            "hidden_act": "silu",
            "max_position_embeddings": 512,
        }
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps"):
            config[key] = getattr(text, key)
        config |= {"num_key_value_heads": text.num_key_value_heads} | config_changes
        (folder / "config.json").write_text(json.dumps(config))
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens([AddedToken(token, special=True) for token in TOKENS])
        tokenizer.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            spelled = (folder / name).read_text().replace('"<image>"', '"<spare>"').replace('"<pad>"', '"<unk>"')
            (folder / name).write_text(spelled.replace('"image_token": "<spare>",', ""))
        return folder

    return write


@pytest.fixture
def opened(write_source, tmp_path):
    convert_medplib(write_source(), tmp_path / "ours")
    return open_model(tmp_path / "ours" / "model", load_segmenter(str(tmp_path / "ours" / "segmenter"))).eval()


PICTURE = np.random.default_rng(0).integers(0, 256, (20, 32, 3), dtype=np.uint8)
HALF = np.zeros((20, 32), dtype=bool)
HALF[:, :16] = True
ASKED = PixelItem(PICTURE, "what is this <region></region> ?", (HALF,), "it is <SEG>", (HALF,))


class OfficialMixture(nn.Module):
    """A top-1 mixture as DeepSpeed computes it where no token is dropped: probability times the likeliest expert."""

    def __init__(self, tensors, layer):
        super().__init__()
        self.tensors, self.layer = tensors, layer

    def forward(self, hidden):
        probs = F.linear(hidden, self.tensors[at_layer(self.layer, "gate.wg.weight")]).softmax(-1)
        out = torch.zeros_like(hidden)
        for expert in range(2):
            gate, up, down = (
                self.tensors[at_layer(self.layer, f"experts.deepspeed_experts.{expert}.{part}.weight")]
                for part in NETWORKS
            )
            own = F.linear(F.silu(F.linear(hidden, gate)) * F.linear(hidden, up), down)
            out += own * (probs[..., expert] * (probs.argmax(-1) == expert))[..., None]
        return out


def plain_logits(dense, batch):
    """Logits of the LLaVA alone, of what the official vocabulary holds, asked without a region."""
    return dense(**batch.rows.inputs, **batch.pixels).logits[..., : WORDS + len(TOKENS)]


def own_logits(model, batch):
    return model.backbone.model(**model.language_inputs(batch)).logits[..., : WORDS + len(TOKENS)]


@torch.no_grad()
def test_forced_to_an_expert_it_is_the_llava_of_that_expert(opened, dense, tensors):
    batch = opened.prepare([PixelItem(PICTURE, "what is it ?")])
    state = dense.state_dict()
    for number, name in enumerate(("grounding", "vl")):
        own = {
            f"model.language_model.layers.{layer}.mlp.{part}.weight": tensors[
                at_layer(layer, f"experts.deepspeed_experts.{number}.{part}.weight")
            ]
            for layer in range(2)
            for part in NETWORKS
        }
        dense.load_state_dict(state | own)
        mixture = next(iter(mixtures(opened.backbone.core)))[1]
        mixture.routing.forced = name
        torch.testing.assert_close(own_logits(opened, batch), plain_logits(dense, batch), atol=1e-5, rtol=1e-5)
        mixture.routing.forced = None


@torch.no_grad()
def test_routed_it_is_the_official_mixture(opened, dense, tensors):
    batch = opened.prepare([PixelItem(PICTURE, "what is it ?")])
    networks = [layer.mlp for layer in dense.model.language_model.layers]
    for number, layer in enumerate(dense.model.language_model.layers):
        layer.mlp = OfficialMixture(tensors, number)
    wanted = plain_logits(dense, batch)
    for layer, network in zip(dense.model.language_model.layers, networks, strict=True):
        layer.mlp = network
    torch.testing.assert_close(own_logits(opened, batch), wanted, atol=1e-5, rtol=1e-5)
    for path, mixture in mixtures(opened.backbone.core):
        official = tensors[at_layer(path.split(".")[-2], "gate.wg.weight")]
        assert list(mixture.router.rows) == ["grounding", "vl"]
        assert torch.equal(torch.stack(list(mixture.router.rows.values())), official)
        assert (mixture.settings.weight, mixture.settings.top_k) == ("prob", 1)


@torch.no_grad()
def test_projector_adapter_and_prompt_are_the_official_ones(opened, tensors, tmp_path):
    states = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
    first, last = (
        (tensors[f"model.text_hidden_fcs.0.{place}.weight"], tensors[f"model.text_hidden_fcs.0.{place}.bias"])
        for place in (0, 2)
    )
    wanted = F.linear(F.linear(states, *first).relu(), *last)  # and no norm
    torch.testing.assert_close(opened.seg_projector(states), wanted)
    assert torch.equal(opened.region_adapter.weight, tensors["model.region_fea_adapter.weight"])
    batch = opened.prepare([ASKED])
    text = opened.backbone.tokenizer.decode(batch.rows.inputs["input_ids"][0])
    assert text.startswith("<s>A chat between a curious human and an artificial intelligence assistant. ")
    question = "<im_end>\nwhat is this <region><region_feature></region> ? ASSISTANT:"
    assert "USER: <im_start><image>" in text
    assert question in text
    assert text.endswith("</s>")
    output = opened(batch)
    assert [mask.shape for mask in output.mask_logits] == [HALF.shape]
    assert "<SEG>" in opened.backbone.read_ids(
        batch.rows.inputs["input_ids"][0]
    )  # no special token, so answers keep it

    # saved and opened again, it is the same, the missing norm too
    again = open_model(save_model(tmp_path / "again", opened).parent / "again", opened.segmenter).eval()
    assert torch.equal(again(again.prepare([ASKED])).mask_logits[0], output.mask_logits[0])


EXTRA = "model.mm_token_compressor.proj.weight"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tensor", "value", "why"),
    [
        (at_layer(1, "experts.deepspeed_experts.1.up_proj.weight"), None, r"missing .*layers.1.mlp.experts.vl.up_proj"),
        (at_layer(0, "experts.deepspeed_experts.2.up_proj.weight"), torch.ones(2), "unexpected .*expert_2.up_proj"),
        (at_layer(0, "gate.wg.weight"), torch.ones(1, WIDTH), "missing .*router.rows.vl"),
        ("model.text_hidden_fcs.0.2.weight", torch.ones(3, WIDTH), "another shape seg_projector.2.weight"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", torch.ones(2), "unexpected .*lora_A"),
        (EXTRA, torch.ones(2), f"unexpected {EXTRA}"),
        ("model.visual_model.image_encoder.pos_embed", None, "visual_model.* lacks image_encoder.pos_embed"),
    ],
)
def test_a_mixture_that_is_not_whole_is_refused_by_name(write_source, tmp_path, tensor, value, why):
    source = write_source({tensor: value})
    with pytest.raises(RequestError, match=why):
        convert_medplib(source, tmp_path / "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_other_folders_are_refused(write_source, tmp_path):
    with pytest.raises(RequestError, match="exists already"):
        convert_medplib(tmp_path, tmp_path)
    with pytest.raises(RequestError, match="holds no config.json"):
        convert_medplib(tmp_path, tmp_path / "ours")
    source = write_source(model_type="llava_llama")
    with pytest.raises(RequestError, match="its earlier stages have one network"):
        convert_medplib(source, tmp_path / "ours")


def test_a_user_converts_by_one_command(write_source, tmp_path, capsys):
    source = write_source()
    with pytest.raises(SystemExit, match="0"):
        main([str(source), str(tmp_path / "ours")])
    assert f"model.segmenter={tmp_path / 'ours' / 'segmenter'}" in capsys.readouterr().out
    for file in source.glob("*.safetensors"):
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
    with pytest.raises(SystemExit, match="2"):
        main([str(source), str(tmp_path / "other")])
    assert "Convert its .bin files first, each with 'lightbox data convert'" in capsys.readouterr().err
