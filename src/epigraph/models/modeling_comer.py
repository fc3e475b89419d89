"""CoMER: handwritten formulas read with coverage attention (Zhao & Gao, ECCV 2022, arXiv 2207.04410).

A DenseNet encoder and a transformer decoder whose cross-attention is refined by what it has already looked at. One
decoder reads in both directions: its first token says which. Built from the paper and from measurements of the
published behaviour; the comments name the paper's equations.
"""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_comer import CoMERConfig
from .generation_comer import CoMERGenerationMixin


@dataclass
class CoMEREncoderOutput(ModelOutput):
    """Image features.

    Attributes:
        last_hidden_state: (batch, rows, columns, hidden_size), rows = ceil(height / 16), columns = ceil(width / 16).
        feature_mask: (batch, rows, columns) bool, True where a cell belongs to the image.
    """

    last_hidden_state: torch.FloatTensor | None = None
    feature_mask: torch.BoolTensor | None = None


@dataclass
class CoMEROutput(ModelOutput):
    """What a teacher-forced pass gives.

    Attributes:
        loss: scalar, mean cross entropy over the tokens of both directions.
        logits: (rows, length, vocab_size); with `labels` alone, the first half of the rows reads left to right.
        cross_attentions: per decoder layer (rows, heads, length, cells), refined, cells row-major.
        coverages: per refined layer (rows, heads, length, cells): what was subtracted from the scores.
        encoder_last_hidden_state: see `CoMEREncoderOutput.last_hidden_state`.
        feature_mask: see `CoMEREncoderOutput.feature_mask`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    coverages: tuple[torch.FloatTensor, ...] | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    feature_mask: torch.BoolTensor | None = None


def sinusoid(positions: torch.Tensor, dim: int, temperature: float) -> torch.Tensor:
    """Interleaved sine and cosine of `positions` (...,) at dim / 2 frequencies: (..., dim), float32."""
    exponents = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim
    angles = positions.float()[..., None] * temperature**-exponents
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def image_positions(feature_mask: torch.Tensor, dim: int, temperature: float) -> torch.Tensor:
    """Positions relative to the image's own extent, so that padding does not move them (section 3.1).

    Args:
        feature_mask: (batch, rows, columns) bool, True = image.

    Returns:
        (batch, rows, columns, dim): the first half of the channels tells the column, the second the row.
    """
    y = feature_mask.cumsum(1, dtype=torch.float32)
    x = feature_mask.cumsum(2, dtype=torch.float32)
    y = y / (y[:, -1:, :] + 1e-6) * 2 * math.pi
    x = x / (x[:, :, -1:] + 1e-6) * 2 * math.pi
    return torch.cat([sinusoid(x, dim // 2, temperature), sinusoid(y, dim // 2, temperature)], dim=-1)


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce with a gradient, which is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx, tensor):
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class CoMERBatchNorm(nn.BatchNorm2d):
    """BatchNorm whose statistics leave padding out, and are shared by all processes of a distributed run.

    Sharing them makes the loss of n processes that of one with the same global batch.
    """

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Normalises (batch, channels, height, width).

        `mask` (batch, 1, height, width) bool is True at image cells. In training the others come out as zeros.
        A frozen norm (its weight needs no gradient) keeps to its running statistics, so that an adapter is trained,
        saved and loaded with the same ones.
        """
        if not (self.training and self.weight.requires_grad):
            running = self.running_mean, self.running_var
            return F.batch_norm(hidden, *running, self.weight, self.bias, False, 0.0, self.eps)
        distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if mask is None and not distributed:
            return self._normalised(hidden)
        if mask is None:
            mask = torch.ones_like(hidden[:, :1], dtype=torch.bool)
        # Only the image cells, as one long channels-last image: the fastest layout for the native kernel.
        cells = mask.flatten().nonzero().squeeze(1)
        dense = hidden.permute(0, 2, 3, 1).flatten(0, 2)
        packed = dense.index_select(0, cells)
        if distributed:
            packed = self._synchronised(packed.float()).to(hidden.dtype)
        else:
            packed = self._normalised(packed[None, :, None].permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(0, 2)
        dense = torch.zeros_like(dense).index_copy(0, cells, packed)
        return dense.view(hidden.shape[0], *hidden.shape[2:], -1).permute(0, 3, 1, 2)

    @property
    def _counted(self) -> bool:
        """Gradient checkpointing repeats the forward pass within the backward pass: its cells are counted."""
        return torch._C._current_graph_task_id() != -1

    def _normalised(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self._counted:
            return super().forward(hidden)
        running = self.running_mean.clone(), self.running_var.clone()
        return F.batch_norm(hidden, *running, self.weight, self.bias, True, 0.0, self.eps)

    def _synchronised(self, packed: torch.Tensor) -> torch.Tensor:
        """Normalises (cells, channels) by the statistics of all processes (there is no SyncBatchNorm for CPUs)."""
        count = packed.new_tensor([packed.shape[0]])
        sums = _SumOverProcesses.apply(torch.cat([packed.sum(0), (packed * packed).sum(0), count]))
        total, squares, count = sums.split([self.num_features, self.num_features, 1])
        mean = total / count
        variance = (squares / count - mean * mean).clamp(min=0)
        if not self._counted:
            with torch.no_grad():
                self.num_batches_tracked += 1
                # Without a momentum, the plain average over all batches, as when `update_bn` follows weight averaging.
                share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                unbiased = variance * count / (count - 1).clamp(min=1)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        return (packed - mean) * (self.weight * torch.rsqrt(variance + self.eps)) + self.bias


class CoMERConvNorm(nn.Module):
    """Convolution, BatchNorm, ReLU: the order of the whole encoder, so that every norm folds into its convolution."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.norm = CoMERBatchNorm(out_channels)

    @property
    def folds(self) -> bool:
        """Whether the norm is a constant to fold: at inference, unless an adapter has replaced the convolution."""
        return not (self.training or torch.is_grad_enabled()) and isinstance(self.conv, nn.Conv2d)

    def folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of the one convolution that convolution and norm are at inference."""
        scale = self.norm.weight * torch.rsqrt(self.norm.running_var + self.norm.eps)
        return self.conv.weight * scale[:, None, None, None], self.norm.bias - self.norm.running_mean * scale

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if self.folds:
            hidden = F.conv2d(hidden, *self.folded(), self.conv.stride, self.conv.padding).relu_()
        else:
            hidden = F.relu(self.norm(self.conv(hidden), mask))
        # BatchNorm's shift makes padding non-zero, from where the next convolution would leak it into the image.
        return hidden if mask is None else hidden * mask


class CoMERDenseLayer(nn.Module):
    """DenseNet-B bottleneck: 1x1 to `bottleneck_factor` growth rates, then 3x3 to one growth rate."""

    def __init__(self, config: CoMERConfig, in_channels: int):
        super().__init__()
        width = config.bottleneck_factor * config.growth_rate
        self.bottleneck = CoMERConvNorm(in_channels, width, 1)
        self.growth = CoMERConvNorm(width, config.growth_rate, 3)
        self.dropout = nn.Dropout(config.encoder_dropout)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        hidden = self.dropout(self.bottleneck(hidden, mask))
        return self.dropout(self.growth(hidden, mask))


class CoMERDenseBlock(GradientCheckpointingLayer):
    """Layers that each see the concatenation of all before them."""

    def __init__(self, config: CoMERConfig, in_channels: int, num_layers: int):
        super().__init__()
        self.layers = nn.ModuleList(
            CoMERDenseLayer(config, in_channels + index * config.growth_rate) for index in range(num_layers)
        )
        self.out_channels = in_channels + num_layers * config.growth_rate

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if all(layer.bottleneck.folds for layer in self.layers):
            return self._infer(hidden, mask)
        for layer in self.layers:
            hidden = torch.cat([hidden, layer(hidden, mask)], dim=1)
        return hidden

    def _infer(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The same without concatenating: every layer reads a prefix of one channels-last buffer and adds to it."""
        batch, channels, height, width = hidden.shape
        buffer = hidden.new_empty(batch, height, width, self.out_channels)
        buffer[..., :channels] = hidden.permute(0, 2, 3, 1)
        cells = buffer.view(-1, self.out_channels)
        for layer in self.layers:
            weight, bias = layer.bottleneck.folded()
            squeezed = F.linear(cells[:, :channels], weight.flatten(1), bias).relu_()
            squeezed = squeezed.view(batch, height, width, -1).permute(0, 3, 1, 2)
            grown = layer.growth(squeezed if mask is None else squeezed * mask, mask)
            buffer[..., channels : channels + grown.shape[1]] = grown.permute(0, 2, 3, 1)
            channels += grown.shape[1]
        return buffer.permute(0, 3, 1, 2)


class CoMERTransition(nn.Module):
    """Between blocks: fewer channels, half the resolution (rounded up)."""

    def __init__(self, config: CoMERConfig, in_channels: int):
        super().__init__()
        self.out_channels = int(in_channels * config.transition_reduction)
        self.projection = CoMERConvNorm(in_channels, self.out_channels, 1)
        self.dropout = nn.Dropout(config.encoder_dropout)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        hidden = F.avg_pool2d(self.dropout(self.projection(hidden, mask)), 2, ceil_mode=True)
        if mask is None:
            return hidden
        # The share of image cells in each window: what the average of an unpadded image would have divided by.
        return hidden / F.avg_pool2d(mask.to(hidden.dtype), 2, ceil_mode=True).clamp(min=0.25)


class CoMERPreTrainedModel(PreTrainedModel):
    config: CoMERConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["CoMERDenseBlock", "CoMERDecoderLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        """PyTorch's own defaults, as the paper's code had them, and Xavier for the attention projections."""
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            # The attention cannot do this itself: transformers passes over modules that own no parameter.
            role = getattr(module, "attention_role", None)
            if role == "input":
                # The gain of one packed (3 * hidden, hidden) matrix: sqrt(6 / (3 + 1)) against sqrt(6 / (1 + 1)).
                init.xavier_uniform_(module.weight, gain=math.sqrt(0.5))
            else:
                init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if role is not None:
                init.zeros_(module.bias)
            elif module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        else:
            super()._init_weights(module)


class CoMEREncoder(CoMERPreTrainedModel):
    """DenseNet encoder with normalised 2-D positions (section 3.1)."""

    def __init__(self, config: CoMERConfig):
        super().__init__(config)
        channels = 2 * config.growth_rate
        self.stem = CoMERConvNorm(1, channels, 7, stride=2)
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for index, num_layers in enumerate(config.dense_layers):
            block = CoMERDenseBlock(config, channels, num_layers)
            self.blocks.append(block)
            channels = block.out_channels
            if index < len(config.dense_layers) - 1:
                transition = CoMERTransition(config, channels)
                self.transitions.append(transition)
                channels = transition.out_channels
        self.post_norm = CoMERBatchNorm(channels)
        self.feature_proj = nn.Conv2d(channels, config.hidden_size, 1)
        self.layer_norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def forward(
        self, pixel_values: torch.FloatTensor, pixel_mask: torch.Tensor | None = None, **kwargs
    ) -> CoMEREncoderOutput:
        """Encodes images.

        Args:
            pixel_values: (batch, 1, height, width) in 0..1, white ink on black, padded bottom and right.
            pixel_mask: (batch, height, width), 1 = image. Without it nothing is padding.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 1:
            raise ValueError(f"pixel_values must be (batch, 1, height, width), not {tuple(pixel_values.shape)}.")
        if pixel_mask is None:
            pixel_mask = torch.ones_like(pixel_values[:, 0])
        pixel_mask = pixel_mask.bool()
        hidden = pixel_values.to(self.feature_proj.weight.dtype)

        # An unpadded batch needs no masks: the cells they would clear do not exist.
        masked = self.config.mask_padding and not bool(pixel_mask.all())
        masks = [pixel_mask[:, None]]
        for _ in range(4):  # stem, max pooling and two transitions each halve, rounding up
            masks.append(masks[-1][:, :, ::2, ::2])
        feature_mask = masks[-1][:, 0]
        masks = masks if masked else [None] * len(masks)

        hidden = self.stem(hidden if masks[0] is None else hidden * masks[0], masks[1])
        hidden = F.max_pool2d(hidden, 2, ceil_mode=True)
        for index, block in enumerate(self.blocks):
            hidden = block(hidden, masks[index + 2])
            if index < len(self.transitions):
                hidden = self.transitions[index](hidden, masks[index + 2])
        hidden = self.feature_proj(self.post_norm(hidden, masks[-1])).permute(0, 2, 3, 1)
        positions = image_positions(feature_mask, self.config.hidden_size, self.config.position_temperature)
        return CoMEREncoderOutput(self.layer_norm(hidden + positions.to(hidden.dtype)), feature_mask)


class CoMERAttentionRefinement(nn.Module):
    """Attention refinement module: turns past attention into a penalty on the scores (section 3.3, eq. 6-9).

    One module is shared by all decoder layers but the first.
    """

    def __init__(self, config: CoMERConfig):
        super().__init__()
        self.cross_coverage, self.self_coverage = config.cross_coverage, config.self_coverage
        in_channels = config.num_attention_heads * (config.cross_coverage + config.self_coverage)
        kernel_size = config.coverage_kernel_size
        self.conv = nn.Conv2d(in_channels, config.coverage_channels, kernel_size, padding=kernel_size // 2)
        self.proj = nn.Conv2d(config.coverage_channels, config.num_attention_heads, 1, bias=False)
        self.norm = CoMERBatchNorm(config.num_attention_heads)

    def stack(self, previous: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
        """The attention maps whose sum is the coverage: (rows, channels, length, cells), float32."""
        maps = ([previous] if self.cross_coverage else []) + ([current] if self.self_coverage else [])
        return torch.cat(maps, dim=1).float()

    def penalty(self, coverage: torch.Tensor, feature_mask: torch.Tensor, valid: torch.Tensor | None = None):
        """What accumulated attention subtracts from the scores (eq. 7).

        Args:
            coverage: (maps, channels, rows, columns) float32, attention summed over past steps.
            feature_mask: (maps, rows, columns) bool, True = image.
            valid: (maps,) bool, steps that count in the BatchNorm statistics; all where absent.

        Returns:
            (maps, heads, rows, columns), zero outside the image.
        """
        mask = feature_mask[:, None]
        # Probabilities summed over 200 steps need float32, the convolution of the sum does not.
        hidden = F.relu(self.conv(coverage.to(self.conv.weight.dtype))) * mask
        statistics_mask = mask if valid is None else mask & valid[:, None, None, None]
        return self.norm(self.proj(hidden), statistics_mask) * mask

    def forward(self, previous, current, feature_mask, valid=None):
        """Penalties for a whole teacher-forced sequence: (rows, heads, length, cells) from maps of the same shape."""
        maps = self.stack(previous, current)
        coverage = maps.cumsum(2) - maps  # exclusive: step t has seen the steps before it
        rows, channels, length, _ = coverage.shape
        height, width = feature_mask.shape[1:]
        coverage = coverage.transpose(1, 2).reshape(rows * length, channels, height, width)
        mask = feature_mask.repeat(rows // feature_mask.shape[0], 1, 1).repeat_interleave(length, dim=0)
        penalty = self.penalty(coverage, mask, None if valid is None else valid.flatten())
        return penalty.view(rows, length, -1, height * width).transpose(1, 2)


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
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(query.dtype), dropout, module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


class CoMERAttention(nn.Module):
    """Projections of multi-head attention; the layers decide what happens between scores and weights."""

    def __init__(self, config: CoMERConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.dropout
        self.is_causal = False  # the mask says what may be seen
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            projection.attention_role = "input"
        self.o_proj.attention_role = "output"

    def split_heads(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, length, hidden) to (rows, heads, length, head_dim)."""
        return hidden.view(*hidden.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Self-attention. `attention_mask` (rows, 1, length, length) is added to the scores."""
        query, key, value = (self.split_heads(p(hidden)) for p in (self.q_proj, self.k_proj, self.v_proj))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.dropout if self.training else 0.0
        output, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout)
        return self.o_proj(output.flatten(2))


class CoMERCrossAttention(CoMERAttention):
    """Attention over the image, refined by coverage.

    Rows may outnumber images: row r reads image r % images. Keys and values are then computed once per image, and the
    rows of an image share one matrix product.
    """

    def memory(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each (images, heads, cells, head_dim), of features (images, cells, hidden)."""
        return self.split_heads(self.k_proj(features)), self.split_heads(self.v_proj(features))

    def _fold(self, rows: torch.Tensor, images: int) -> torch.Tensor:
        """(groups * images, heads, length, x) to (images, heads, groups * length, x)."""
        _, heads, length, size = rows.shape
        return rows.view(-1, images, heads, length, size).permute(1, 2, 0, 3, 4).reshape(images, heads, -1, size)

    def _unfold(self, folded: torch.Tensor, length: int) -> torch.Tensor:
        images, heads, _, size = folded.shape
        return folded.view(images, heads, -1, length, size).permute(2, 0, 1, 3, 4).reshape(-1, heads, length, size)

    def scores(self, hidden: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Scaled scores (rows, heads, length, cells), float32, unmasked."""
        query = self.split_heads(self.q_proj(hidden)) * self.scaling
        scores = torch.matmul(self._fold(query, key.shape[0]), key.transpose(-1, -2))
        return self._unfold(scores, hidden.shape[1]).float()

    def output(self, weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """(rows, length, hidden) from weights (rows, heads, length, cells)."""
        length = weights.shape[2]
        output = torch.matmul(self._fold(weights.to(value.dtype), value.shape[0]), value)
        return self.o_proj(self._unfold(output, length).transpose(1, 2).flatten(2))

    def forward(self, hidden, features, feature_mask, refinement=None, previous=None, valid=None):
        """Cross-attention of a whole sequence.

        Args:
            hidden: (rows, length, hidden_size).
            features: (images, cells, hidden_size).
            feature_mask: (images, height, width) bool.
            refinement: the shared `CoMERAttentionRefinement`, None in the first layer.
            previous: (rows, heads, length, cells), refined weights of the layer before.
            valid: (rows, length) bool, False at padding tokens.

        Returns:
            output (rows, length, hidden_size), weights and coverage penalty (rows, heads, length, cells).
        """
        key, value = self.memory(features)
        scores = self.scores(hidden, key)
        groups = hidden.shape[0] // features.shape[0]
        blocked = ~feature_mask.flatten(1).repeat(groups, 1)[:, None, None]
        lowest = torch.finfo(scores.dtype).min
        dropout = self.dropout if self.training else 0.0
        penalty = None
        if refinement is not None:
            current = None
            if refinement.self_coverage:
                current = F.dropout(scores.masked_fill(blocked, lowest).softmax(-1), dropout, self.training)
            penalty = refinement(previous, current, feature_mask, valid)
            scores = scores - penalty
        weights = F.dropout(scores.masked_fill(blocked, lowest).softmax(-1), dropout, self.training)
        return self.output(weights, value), weights, penalty


class CoMERDecoderLayer(GradientCheckpointingLayer):
    """Post-norm transformer layer (section 3.2)."""

    def __init__(self, config: CoMERConfig):
        super().__init__()
        self.self_attn = CoMERAttention(config)
        self.cross_attn = CoMERCrossAttention(config)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size)
        self.cross_attn_layer_norm = nn.LayerNorm(config.hidden_size)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def feed_forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output = self.fc2(self.dropout(F.relu(self.fc1(hidden))))
        return self.final_layer_norm(hidden + self.dropout(output))

    def forward(self, hidden, attention_mask, features, feature_mask, refinement=None, previous=None, valid=None):
        """See `CoMERCrossAttention.forward`; returns hidden, cross-attention weights and coverage penalty."""
        hidden = self.self_attn_layer_norm(hidden + self.dropout(self.self_attn(hidden, attention_mask)))
        output, weights, penalty = self.cross_attn(hidden, features, feature_mask, refinement, previous, valid)
        hidden = self.cross_attn_layer_norm(hidden + self.dropout(output))
        return self.feed_forward(hidden), weights, penalty


class CoMERDecoder(CoMERPreTrainedModel):
    """Token embedding, decoder layers and the shared refinement module."""

    def __init__(self, config: CoMERConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_layer_norm = nn.LayerNorm(config.hidden_size)
        self.position_layer_norm = nn.LayerNorm(config.hidden_size)
        self.layers = nn.ModuleList(CoMERDecoderLayer(config) for _ in range(config.num_hidden_layers))
        covered = (config.cross_coverage or config.self_coverage) and config.num_hidden_layers > 1
        self.refinement = CoMERAttentionRefinement(config) if covered else None
        self.post_init()

    def embed(self, tokens: torch.Tensor, first_position: int = 0) -> torch.Tensor:
        """(rows, length) ids to (rows, length, hidden_size)."""
        embedded = self.embed_layer_norm(self.embed_tokens(tokens))
        places = torch.arange(first_position, first_position + tokens.shape[1], device=tokens.device)
        positions = sinusoid(places, self.config.hidden_size, self.config.position_temperature)
        return self.position_layer_norm(embedded + positions.to(embedded.dtype))

    def forward(self, tokens: torch.Tensor, features: torch.Tensor, feature_mask: torch.Tensor):
        """Teacher-forced pass.

        Args:
            tokens: (rows, length) ids; pad tokens are not attended to.
            features: (images, height, width, hidden_size), rows a multiple of images.
            feature_mask: (images, height, width) bool.

        Returns:
            hidden (rows, length, hidden_size), tuple of weights per layer, tuple of penalties per refined layer.
        """
        hidden = self.embed(tokens)
        valid = tokens != self.config.pad_token_id
        length = tokens.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        visible = visible & valid[:, None, None]
        attention_mask = torch.zeros(visible.shape, dtype=hidden.dtype, device=hidden.device)
        attention_mask = attention_mask.masked_fill(~visible, torch.finfo(hidden.dtype).min)
        counted = valid if self.config.mask_padding else None

        features = features.flatten(1, 2)
        attentions, penalties, previous = (), (), None
        for index, layer in enumerate(self.layers):
            refinement = self.refinement if index else None
            hidden, previous, penalty = layer(
                hidden, attention_mask, features, feature_mask, refinement, previous, counted
            )
            attentions += (previous,)
            penalties += () if penalty is None else (penalty,)
        return hidden, attentions, penalties


class CoMERForConditionalGeneration(CoMERPreTrainedModel, CoMERGenerationMixin):
    """CoMER with its vocabulary projection: reads an image of a formula in both directions (section 3.4)."""

    # The Trainer would count label tokens; the loss counts each twice, and two stops.
    accepts_loss_kwargs = False

    def __init__(self, config: CoMERConfig):
        super().__init__(config)
        self.encoder = CoMEREncoder(config)
        self.decoder = CoMERDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_encoder(self, modality=None):
        return self.encoder

    def get_decoder(self):
        return self.decoder

    def get_input_embeddings(self):
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value):
        self.decoder.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, new_embeddings):
        self.lm_head = new_embeddings

    def bidirectional_targets(self, labels: torch.LongTensor) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Inputs and targets of both directions, each (2 * batch, length + 1): left to right first.

        Right to left starts with the end token and stops with the start token: the first token names the direction.

        Args:
            labels: (batch, length) in reading order; pad or -100 after the last token.
        """
        pad, bos, eos = self.config.pad_token_id, self.config.bos_token_id, self.config.eos_token_id
        labels = labels.masked_fill(labels == -100, pad)
        batch, length = labels.shape
        lengths = (labels != pad).sum(1, keepdim=True)
        places = torch.arange(length, device=labels.device).expand(batch, length)
        backwards = labels.gather(1, (lengths - 1 - places).clamp(min=0)).masked_fill(places >= lengths, pad)
        both = torch.cat([labels, backwards])
        first = labels.new_tensor([bos, eos]).repeat_interleave(batch)[:, None]
        last = labels.new_tensor([eos, bos]).repeat_interleave(batch)[:, None]
        inputs = torch.cat([first, both], dim=1)
        padded = torch.cat([both, both.new_full((2 * batch, 1), pad)], dim=1)
        targets = padded.scatter(1, lengths.repeat(2, 1), last)
        return inputs, targets

    def num_loss_items(self, labels: torch.LongTensor) -> int:
        """How many tokens the loss of these labels averages over: what a training loop normalises by."""
        valid = (labels != self.config.pad_token_id) & (labels != -100)
        return 2 * (int(valid.sum()) + labels.shape[0])

    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        encoder_outputs: CoMEREncoderOutput | None = None,
        num_items_in_batch: int | float | torch.Tensor | None = None,
        **kwargs,
    ) -> CoMEROutput:
        """Teacher-forced pass.

        Args:
            pixel_values: (batch, 1, height, width) in 0..1, white ink on black.
            pixel_mask: (batch, height, width), 1 = image.
            decoder_input_ids: (rows, length), rows a multiple of batch; row r reads image r % batch. The first token
                picks the direction: the start token left to right, the end token right to left.
            labels: (batch, length) in reading order, pad or -100 ignored. Without `decoder_input_ids` both directions
                are built from them; with it, they are the targets, (rows, length).
            encoder_outputs: instead of pixel_values.
            num_items_in_batch: divides the summed loss instead of this batch's own number of tokens.

        Raises:
            ValueError: if nothing is to be read, or nothing to read it with.
        """
        if encoder_outputs is None:
            if pixel_values is None:
                raise ValueError("CoMER needs pixel_values or encoder_outputs.")
            encoder_outputs = self.encoder(pixel_values, pixel_mask)
        targets = labels
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("CoMER needs labels or decoder_input_ids; use generate() to read an image.")
            decoder_input_ids, targets = self.bidirectional_targets(labels)
        features, feature_mask = encoder_outputs.last_hidden_state, encoder_outputs.feature_mask
        hidden, attentions, penalties = self.decoder(decoder_input_ids, features, feature_mask)
        logits = self.lm_head(hidden)
        loss = None
        if targets is not None:
            targets = targets.masked_fill(targets == self.config.pad_token_id, -100)
            loss = F.cross_entropy(
                logits.float().flatten(0, 1),
                targets.flatten(),
                reduction="mean" if num_items_in_batch is None else "sum",
                label_smoothing=self.config.label_smoothing if self.training else 0.0,
            )
            if num_items_in_batch is not None:
                loss = loss / num_items_in_batch
        return CoMEROutput(loss, logits, attentions, penalties, features, feature_mask)


__all__ = ["CoMEREncoder", "CoMERForConditionalGeneration", "CoMERPreTrainedModel"]
