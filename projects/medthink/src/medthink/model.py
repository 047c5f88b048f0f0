"""MedThink's model: a T5 whose encoder output is fused once with frozen vision tokens.

| paper | here |
|---|---|
| F_T, output of the text encoder | `text` (b t d) |
| F, features of the frozen vision model | `vision` (b p c) |
| V = W_img F + b | `Fusion.project` |
| H_attn, one attention head, queries F_T, keys and values V | `Fusion.attend` |
| lambda = sigmoid(W_l F_T + W_v H_attn) | `Fusion.gate`, with a bias |
| F_fuse = (1 - lambda) F_T + lambda H_attn, read by the decoder | `MedThinkT5.encode` |

The encoder and decoder are the stock T5; the decoder attends under the text's padding mask. The fused output is
computed once per item: generation receives it as `encoder_outputs` and keeps its key-value cache. `FusedT5` gives it
the interface of every other backbone, so that any vision-language model can stand in its place.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from lightbox.backbones import quantisation, rows
from lightbox.backbones.attention import choose
from lightbox.backbones.families import BY_MODEL_TYPE
from lightbox.backbones.loading import DTYPES
from lightbox.backbones.rows import IGNORED, VlmBatch
from lightbox.backbones.seq2seq import load_seq2seq
from lightbox.backbones.t5 import T5Backbone
from lightbox.paper.pretrained import Pretrained
from lightbox.train.precision import make_accelerator, plain_device
from lightbox.train.seeds import seed_everything
from medthink.config import Config

PLAIN = BY_MODEL_TYPE["t5"]
FUSED = dataclasses.replace(PLAIN, projector="fusion")
"""T5's parts with the fusion in the place of a projector: never quantised, and trained as a whole beside adapters."""


@strict
class MedThinkT5Config(T5Config):
    """T5's configuration with the width of vision features and the start of the gate.

    Args:
        vision_width: channels of the vision features.
        gate_bias: bias that a gate absent from the weights file starts with; sigmoid(-4) = 0.018.
    """

    vision_width: int = 0
    gate_bias: float = -4.0


class Fusion(nn.Module):
    """Single-head cross-attention from text to vision and an elementwise gate; no residual, norm or dropout."""

    def __init__(self, d_model: int, vision_width: int) -> None:
        super().__init__()
        self.project = nn.Linear(vision_width, d_model)
        self.attend = nn.MultiheadAttention(d_model, num_heads=1, batch_first=True)
        self.gate = nn.Linear(2 * d_model, d_model)

    def forward(self, text: Tensor, vision: Tensor) -> Tensor:
        """Mix text (b t d) with what it attends to in vision (b p c); returns b t d."""
        seen = self.project(vision)  # b p d
        attended, _ = self.attend(text, seen, seen, need_weights=False)  # b t d
        share = torch.sigmoid(self.gate(torch.cat([text, attended], dim=-1)))  # lambda, b t d
        return (1 - share) * text + share * attended


class MedThinkT5(T5ForConditionalGeneration):
    """T5 with vision fused after the encoder; without vision it is the plain T5, number for number.

    `from_pretrained` reads plain T5 folders (the fusion is then new) and its own (nothing is initialised).
    """

    config_class = MedThinkT5Config

    def __init__(self, config: MedThinkT5Config) -> None:
        super().__init__(config)
        self.fusion = Fusion(config.d_model, config.vision_width) if config.vision_width else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what a weights file lacks: T5's rules for its modules, near PyTorch's own for the fusion's.

        transformers calls this per module and its `init` functions leave alone what came from the file, so a trained
        gate survives a reload.
        """
        fusion = getattr(self, "fusion", None)
        if fusion is None or all(module is not part for part in fusion.modules()):
            super()._init_weights(module)
        elif isinstance(module, nn.MultiheadAttention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)
        elif isinstance(module, nn.Linear):
            reach = module.in_features**-0.5
            init.uniform_(module.weight, -reach, reach)
            init.constant_(module.bias, self.config.gate_bias if module is fusion.gate else 0.0)

    def encode(self, input_ids: Tensor, attention_mask: Tensor, vision: Tensor | None = None) -> Tensor:
        """What the decoder reads: the encoder output, fused with vision where there is any.

        Args:
            input_ids: b t.
            attention_mask: b t; 1 is text, 0 is padding.
            vision: b p c, or None for text only.

        Returns:
            b t d.
        """
        text = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return text if vision is None else self.fusion(text, vision.to(text.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        vision: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        **kwargs,
    ) -> Seq2SeqLMOutput:
        """T5's forward on the fused encoder output; `encoder_outputs`, where given, is fused already."""
        if encoder_outputs is None:
            encoder_outputs = BaseModelOutput(last_hidden_state=self.encode(input_ids, attention_mask, vision))
        return super().forward(attention_mask=attention_mask, encoder_outputs=encoder_outputs, **kwargs)

    @torch.inference_mode()
    def generate_greedy(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        vision: Tensor | None = None,
        *,
        max_new_tokens: int,
        use_cache: bool = True,
    ) -> Tensor:
        """Generate greedily up to the end-of-text token; the encoder and the fusion run once.

        Returns:
            b t, without the start token, padded after each end.
        """
        fused = self.encode(input_ids, attention_mask, vision)
        ids = self.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=fused),
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=use_cache,
        )
        return ids[:, 1:]


class FusedT5(T5Backbone):
    """A T5 with fusion by the interface of every backbone; its images are features of a frozen tower, b p c.

    Args:
        pads: "masked" or "official", see `label_rows`.
        width: slots of an official target.
        others: see `lightbox.backbones.hooks.FamilyHooks`.
    """

    def __init__(self, *others: Any, pads: str = "masked", width: int = 0, **more: Any) -> None:
        super().__init__(*others, **more)
        self._pads, self._width = pads, width
        self._ids: dict[str, list[int]] = {}

    def prepare(
        self,
        images: Float[Tensor, "b p c"] | None,
        prompts: Sequence[str],
        targets: Sequence[str] | None = None,
        *,
        max_tokens: int = rows.UNLIMITED,
        padding: str = "right",
    ) -> VlmBatch:
        """Turn texts and features into a batch on the CPU; see `Backbone.prepare`."""
        rows.check_counts(images, prompts, targets)
        pad_id = self.tokenizer.pad_token_id
        input_ids = rows.stacked(self._rows(prompts), pad_id, side="right")
        inputs = {"input_ids": input_ids, "attention_mask": (input_ids != pad_id).long()}
        if images is not None:
            inputs["vision"] = images
        if targets is None:
            return VlmBatch(inputs)
        labels = label_rows(self._rows(targets), pad_id=pad_id, pads=self._pads, width=self._width)
        inputs["decoder_input_ids"] = rows.shifted_right(labels, start_id=self.decoder_start_id, pad_id=pad_id)
        return VlmBatch(inputs, labels)

    def generate(
        self,
        images: Float[Tensor, "b p c"] | None,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        batch_size: int = 8,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """Answer greedily, in the order of the prompts; see `Backbone.generate`.

        Prompts of one length share a batch, so padding is small; the result does not depend on it beyond rounding.
        """
        self._check_answer(max_new_tokens, stop)
        lengths = [len(row) for row in self._rows(prompts)]
        order = sorted(range(len(prompts)), key=lambda place: lengths[place])
        texts = [""] * len(prompts)
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            seen = None if images is None else images[places]
            inputs = self.prepare(seen, [prompts[place] for place in places]).to(self.device).inputs
            ids = self.core.generate_greedy(**inputs, max_new_tokens=max_new_tokens)
            for place, text in zip(places, self.tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
                texts[place] = text
        return texts

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts with the end token; each distinct text is tokenised once, since an epoch comes many times."""
        new = [text for text in dict.fromkeys(texts) if text not in self._ids]
        if new:
            ids = self.tokenizer(new, add_special_tokens=False)["input_ids"]
            self._ids |= {text: [*row, self.end_id] for text, row in zip(new, ids, strict=True)}
        return [self._ids[text] for text in texts]


def label_rows(targets: Sequence[list[int]], *, pad_id: int, pads: str, width: int) -> Int[Tensor, "b n"]:
    """Targets as labels.

    Args:
        targets: token ids, ending with the end token.
        pad_id: the padding token.
        pads: "masked" gives pads the label -100, so they carry no loss; "official" keeps `pad_id` up to `width`
            slots, so they count as in the official code.
        width: slots of the official form.
    """
    if pads == "masked":
        return rows.stacked(targets, IGNORED, side="right")
    return rows.stacked([row + [pad_id] * (width - len(row)) for row in targets], pad_id, side="right")


def decoded(batch: VlmBatch, tokenizer: PreTrainedTokenizerBase, *, index: int = 0) -> list[tuple[str, str]]:
    """One example of a batch for the eye: ("source", text), then one (token, "loss" or "-") per target position."""
    source = tokenizer.decode(batch.inputs["input_ids"][index], skip_special_tokens=True)
    pairs = [
        ("-" if label == IGNORED else tokenizer.convert_ids_to_tokens(label), "-" if label == IGNORED else "loss")
        for label in batch.labels[index].tolist()
    ]
    return [("source", source), *pairs]


def open_fused(cfg: Config, base: Pretrained, width: int | None) -> FusedT5:
    """The T5 with its fusion; what the file lacks is drawn from `run.seed`, so arms of a seed start alike.

    Args:
        cfg: which weights, and how they are stored.
        base: the same weights.
        width: channels of the features; 0 for text only, None for what the file holds.

    Raises:
        RequestError: what `load_seq2seq` refuses.
    """
    seed_everything(cfg.run.seed, cfg.run.threads, device=cfg.run.device)
    device = str(plain_device(make_accelerator(cfg.run)))
    family, dtype = FUSED if width else PLAIN, cfg.model.dtype
    storage = quantisation.settings_for(cfg.adapter.quant, family, dtype=DTYPES[dtype], device=device)
    attention = choose(cfg.model.attention, device=device, dtype=dtype, model_type="t5")
    if cfg.model.attention != "auto":
        storage["attn_implementation"] = attention.implementation
    if width:
        storage |= {"vision_width": width, "gate_bias": cfg.model.gate_bias}
    model, tokenizer = load_seq2seq(
        base.name,
        base.revision,
        model_class=MedThinkT5,
        allow_missing=r"fusion\.",
        dtype=str(DTYPES[dtype]).removeprefix("torch."),
        dropout_rate=cfg.model.dropout_prob,
        **storage,
    )
    family = PLAIN if model.fusion is None else FUSED
    if cfg.adapter.quant != "none":
        quantisation.settle(model, family, cfg.adapter.quant)
    elif device != "cpu":
        model.to(device)
    return FusedT5(
        model,
        tokenizer,
        family,
        attention=attention,
        name=base.name,
        revision=base.revision,
        quant=cfg.adapter.quant,
        dtype=DTYPES[dtype],
        pads=cfg.objective.pads,
        width=cfg.target_tokens,
    )
