"""Pre-training of PixelViT: a masked autoencoder on pixels (section 4.2; He et al., CVPR 2022, arXiv 2111.06377).

The encoder reads the pixels that are not hidden, as the set that they are; a narrow decoder predicts the others from
their places. `ViTMAEForPreTraining(patch_size=1)` of transformers with the same weights gives the same loss.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_pixelvit import PixelViTConfig
from .layers import VisionLayer, sincos_2d
from .modeling_pixelvit import PixelViTModel, PixelViTPreTrainedModel, look_up
from .pixel_selection import mask_noise
from .pixel_sets import PixelSet, read_pixels


@dataclass
class PixelViTPreTrainingOutput(ModelOutput):
    """What pre-training gives.

    Attributes:
        loss: scalar, the mean over the images of the mean error over their hidden pixels: the squared error, or with
            `config.pixel_vocab_size` the cross entropy.
        logits: (batch, n, channels), or (batch, n, channels * pixel_vocab_size): every pixel as predicted.
        mask: (batch, n), 1 = hidden and predicted, 0 = read (or padding).
        ids_restore: (batch, n), the rank of each pixel in the order in which pixels were kept.
        coordinates: (batch, n, 2), row and column.
        pixel_mask: (batch, n) bool, False where a set was padded; None where nothing was.
        hidden_states, attentions: of the encoder, see `PixelViTModelOutput`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    mask: torch.FloatTensor | None = None
    ids_restore: torch.LongTensor | None = None
    coordinates: torch.LongTensor | None = None
    pixel_mask: torch.BoolTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class PixelViTDecoder(nn.Module):
    """The decoder of pre-training; module names are ViTMAE's."""

    def __init__(self, config: PixelViTConfig):
        super().__init__()
        self.config = config
        width = config.decoder_hidden_size
        self.decoder_embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        sizes = width, config.decoder_num_attention_heads, config.decoder_intermediate_size
        self.decoder_layers = nn.ModuleList(
            [VisionLayer(config, *sizes) for _ in range(config.decoder_num_hidden_layers)]
        )
        self.decoder_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder_pred = nn.Linear(width, config.num_channels * (config.pixel_vocab_size or 1))
        self.decoder_pos_embed = None
        if config.decoder_position_embedding_type == "learned":
            height, width_in_pixels = config.image_height_width
            tokens = height * width_in_pixels + (config.pooling == "cls")
            self.decoder_pos_embed = nn.Parameter(torch.zeros(1, tokens, width))

    def forward(self, latents, ranks, kept, pixel_set: PixelSet, positions: torch.Tensor) -> torch.Tensor:
        """Predicts pixels.

        Args:
            latents: (batch, [1 +] m, hidden_size), the encoder's output for the kept pixels.
            ranks: (batch, n), where each pixel stands among the kept ones.
            kept: (batch, n) bool.
            pixel_set: all pixels, of which only places and mask are looked at.
            positions: (batch or 1, n, 2), their places in the configured frame.

        Returns:
            (batch, n, channels or channels * pixel_vocab_size).
        """
        latents = self.decoder_embed(latents)
        has_cls = self.config.pooling == "cls"
        known = latents[:, has_cls:]
        index = ranks.clamp(max=known.shape[1] - 1)[..., None].expand(-1, -1, known.shape[2])
        hidden = torch.where(kept[..., None], known.gather(1, index), self.mask_token.to(known.dtype))
        image_token = latents[:, :1]
        if self.decoder_pos_embed is None:
            hidden = hidden + sincos_2d(positions, known.shape[2]).to(known.dtype)
        else:
            table, frame = self.decoder_pos_embed[:, has_cls:], self.config.image_height_width
            hidden = hidden + look_up(table, pixel_set, positions, frame).to(known.dtype)
            image_token = image_token + self.decoder_pos_embed[:, :1]
        if has_cls:
            hidden = torch.cat([image_token, hidden], dim=1)
        attention_mask = None
        if pixel_set.mask is not None:
            token_mask = F.pad(pixel_set.mask, (1, 0), value=True) if has_cls else pixel_set.mask
            attention_mask = create_bidirectional_mask(self.config, hidden, token_mask)
        for layer in self.decoder_layers:
            hidden = layer(hidden, attention_mask)
        return self.decoder_pred(self.decoder_norm(hidden))[:, has_cls:]


class PixelViTForPreTraining(PixelViTPreTrainedModel):
    """Masked autoencoder on pixels: of all, or of those that `config.pixel_selection` selects."""

    def __init__(self, config: PixelViTConfig):
        super().__init__(config)
        self.pixelvit = PixelViTModel(config)
        self.decoder = PixelViTDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, PixelViTDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)
            if module.decoder_pos_embed is not None:
                init.normal_(module.decoder_pos_embed, std=self.config.position_init_std)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixels: torch.Tensor | None = None,
        coordinates: torch.LongTensor | None = None,
        image_size: torch.LongTensor | tuple[int, int] | None = None,
        pixel_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        num_items_in_batch: int | float | torch.Tensor | None = None,
        **kwargs,
    ) -> PixelViTPreTrainingOutput:
        """Hides `config.mask_ratio` of the pixels and predicts them; see `PixelViTModel.forward` for the images.

        Args:
            noise: (batch, n), whose largest numbers are hidden; drawn as `config.mask_type` says where absent.
            num_items_in_batch: divides the summed loss instead of the number of images.

        Raises:
            ValueError: as `PixelViTModel.forward`; of some image no pixel would be kept or none hidden; or `noise` has
                another shape or is not finite.
        """
        given = pixel_values, pixels, coordinates, image_size, pixel_mask
        pixel_set = read_pixels(self.config, self.training, *given)
        batch, count, _ = pixel_set.pixels.shape
        places = pixel_set.coordinates.expand(batch, -1, -1)
        if noise is None:
            noise = mask_noise(places, self.config.mask_type, self.config.mask_block_size)
        else:
            self._check_noise(noise, batch, count)
        present = pixel_set.mask
        keeps = self._numbers_to_keep(present, count)
        if present is not None:
            noise = noise.float().masked_fill(~present, torch.inf)
        order = noise.argsort(dim=1, stable=True)
        ranks = order.argsort(dim=1)
        keep = torch.tensor(keeps, device=noise.device)[:, None]
        kept = ranks < keep
        visible = order[:, : max(keeps)]
        visible_mask = None if present is None else torch.arange(max(keeps), device=noise.device) < keep
        read = pixel_set.take(visible, visible_mask)
        encoded = self.pixelvit(
            pixels=read.pixels,
            coordinates=read.coordinates,
            image_size=read.image_size,
            pixel_mask=read.mask,
            **kwargs,
        )
        positions = self.pixelvit.embeddings.positions(pixel_set)
        logits = self.decoder(encoded.last_hidden_state, ranks, kept, pixel_set, positions)
        hidden = ~kept if present is None else ~kept & present
        loss = (self._errors(logits, pixel_set.pixels) * hidden).sum(1) / hidden.sum(1)
        return PixelViTPreTrainingOutput(
            loss=loss.sum() / (batch if num_items_in_batch is None else num_items_in_batch),
            logits=logits,
            mask=hidden.to(logits.dtype),
            ids_restore=ranks,
            coordinates=places,
            pixel_mask=present,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _check_noise(self, noise: torch.Tensor, batch: int, count: int):
        if not isinstance(noise, torch.Tensor) or noise.shape != (batch, count):
            given = f"{type(noise).__name__} {tuple(getattr(noise, 'shape', ()))}"
            raise ValueError(f"noise must be a tensor (batch, n) = {(batch, count)}, not a {given}.")
        if not torch.compiler.is_compiling() and not bool(noise.isfinite().all()):
            raise ValueError("noise holds numbers that are not finite, which have no order.")

    def _numbers_to_keep(self, mask: torch.Tensor | None, count: int) -> list[int]:
        """How many pixels are read: of each image, or of all alike where nothing is padding."""
        counts = [count] if mask is None else mask.sum(1).tolist()
        keeps = [int(size * (1 - self.config.mask_ratio)) for size in counts]  # as ViTMAE rounds it
        for size, keep in zip(counts, keeps):
            if not 0 < keep < size:
                raise ValueError(
                    f"mask_ratio {self.config.mask_ratio} of an image of {size} pixels keeps none of them or hides "
                    "none."
                )
        return keeps

    def _errors(self, logits: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """The error of each pixel, the mean over its channels: (batch, n) float32."""
        if self.config.pixel_vocab_size is None:
            return (logits.float() - pixels.float()).square().mean(2)
        scores = logits.float().unflatten(2, (self.config.num_channels, self.config.pixel_vocab_size))
        return F.cross_entropy(scores.permute(0, 3, 1, 2), pixels, reduction="none").mean(2)


__all__ = ["PixelViTForPreTraining"]
