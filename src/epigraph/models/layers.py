"""What several papers share to the letter: the pre-norm ViT layer, and positions in the plane.

The layer is that of Dosovitskiy et al. (ICLR 2021, arXiv 2010.11929, eq. 2 and 3), with names as in transformers' ViT,
so that weights carry over by name.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention_blocked import blocked_attention_forward  # noqa: F401  registers "blocked"


def sincos_2d(positions: torch.Tensor, dim: int, temperature: float = 10000.0) -> torch.Tensor:
    """Sines and cosines of places in the plane, in MAE's order of channels (He et al., CVPR 2022).

    Args:
        positions: (..., 2), row and column, fractions too.
        dim: channels, a multiple of 4.
        temperature: base of the frequencies.

    Returns:
        (..., dim) float32, or float64 of such positions: a quarter each of sine and cosine of the column, sine and
        cosine of the row.
    """
    dtype = torch.promote_types(positions.dtype, torch.float32)
    exponents = torch.arange(dim // 4, device=positions.device, dtype=dtype) / (dim // 4)
    angles = positions.to(dtype)[..., None] * temperature**-exponents
    row, column = angles.unbind(-2)
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=-1)


def axial_frequencies(head_dim: int, theta: float, device: torch.device | None = None) -> torch.Tensor:
    """Frequencies of rotary positions of which half turn with the column, half with the row.

    RoFormer (Su et al. 2021, arXiv 2104.09864, eq. 15) in two dimensions, as rope-vit's axial variant has it
    (Heo et al., ECCV 2024, section 3.1).

    Returns:
        (2, 1, head_dim / 2) float32, radians per pixel of row and of column: the same for every head.
    """
    scale = theta ** -(4 * torch.arange(head_dim // 4, device=device, dtype=torch.float32) / head_dim)
    none = torch.zeros_like(scale)
    return torch.stack([torch.cat([none, scale]), torch.cat([scale, none])])[:, None]


def rotary_tables(positions: torch.Tensor, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of the angles that queries and keys are turned by.

    Args:
        positions: (batch, n, 2), row and column. A token at (0, 0) is not turned.
        frequencies: (2, heads or 1, head_dim / 2), radians per pixel of row and of column.

    Returns:
        Twice (batch, heads or 1, n, head_dim / 2), float32 under autocast too.
    """
    row, column = positions.float()[:, None, :, :, None].unbind(3)
    rows, columns = frequencies.float()[:, :, None].unbind(0)
    angles = row * rows + column * columns
    return angles.cos(), angles.sin()


def rotate(states: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turns channel i together with channel i + head_dim / 2 of (batch, heads, n, head_dim) by the tables' angles."""
    cos, sin = tables
    first, second = states.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(states.dtype)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
):
    """Plain attention, (batch, heads, n, head_dim) each; `attention_mask` is added to the scores."""
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, dropout, module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


class VisionAttention(nn.Module):
    """Multi-head self-attention, by any of transformers' attention implementations."""

    def __init__(self, config, hidden_size: int, num_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states, attention_mask=None, rotary=None, **kwargs):
        """(batch, n, hidden) to (batch, n, hidden), and the weights (batch, heads, n, n) where they are computed."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        hidden_states, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(hidden_states.flatten(2)), weights


class VisionMLP(nn.Module):
    """The feed-forward half of a layer."""

    def __init__(self, config, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, n, hidden) to (batch, n, hidden)."""
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class VisionLayer(GradientCheckpointingLayer):
    """Pre-norm ViT layer; sizes are given, so that an encoder and a narrower decoder can share a configuration."""

    def __init__(self, config, hidden_size: int, num_heads: int, intermediate_size: int):
        super().__init__()
        self.attention = VisionAttention(config, hidden_size, num_heads)
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config, hidden_size, intermediate_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states, attention_mask=None, rotary=None, **kwargs):
        """Args:
        hidden_states: (batch, n, hidden).
        attention_mask: what the attention implementation takes.
        rotary: of `rotary_tables`, or None.
        """
        attended, _ = self.attention(self.layernorm_before(hidden_states), attention_mask, rotary, **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.layernorm_after(hidden_states)))


__all__ = [
    "VisionAttention",
    "VisionLayer",
    "axial_frequencies",
    "eager_attention_forward",
    "rotary_tables",
    "rotate",
    "sincos_2d",
]
