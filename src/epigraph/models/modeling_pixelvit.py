"""PixelViT: a transformer whose tokens are single pixels (Nguyen et al., ICLR 2025, arXiv 2406.09415).

The layers are a plain ViT's, with the module names of transformers' ViT: `ViTForImageClassification(patch_size=1)`
with the same weights gives the same logits. What is different is the input: an image is a set of pixels with true
coordinates, of which any subset can be read, in any order (pixel_sets.py, pixel_selection.py). Pre-training is in
modeling_pixelvit_pretraining.py. Built from the paper; what it leaves open is marked "ours".
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BackboneOutput, ModelOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_pixelvit import ROPE_THETA, PixelViTConfig
from .layers import VisionAttention, VisionLayer, axial_frequencies, rotary_tables, sincos_2d
from .pixel_sets import PixelSet, read_pixels


@dataclass
class PixelViTModelOutput(ModelOutput):
    """Features of pixels.

    Attributes:
        last_hidden_state: (batch, n or 1 + n, hidden_size), after the last norm. With pooling `cls` the first token is
            the image's own, the n that follow are the pixels in the order of `coordinates`.
        pooler_output: (batch, hidden_size): that first token, or with pooling `mean` the mean of the pixels.
        coordinates: (batch, n, 2), row and column of the pixels that were read.
        pixel_mask: (batch, n) bool, False where a set was padded; None where nothing was.
        hidden_states: of the embeddings and each layer, shaped as `last_hidden_state`.
        attentions: per layer (batch, heads, tokens, tokens); needs `attn_implementation="eager"`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    coordinates: torch.LongTensor | None = None
    pixel_mask: torch.BoolTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class PixelViTPredictionOutput(ModelOutput):
    """What the heads predict.

    Attributes:
        loss: scalar, where labels were given.
        logits: (batch, num_labels) of images; (batch, num_labels, height, width) or (batch, num_labels, n) of pixels.
        coordinates, pixel_mask, hidden_states, attentions: see `PixelViTModelOutput`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    coordinates: torch.LongTensor | None = None
    pixel_mask: torch.BoolTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


def look_up(table: torch.Tensor, pixel_set: PixelSet, positions: torch.Tensor, frame: tuple[int, int]) -> torch.Tensor:
    """Learned positions: the table's own entries for images of its size, bicubic samples of it for others.

    Args:
        table: (1, height * width, channels).
        pixel_set: whose coordinates say which entries.
        positions: (batch or 1, n, 2), its places in the frame.
        frame: height and width of the table.

    Returns:
        (batch or 1, n, channels).
    """
    height, width = frame
    if pixel_set.image_size == frame:
        if len(positions) == 1 and positions.shape[1] == height * width:
            return table  # all pixels, which are in the table's order
        return table[0][pixel_set.coordinates[..., 0] * width + pixel_set.coordinates[..., 1]]
    # Bicubic as ViT's interpolation, but at any places: tests hold both equal.
    where = (positions.flip(-1) + 0.5) * 2 / positions.new_tensor([width, height]) - 1
    table = table.float().transpose(1, 2).unflatten(2, frame).expand(len(where), -1, -1, -1)
    sampled = F.grid_sample(table, where[:, None], "bicubic", "border", align_corners=False)
    return sampled[:, :, 0].transpose(1, 2)


class PixelViTEmbeddings(nn.Module):
    """Tokens: the projection of a pixel, plus its position (section 3)."""

    def __init__(self, config: PixelViTConfig):
        super().__init__()
        self.config = config
        self.height, self.width = config.image_height_width
        width, vocabulary = config.hidden_size, config.pixel_vocab_size
        if vocabulary is None:
            # A 1x1 convolution is this, but pays 10 times as much for the layout on CPUs.
            self.projection = nn.Linear(config.num_channels, width)
        else:
            self.projection = nn.Embedding(vocabulary * config.num_channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.pooling == "cls" else None
        self.position_embeddings = None
        if config.position_embedding_type == "learned":
            tokens = self.height * self.width + (config.pooling == "cls")
            self.position_embeddings = nn.Parameter(torch.zeros(1, tokens, width))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def positions(self, pixel_set: PixelSet) -> torch.Tensor:
        """Places in the configured frame, so that images of other sizes span it too: (batch or 1, n, 2) float32."""
        coordinates, size = pixel_set.coordinates.float(), pixel_set.image_size
        if size == (self.height, self.width):
            return coordinates
        size = torch.as_tensor(size, device=coordinates.device, dtype=torch.float32).view(-1, 1, 2)
        return (coordinates + 0.5) * (coordinates.new_tensor([self.height, self.width]) / size) - 0.5

    def embed_positions(self, pixel_set: PixelSet, positions: torch.Tensor) -> torch.Tensor | None:
        """What is added to the projected pixels: (batch or 1, n, hidden), None for rotary or no positions."""
        kind = self.config.position_embedding_type
        if kind == "sincos2d":
            return sincos_2d(positions, self.config.hidden_size)
        if kind != "learned":
            return None
        table = self.position_embeddings[:, -self.height * self.width :]
        return look_up(table, pixel_set, positions, (self.height, self.width))

    def forward(self, pixel_set: PixelSet, positions: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, n or 1 + n, hidden) of a set whose places in the frame are `positions`."""
        if self.config.pixel_vocab_size is None:
            tokens = self.projection(pixel_set.pixels)
        else:
            channels = torch.arange(self.config.num_channels, device=pixel_set.pixels.device)
            tokens = self.projection(pixel_set.pixels + channels * self.config.pixel_vocab_size).sum(2)
        embedded = self.embed_positions(pixel_set, positions)
        if embedded is not None:
            tokens = tokens + embedded.to(tokens.dtype)
        if self.cls_token is not None:
            cls_token = self.cls_token
            if self.position_embeddings is not None:
                cls_token = cls_token + self.position_embeddings[:, :1]
            tokens = torch.cat([cls_token.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)
        return self.dropout(tokens)


class PixelViTPreTrainedModel(PreTrainedModel):
    """What all PixelViT models share: how they are initialised, and what transformers may do with them."""

    config_class = PixelViTConfig
    base_model_prefix = "pixelvit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # its losses count images or pixels, not label tokens
    _no_split_modules = ["PixelViTEmbeddings", "VisionLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": VisionLayer, "attentions": VisionAttention}

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, PixelViTEmbeddings):
            # Ours: a pixel of unit variance becomes a token of unit variance. ViT's 0.02 would leave next to nothing
            # of a pixel's one to three numbers beside its position.
            init.normal_(module.projection.weight, std=self.config.num_channels**-0.5)
            if module.cls_token is not None:
                init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            if module.position_embeddings is not None:
                init.normal_(module.position_embeddings, std=self.config.position_init_std)
        elif isinstance(module, PixelViTModel) and module.rotary_frequencies is not None:
            # rope-vit's start of the mixed variant: the axial frequencies, turned by a random angle for each head.
            layers, _, heads, half = module.rotary_frequencies.shape
            rows, columns = axial_frequencies(2 * half, module.rope_theta)
            angle = torch.rand(layers, heads, 1) * 2 * torch.pi
            turned = angle.cos() * rows + angle.sin() * columns, angle.cos() * columns - angle.sin() * rows
            init.copy_(module.rotary_frequencies, torch.stack(turned, dim=1))

    def num_loss_items(self, batch: dict[str, torch.Tensor]) -> int:
        """Over how many items the mean loss of a batch is taken: its images."""
        return len(batch["pixels"] if batch.get("pixels") is not None else batch["pixel_values"])


class PixelViTModel(PixelViTPreTrainedModel):
    """The encoder: embeddings, layers and a last norm."""

    def __init__(self, config: PixelViTConfig):
        super().__init__(config)
        self.embeddings = PixelViTEmbeddings(config)
        sizes = config.hidden_size, config.num_attention_heads, config.intermediate_size
        self.layers = nn.ModuleList([VisionLayer(config, *sizes) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.rope_theta = config.rope_theta or ROPE_THETA.get(config.position_embedding_type)
        self.rotary_frequencies = None
        if config.position_embedding_type == "rope_mixed":
            heads, half = config.num_attention_heads, config.hidden_size // config.num_attention_heads // 2
            self.rotary_frequencies = nn.Parameter(torch.zeros(config.num_hidden_layers, 2, heads, half))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The projection of pixels."""
        return self.embeddings.projection

    def rotary(self, positions: torch.Tensor) -> list:
        """For each layer the tables that turn its queries and keys; None for positions that are added."""
        if not self.config.position_embedding_type.startswith("rope"):
            return [None] * len(self.layers)
        if self.config.pooling == "cls":
            positions = F.pad(positions, (0, 0, 1, 0))  # at (0, 0), where nothing turns
        if self.rotary_frequencies is not None:
            return [rotary_tables(positions, frequencies) for frequencies in self.rotary_frequencies]
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        frequencies = axial_frequencies(head_dim, self.rope_theta, positions.device)
        return [rotary_tables(positions, frequencies)] * len(self.layers)

    @capture_outputs
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixels: torch.Tensor | None = None,
        coordinates: torch.LongTensor | None = None,
        image_size: torch.LongTensor | tuple[int, int] | None = None,
        pixel_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> PixelViTModelOutput:
        """Encodes images, given as images or as sets of their pixels.

        Args:
            pixel_values: (batch, channels, height, width), read as `config.pixel_selection` says. Numbers as the
                image processor scales them; with `config.pixel_vocab_size` integer ids.
            pixels: (batch, n, channels), a set that was chosen elsewhere and is read as it is, in any order.
            coordinates: (batch, n, 2) integers, row and column of each pixel, from 0.
            image_size: height and width of the image that the pixels are from, one for all or (batch, 2). It is never
                inferred: without its last row an image is still as high as it was.
            pixel_mask: (batch, n), 1 = pixel, 0 = padding. Sets of different sizes become a batch by `pad_pixel_sets`.

        Raises:
            ValueError: inputs are missing or contradict each other, have the wrong shape, kind or channels, numbers
                that are not finite, places outside the image or twice, or an empty set; or the selection wants more
                pixels than the image has.
        """
        given = pixel_values, pixels, coordinates, image_size, pixel_mask
        pixel_set = read_pixels(self.config, self.training, *given)
        if pixel_set.pixels.is_floating_point():  # to the model's dtype; quantised, the projection has none of its own
            pixel_set = pixel_set._replace(pixels=pixel_set.pixels.to(self.dtype))
        positions = self.embeddings.positions(pixel_set)
        hidden_states = self.embeddings(pixel_set, positions)
        mask = pixel_set.mask
        if mask is not None:
            token_mask = F.pad(mask, (1, 0), value=True) if self.config.pooling == "cls" else mask
            attention_mask = create_bidirectional_mask(self.config, hidden_states, token_mask)
        else:
            attention_mask = None
        for layer, tables in zip(self.layers, self.rotary(positions)):
            hidden_states = layer(hidden_states, attention_mask, tables, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return PixelViTModelOutput(
            last_hidden_state=hidden_states,
            pooler_output=self._pooled(hidden_states, mask),
            coordinates=pixel_set.coordinates.expand(len(hidden_states), -1, -1),
            pixel_mask=mask,
        )

    def _pooled(self, hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if self.config.pooling == "cls":
            return hidden_states[:, 0]
        if mask is None:
            return hidden_states.mean(1)
        return (hidden_states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class PixelViTForImageClassification(PixelViTPreTrainedModel):
    """Classes of images, by a linear layer on the pooled features."""

    def __init__(self, config: PixelViTConfig):
        super().__init__(config)
        self.pixelvit = PixelViTModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixels: torch.Tensor | None = None,
        coordinates: torch.LongTensor | None = None,
        image_size: torch.LongTensor | tuple[int, int] | None = None,
        pixel_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: int | float | torch.Tensor | None = None,
        **kwargs,
    ) -> PixelViTPredictionOutput:
        """Classifies; see `PixelViTModel.forward` for the images.

        Args:
            labels: (batch,) class ids; or what `config.problem_type` says.
            num_items_in_batch: divides the summed loss instead of the number of images.
        """
        outputs = self.pixelvit(pixel_values, pixels, coordinates, image_size, pixel_mask, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config)
            if num_items_in_batch is not None:
                loss = loss * len(labels) / num_items_in_batch
        return PixelViTPredictionOutput(
            loss=loss,
            logits=logits,
            coordinates=outputs.coordinates,
            pixel_mask=outputs.pixel_mask,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class PixelViTForSemanticSegmentation(PixelViTPreTrainedModel):
    """One prediction for each pixel: classes, or numbers such as depth. Tokens are pixels, so no decoder is needed."""

    def __init__(self, config: PixelViTConfig):
        super().__init__(config)
        self.pixelvit = PixelViTModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def num_loss_items(self, batch: dict[str, torch.Tensor]) -> int:
        """Over how many items the mean loss of a batch is taken: the pixels that have a label."""
        return int(self._counted(batch["labels"], batch.get("pixel_mask")).sum())

    def _counted(self, labels: torch.Tensor, pixel_mask: torch.Tensor | None) -> torch.Tensor:
        """Which labels count, flat over the pixels: (batch, n) bool."""
        if self.config.problem_type == "regression":
            counted = labels.isfinite()
            counted = (
                counted.all(1).flatten(1) if labels.ndim > 2 and self.config.num_labels > 1 else counted.flatten(1)
            )
        else:
            counted = (labels != self.config.semantic_loss_ignore_index).flatten(1)
        return counted if pixel_mask is None else counted & pixel_mask.bool()

    def _check_size(self, labels: torch.Tensor, batch: int, size: tuple[int, ...]):
        shapes = [(batch, *size)]
        if self.config.problem_type == "regression":
            channels = self.config.num_labels
            shapes = [(batch, channels, *size), *(shapes if channels == 1 else [])]
        if tuple(labels.shape) not in shapes:
            raise ValueError(
                f"labels {tuple(labels.shape)} do not fit {batch} images of {tuple(size)} pixels; they must be "
                f"{' or '.join(map(str, shapes))}."
            )

    def _check_classes(self, classes: torch.Tensor):
        if classes.is_floating_point():
            raise ValueError(f"labels must be class ids, not {classes.dtype}; numbers need problem_type 'regression'.")
        if torch.compiler.is_compiling():
            return
        wrong = (classes < 0) | (classes >= self.config.num_labels)
        if bool(wrong.any()):
            raise ValueError(
                f"labels hold {classes[wrong][0].item()}, but the classes are 0 to {self.config.num_labels - 1}, and "
                f"what does not count is {self.config.semantic_loss_ignore_index} (semantic_loss_ignore_index)."
            )

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixels: torch.Tensor | None = None,
        coordinates: torch.LongTensor | None = None,
        image_size: torch.LongTensor | tuple[int, int] | None = None,
        pixel_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: int | float | torch.Tensor | None = None,
        **kwargs,
    ) -> PixelViTPredictionOutput:
        """Predicts for every pixel that is read; see `PixelViTModel.forward` for the images.

        Args:
            labels: (batch, height, width) class ids, of a set (batch, n); `config.semantic_loss_ignore_index` does
                not count. With `config.problem_type` "regression" numbers of the shape of the logits, a single
                channel may be left out; those that are not finite do not count.
            num_items_in_batch: divides the summed loss instead of the number of pixels with a label.

        Raises:
            ValueError: as `PixelViTModel.forward`; `config.pixel_selection` leaves pixels out; or the labels have
                another size than the images, or are no classes of the model.
        """
        if self.config.pixel_selection != "all" and pixel_values is not None:
            raise ValueError(
                f"pixel_selection {self.config.pixel_selection!r} leaves pixels without a prediction; set it to "
                "'all', or give the pixels to predict for as a set."
            )
        outputs = self.pixelvit(pixel_values, pixels, coordinates, image_size, pixel_mask, **kwargs)
        count = outputs.coordinates.shape[1]
        logits = self.classifier(outputs.last_hidden_state[:, -count:]).transpose(1, 2)
        loss = None
        if labels is not None:
            size = outputs.coordinates.shape[1:2] if pixel_values is None else pixel_values.shape[2:]
            self._check_size(labels, len(logits), size)
            counted = self._counted(labels, outputs.pixel_mask)
            if self.config.problem_type == "regression":
                errors = (logits - labels.reshape(logits.shape).nan_to_num(0, 0, 0)).square().mean(1)
            else:
                classes = labels.flatten(1).masked_fill(~counted, 0)
                self._check_classes(classes)
                errors = F.cross_entropy(logits.float(), classes.long(), reduction="none")
            items = counted.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            loss = (errors * counted).sum() / items
        return PixelViTPredictionOutput(
            loss=loss,
            logits=logits if pixel_values is None else logits.unflatten(2, pixel_values.shape[2:]),
            coordinates=outputs.coordinates,
            pixel_mask=outputs.pixel_mask,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class PixelViTBackbone(BackboneMixin, PixelViTPreTrainedModel):
    """Feature maps at full resolution, of the layers that `config.out_features` names (`stem`, `stage1` ...)."""

    def __init__(self, config: PixelViTConfig):
        super().__init__(config)
        self.pixelvit = PixelViTModel(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BackboneOutput:
        """Maps of (batch, channels, height, width), as `PixelViTModel.forward` reads them.

        Returns:
            `feature_maps`: one (batch, hidden_size, height, width) for each of `out_features`; the last stage's is
            normed, as the encoder's output is.

        Raises:
            ValueError: as `PixelViTModel.forward`; or `config.pixel_selection` leaves pixels out.
        """
        if self.config.pixel_selection != "all":
            raise ValueError(
                f"pixel_selection {self.config.pixel_selection!r} leaves holes in feature maps; set it to 'all'."
            )
        outputs = self.pixelvit(pixel_values, **kwargs)
        size = pixel_values.shape[2:]
        maps = tuple(
            hidden[:, -size.numel() :].transpose(1, 2).unflatten(2, size)
            for stage, hidden in zip(self.stage_names, outputs.hidden_states)
            if stage in self.out_features
        )
        return BackboneOutput(feature_maps=maps, hidden_states=outputs.hidden_states, attentions=outputs.attentions)


__all__ = [
    "PixelViTBackbone",
    "PixelViTForImageClassification",
    "PixelViTForSemanticSegmentation",
    "PixelViTModel",
    "PixelViTPreTrainedModel",
]
