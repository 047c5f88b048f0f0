"""Adapters that come from plain peft, go to plain peft, and hold modules that no base has."""

import json
import logging
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer

from lightbox.adapters import artifact, guards
from lightbox.adapters.attach import attach
from lightbox.adapters.merge import merge_to_16_bit
from lightbox.adapters.tokens import add_tokens
from lightbox.backbones.loading import load
from lightbox.backbones.published import GENERATORS
from lightbox.backbones.weights import digest_of, digest_of_weights
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError, WorkError

LLAVA, T5 = "llava-1.5-7b", "unifiedqa-t5-base"
NAMES = [LLAVA, "qwen2.5-vl-7b", "florence-2-base", T5]
FILE = "adapter_model.safetensors"


def shake(model):
    """Move what trains off its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)


def save_plain(folder, backbone, *, saves_tables="auto", **settings):
    """What a user of peft writes: no manifest, no name of a family; the model's logits are what must travel."""
    family = backbone.family
    config = LoraConfig(**({"r": 4, "lora_alpha": 6, "target_modules": list(family.linears[:2])} | settings))
    model = get_peft_model(backbone.core, config)
    shake(model)
    model.save_pretrained(folder, save_embedding_layers=saves_tables)
    return backbone.with_model(model.eval())


def tensors_equal(one, other):
    one, other = load_file(one / FILE), load_file(other / FILE)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- from plain peft


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATORS)
def test_a_folder_of_plain_peft_loads_by_name_and_is_saved_as_it_came(loaded, logits_of, tmp_path, name):
    backbone = loaded(name)
    family = backbone.family
    whole = {"modules_to_save": [family.projector.rpartition(".")[2]]} if family.has_vision else {}
    rows = {family.embeddings.rpartition(".")[2]: [5, 7]}
    kind = "SEQ_2_SEQ_LM" if family.is_encoder_decoder else "CAUSAL_LM"
    settings = whole | {"trainable_token_indices": rows, "use_rslora": True, "use_dora": True, "task_type": kind}
    plain = save_plain(tmp_path / "plain", backbone, **settings)
    ours = artifact.load(tmp_path / "plain")
    assert (logits_of(ours) - logits_of(plain)).abs().max() < 1e-5
    artifact.save(tmp_path / "ours", ours)
    assert tensors_equal(tmp_path / "plain", tmp_path / "ours")
    again = PeftModel.from_pretrained(loaded(name).core, str(tmp_path / "ours"))
    again.save_pretrained(tmp_path / "again")
    assert tensors_equal(tmp_path / "plain", tmp_path / "again")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"target_modules": r".*language_model\..*\.(q_proj|up_proj)"}, ""),
        ({"target_modules": "all-linear"}, ""),  # reaches the vision tower, which our own settings refuse
        ({"target_modules": ["q_proj", "fc2"], "bias": "all"}, ""),
        ({"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 9}}, ""),
        ({"target_modules": ["fc1"], "lora_bias": True}, "is one with a bias, on a layer of class Linear"),
        ({"target_modules": ["embed_tokens", "v_proj"]}, "is LoRA, on a layer of class Embedding"),
        ({"target_modules": ["q_proj", "patch_embedding"]}, "is LoRA, on a layer of class Conv2d"),
    ],
)
@pytest.mark.filterwarnings("ignore:Adapter 'default'.* LoRA tensor")  # peft takes a bias for a broken matrix
def test_targets_of_plain_peft_are_what_they_were(loaded, logits_of, tmp_path, settings, refusal):
    plain = save_plain(tmp_path / "plain", loaded(LLAVA), saves_tables=False, **settings)
    base = loaded(LLAVA)
    ours = artifact.load(tmp_path / "plain", base)
    assert (logits_of(ours) - logits_of(plain)).abs().max() < 1e-5
    if refusal:
        with pytest.raises(RequestError, match=f"{refusal}. LoRA without a bias and DoRA are merged here"):
            merge_to_16_bit(ours, tmp_path / "merged", dtype="fp32")
        assert not (tmp_path / "merged").exists()
        return
    merge_to_16_bit(ours, tmp_path / "merged", dtype="fp32")
    assert (logits_of(load(str(tmp_path / "merged"))) - logits_of(plain)).abs().max() < 1e-4


def test_what_plain_peft_does_not_say_is_logged_and_not_asked(loaded, tmp_path, caplog):
    save_plain(tmp_path / "plain", loaded(LLAVA))
    with caplog.at_level(logging.WARNING, logger="lightbox"):
        artifact.load(tmp_path / "plain", loaded(LLAVA, quant="nf4"))
    assert "says neither how its base was stored nor what bytes it had: unchecked" in caplog.text
    assert "quant nf4" in caplog.text


def test_a_resized_table_and_its_tokenizer_come_along(loaded, logits_of, tmp_path):
    """The older way to new tokens: table and head trained whole, and the tokenizer saved into the folder."""
    backbone = loaded(LLAVA)
    backbone.tokenizer.add_tokens(["<a>", "<b>"])
    backbone.core.resize_token_embeddings(len(backbone.tokenizer), mean_resizing=False)  # fewer rows than before
    plain = save_plain(tmp_path / "plain", backbone, modules_to_save=["embed_tokens", "lm_head"])
    backbone.tokenizer.save_pretrained(tmp_path / "plain")
    ours = artifact.load(tmp_path / "plain")
    assert ours.tokenizer.convert_tokens_to_ids("<b>") == len(backbone.tokenizer) - 1
    assert (logits_of(ours) - logits_of(plain)).abs().max() < 1e-5
    artifact.save(tmp_path / "ours", ours)
    assert tensors_equal(tmp_path / "plain", tmp_path / "ours")
    assert (logits_of(artifact.load(tmp_path / "ours")) - logits_of(plain)).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # both copies are there, and checked
def test_tables_that_peft_saved_unasked_come_along(loaded, logits_of, tmp_path):
    backbone = loaded(T5)
    backbone.core.resize_token_embeddings(len(backbone.tokenizer) + 9, mean_resizing=False)
    plain = save_plain(tmp_path / "plain", backbone, saves_tables=True)
    ours = artifact.load(tmp_path / "plain")
    assert (logits_of(ours) - logits_of(plain)).abs().max() < 1e-5
    merge_to_16_bit(ours, tmp_path / "merged", dtype="fp32")
    assert (logits_of(load(str(tmp_path / "merged"))) - logits_of(plain)).abs().max() < 1e-4
    artifact.save(tmp_path / "ours", ours)
    assert tensors_equal(tmp_path / "plain", tmp_path / "ours")
    ours.core.lm_head.modules_to_save["default"].weight.data += 0.1
    with pytest.raises(RequestError, match=r"lm_head.weight and shared.weight are one tensor in the base, and were"):
        merge_to_16_bit(ours, tmp_path / "apart")


def test_names_of_an_older_transformers_are_read(loaded, logits_of, tmp_path):
    plain = save_plain(tmp_path / "plain", loaded(LLAVA))
    older = {"model.model.language_model": "model.language_model.model", "model.model.vision": "model.vision"}
    old = load_file(tmp_path / "plain" / FILE)
    for today, then in older.items():
        old = {name.replace(today, then): tensor for name, tensor in old.items()}
    assert "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight" in old
    save_file(old, tmp_path / "plain" / FILE)
    assert (logits_of(artifact.load(tmp_path / "plain")) - logits_of(plain)).abs().max() < 1e-5


# ---- to plain peft


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 40])  # rows that are spare, and a table that grows
@pytest.mark.parametrize("name", NAMES)
def test_new_tokens_travel_with_the_adapter(loaded, logits_of, tmp_path, name, count):
    backbone = loaded(name)
    tokens = add_tokens(backbone.core, backbone.tokenizer, [f"<n{i}>" for i in range(count)])
    trained = attach(backbone, AdapterConfig(kind="lora", r=4), new_token_ids=list(tokens.values()))
    shake(trained.model)
    wanted = logits_of(trained.with_model(trained.model.eval()))
    folder = artifact.save(tmp_path / "adapter", trained)
    ours = artifact.load(folder)
    assert ours.tokenizer.convert_tokens_to_ids("<n1>") == tokens["<n1>"]
    assert torch.equal(logits_of(ours), wanted)
    base = loaded(name)
    base.tokenizer = AutoTokenizer.from_pretrained(folder)
    assert base.tokenizer.convert_tokens_to_ids("<n1>") == tokens["<n1>"]
    base.core.resize_token_embeddings(max(len(base.tokenizer), base.core.get_input_embeddings().num_embeddings))
    plain = base.with_model(PeftModel.from_pretrained(base.core, str(folder)).eval())
    assert (logits_of(plain) - wanted).abs().max() < 1e-5


# ---- modules beside the adapter


class Router(nn.Module):
    """A router of a mixture that is made after loading: what the head reads, weighted."""

    def __init__(self, width):
        super().__init__()
        torch.manual_seed(3)
        self.gate = nn.Sequential(nn.Linear(width, 4), nn.Linear(4, width))

    def forward(self, hidden):
        return hidden * (1 + self.gate(hidden).tanh())


def with_router(backbone):
    core = backbone.core
    core.router = Router(core.get_input_embeddings().weight.shape[1])
    # looked up at each call, so that peft's copy answers
    backbone.part(backbone.family.head).register_forward_pre_hook(lambda module, args: core.router(args[0]))
    return backbone


@pytest.mark.parametrize("name", [LLAVA, T5])
def test_a_module_that_was_added_travels_by_its_setting(loaded, logits_of, batch_of, tmp_path, name):
    adapter = AdapterConfig(kind="lora", r=4, modules=["router"])
    trained = attach(with_router(loaded(name)), adapter)
    groups = {group.group: group.count for group in guards.trainable_report(trained.model, trained.family)}
    assert groups["module router"] == 64 * 4 + 4 + 4 * 64 + 64
    shake(trained.model)
    wanted = logits_of(trained.with_model(trained.model.eval()))
    folder = artifact.save(tmp_path / "adapter", trained, adapter)
    again = artifact.load(folder, with_router(loaded(name)), is_trainable=True)
    assert torch.equal(logits_of(again), wanted)
    guards.check_trainable(again.model, again.family, adapter)
    again.loss(batch_of(again))[0].backward()
    assert all(p.grad is not None for n, p in again.model.named_parameters() if ".router.modules_to_save." in n)
    with pytest.raises(RequestError, match=r"4 of \d+ tensors .* such as router\.gate\.0, which '.*' lacks\. .*added"):
        artifact.load(folder)
    merge_to_16_bit(trained, tmp_path / "merged", dtype="fp32")
    merged = load(str(tmp_path / "merged"))
    learned = load_file(tmp_path / "merged" / "model.safetensors")
    with_router(merged).core.router.load_state_dict(
        {name.removeprefix("router."): tensor for name, tensor in learned.items() if name.startswith("router.")}
    )
    assert (logits_of(merged) - wanted).abs().max() < 1e-4


def test_a_trained_tensor_that_is_not_in_the_file_is_not_lost_in_silence(loaded, tmp_path):
    adapter = AdapterConfig(kind="lora", r=4)
    trained = attach(with_router(loaded(LLAVA)), adapter)
    trained.core.router.requires_grad_(True)
    message = (
        r"4 tensors train and are not part of the adapter: router\.gate\.0\.weight, .*Name their modules in adapter"
    )
    with pytest.raises(WorkError, match=message):
        artifact.save(tmp_path / "adapter", trained, adapter)
    assert not (tmp_path / "adapter").exists()
    trained.core.router.requires_grad_(False)
    artifact.save(tmp_path / "adapter", trained, adapter)


def test_a_layer_that_trains_as_a_whole_gets_no_additions(attached, logits_of, loaded, tmp_path):
    backbone, adapter = attached(LLAVA, modules=[r"model\.language_model\.layers\.1\.mlp"])
    lora = [name for name, _ in backbone.model.named_parameters() if "lora_A" in name]
    assert len(lora) == 7 + 4
    assert not [name for name in lora if "layers.1.mlp" in name]
    artifact.save(tmp_path / "adapter", backbone, adapter)
    assert torch.equal(logits_of(artifact.load(tmp_path / "adapter", loaded(LLAVA))), logits_of(backbone))


def test_the_outermost_of_the_named_modules_is_the_one_that_trains(attached):
    backbone, _ = attached(
        LLAVA, modules=[r"model\.language_model\.norm", r"model\.language_model\.layers\.1\.mlp(\..*_proj)?"]
    )
    groups = [group.group for group in guards.trainable_report(backbone.model, backbone.family)]
    assert groups[1:] == ["module model.language_model.layers.1.mlp", "module model.language_model.norm"]


@pytest.mark.parametrize(
    ("pattern", "quant", "message"),
    [
        (
            "rooter",
            "none",
            r"adapter.modules has 'rooter'. It matches no module as a whole; names look like model",
        ),
        ("(", "none", r"It is no regular expression"),
        (
            r"model\.language_model\.embed_tokens",
            "none",
            "and the projector, token table and head have",
        ),
        ("lm_head", "none", "token table and head have settings of their own"),
        (r"model\.multi_modal_projector\.linear_1", "none", "and the projector, token table and head have settings"),
        (r"model\.language_model\.layers", "none", "a list of modules, which is never called itself"),
        (r".*layers\.0\.mlp\.act_fn", "none", "which has no parameters"),
        (r".*layers\.0\.mlp\.up_proj", "nf4", "stored in 4 or 8 bit and cannot train"),
    ],
)
def test_modules_that_cannot_train_are_refused(attached, pattern, quant, message):
    with pytest.raises(RequestError, match=message):
        attached(LLAVA, quant=quant, modules=[pattern])


def test_a_module_that_should_train_and_does_not_is_named(attached):
    backbone, _ = attached(LLAVA)
    with pytest.raises(WorkError, match=r"missing: module rou\.\*\."):
        guards.check_trainable(backbone.model, backbone.family, AdapterConfig(kind="lora", modules=["rou.*"]))


# ---- what fits


@pytest.fixture
def copied(saved, attached, tmp_path):
    """A copy of the base, and an adapter that was trained on the base."""
    backbone, adapter = attached(LLAVA)
    folder = artifact.save(tmp_path / "adapter", backbone, adapter)
    return shutil.copytree(saved(LLAVA), tmp_path / "copy"), folder


def test_texts_and_settings_beside_the_weights_do_not_decide_the_fit(copied):
    base, folder = copied
    (base / "README.md").write_text("another text")
    for name in ("generation_config.json", "tokenizer_config.json"):
        changed = json.loads((base / name).read_text()) | {"remark": 1}
        (base / name).write_text(json.dumps(changed))
    artifact.load(folder, load(str(base)))


def test_one_changed_tensor_decides_it(copied):
    base, folder = copied
    tensors = load_file(base / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(RequestError, match=r"The adapter .* and the base '.*copy' .* It was trained on"):
        artifact.load(folder, load(str(base)))


def test_a_manifest_of_format_1_fits_what_it_fitted(copied, saved):
    base, folder = copied
    record = json.loads((folder / "manifest.json").read_text())
    record |= {"format": 1, "base": record["base"] | {"digest": digest_of(str(saved(LLAVA)))}}
    del record["adapter"]["modules"]
    (folder / "manifest.json").write_text(json.dumps(record))
    artifact.load(folder, load(str(base)))
    (base / "generation_config.json").write_text("{}")
    with pytest.raises(RequestError, match="It was trained on"):
        artifact.load(folder, load(str(base)))


def test_the_digest_of_weights_leaves_adapters_beside_them_out(copied):
    base, folder = copied
    digest = digest_of_weights(str(base))
    shutil.copy(folder / FILE, base / FILE)
    assert digest_of_weights(str(base)) == digest


# ---- refusals


def test_an_adapter_of_another_architecture_is_refused_before_the_base_is_changed(loaded, logits_of, tmp_path):
    save_plain(tmp_path / "plain", loaded("qwen2.5-vl-7b"))
    base = loaded(T5)
    message = r"\d+ of \d+ tensors .* which '.*unifiedqa.*' lacks\. .* another architecture than a t5"
    with pytest.raises(RequestError, match=message):
        artifact.load(tmp_path / "plain", base)
    assert not any("lora" in name for name, _ in base.core.named_modules())


def test_an_adapter_of_another_size_is_refused(loaded, tmp_path):
    save_plain(tmp_path / "plain", loaded(LLAVA))
    tensors = load_file(tmp_path / "plain" / FILE)
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name] = torch.zeros(4, 48)
    save_file(tensors, tmp_path / "plain" / FILE)
    with pytest.raises(
        RequestError, match=r"lora_A.weight of the adapter .* is \(4, 48\), and the base needs \(4, \d+\)"
    ):
        artifact.load(tmp_path / "plain")


def test_a_base_that_is_not_there_is_named(loaded, tmp_path):
    save_plain(tmp_path / "plain", loaded(LLAVA))
    config = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    for name, why in (("/not/here", "no such directory"), ("llava-hf/llava-1.5-7b-hf", "revision ''")):
        config["base_model_name_or_path"] = name
        (tmp_path / "plain" / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(RequestError, match=rf"names the base '{name}'. That cannot be loaded: .*{why}.*hand it to"):
            artifact.load(tmp_path / "plain")


def test_an_adapter_that_is_no_lora_is_refused(loaded, tmp_path):
    config = PromptTuningConfig(num_virtual_tokens=2, task_type="SEQ_2_SEQ_LM", num_transformer_submodules=1)
    get_peft_model(loaded(T5).core, config).save_pretrained(tmp_path / "plain")
    with pytest.raises(RequestError, match="holds an adapter of kind PROMPT_TUNING. Here LoRA is read"):
        artifact.load(tmp_path / "plain")


def test_a_damaged_description_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(WorkError, match=r"adapter_config.json cannot be read. KeyError\('peft_type'\)"):
        artifact.load(tmp_path)
