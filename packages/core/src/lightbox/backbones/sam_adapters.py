"""A SAM with adapters beside the feed-forward networks of its encoder, as SAM-Med2D has.

Cheng et al., "SAM-Med2D" (arXiv 2308.16184), and its code, by which names are read: OpenGVLab/SAM-Med2D, class
Adapter_Layer. Folders are written by `convert_sam`, and have a model_type of their own: read as a plain SAM, a file of
this layout would give other features without an error.
"""

from jaxtyping import Float
from torch import Tensor, nn
from transformers import SamConfig, SamModel
from transformers.models.sam.modeling_sam import SamMLPBlock

GATE_SHARE = 4
"""Width of the features over that of the gate's hidden layer."""


class SpatialAdapter(nn.Module):
    """Gated channels, then their surroundings, added to the features and normed.

    Args:
        width: of the features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channel = nn.Sequential(
            nn.Linear(width, width // GATE_SHARE, bias=False),
            nn.ReLU(),
            nn.Linear(width // GATE_SHARE, width, bias=False),
            nn.Sigmoid(),
        )
        self.spatial = nn.Sequential(  # to half the grid and back, so its sides must be even
            nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, kernel_size=4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Adapt the features of a whole image; windows are put together before."""
        gate = self.channel(hidden.mean(dim=(1, 2)))[:, None, None]
        surroundings = self.spatial((gate * hidden).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm(hidden + surroundings)


class AdaptedNetwork(SamMLPBlock):
    """A layer's feed-forward network with an adapter of the same input, whose outputs are added."""

    def __init__(self, config) -> None:
        super().__init__(config)
        self.adapter = SpatialAdapter(config.hidden_size)

    def forward(self, hidden_states: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Give what the layer adds to its residual."""
        return super().forward(hidden_states) + self.adapter(hidden_states)


class AdaptedSamConfig(SamConfig):
    """Of a SAM whose encoder has an adapter in each layer."""

    model_type = "sam_adapted"


class AdaptedSamModel(SamModel):
    """A SAM whose encoder has an adapter in each layer."""

    config: AdaptedSamConfig

    def __init__(self, config: AdaptedSamConfig) -> None:
        super().__init__(config)
        for layer in self.vision_encoder.layers:
            layer.mlp = AdaptedNetwork(config.vision_config)
