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
computed once per item: generation receives it as `encoder_outputs` and keeps its key-value cache. `open_fused` gives
it the interface of every other backbone, so that any vision-language model can stand in its place.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from lightbox.backbones.t5 import FusedT5Backbone
from lightbox.paper.learner import open_fused_t5
from lightbox.paper.pretrained import Pretrained
from medthink.config import Config


@strict
class MedThinkT5Config(T5Config):
    """T5's configuration with the width of vision features and the start of the gate.

    Args:
        vision_width: channels of the vision features.
        gate_bias: bias that a gate absent from the weights file starts with; at 0 half of each unit is vision's.
    """

    vision_width: int = 0
    gate_bias: float = 0.0


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


def open_fused(cfg: Config, base: Pretrained, width: int | None) -> FusedT5Backbone:
    """The T5 with its fusion, as a backbone like any other.

    Args:
        cfg: which weights, and how they are stored.
        base: the same weights.
        width: channels of the features; 0 for text only, None for what the file holds.
    """
    fusion = {"vision_width": width, "gate_bias": cfg.model.gate_bias} if width else {}
    return open_fused_t5(
        cfg,
        base,
        MedThinkT5,
        fusion_part="fusion",
        pad_targets_to=cfg.target_tokens if cfg.objective.pads == "official" else 0,
        dropout_rate=cfg.model.dropout_prob,
        **fusion,
    )
