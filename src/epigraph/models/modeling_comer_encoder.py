"""CoMER's image side: a DenseNet whose results do not depend on padding, and 2-D positions (section 3.1)."""

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

from .configuration_comer import CoMERConfig


@dataclass
class CoMEREncoderOutput(ModelOutput):
    """Image features.

    Attributes:
        last_hidden_state: (batch, rows, columns, hidden_size), rows = ceil(height / 16), columns = ceil(width / 16).
        feature_mask: (batch, rows, columns) bool, True where a cell belongs to the image.
    """

    last_hidden_state: torch.FloatTensor | None = None
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
    """What transformers needs to know of every CoMER model."""

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


__all__ = ["CoMEREncoder", "CoMERPreTrainedModel"]
