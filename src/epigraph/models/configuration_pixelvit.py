"""PixelViT configuration."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

# Heads of 64 channels, as ViT and DeiT have: 12 heads of 16, which replications of the tiny model use, cost more time.
SIZES = {
    "tiny": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768},
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
# rope-vit (Heo et al., ECCV 2024): the base of the frequencies, where the configuration names none.
ROPE_THETA = {"rope_axial": 100.0, "rope_mixed": 10.0}


@strict
class PixelViTConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""Configuration of PixelViT (Nguyen et al., ICLR 2025, arXiv 2406.09415); the defaults are the tiny model.

    Args:
        image_size: height and width of the images that positions are counted in; one number for squares. Other sizes
            are read too, their coordinates scaled into this frame.
        num_channels: numbers that each pixel holds.
        hidden_size: width of the tokens.
        num_hidden_layers: layers.
        num_attention_heads: heads of each layer.
        intermediate_size: width of the feed-forward layers.
        hidden_act: activation of the feed-forward layers.
        hidden_dropout_prob: dropout on embeddings and residual branches.
        attention_probs_dropout_prob: dropout on attention weights.
        initializer_range: standard deviation of new matrices.
        layer_norm_eps: added to the variance in every norm.
        qkv_bias: biases on queries, keys and values.
        position_embedding_type: how a token knows its place.
            `learned`: a table, as in the paper. `sincos2d`: fixed sines and cosines of row and column (MAE).
            `rope_axial`: queries and keys are rotated, half of the pairs by the column, half by the row.
            `rope_mixed`: they are rotated by learned combinations of both, for each layer and head (RoFormer in 2-D).
            `none`: an image is a bag of pixels.
        position_init_std: standard deviation of a new learned table. A pixel token has little content of its own, and
            with the customary 0.02 its place is too faint to be learnt from in a short training.
        rope_theta: base of the rotary frequencies, by default 100 for `rope_axial` and 10 for `rope_mixed`.
        pixel_vocab_size: values that a channel can take where pixels are ids; each then has an embedding of its own
            instead of a linear projection (the paper's dictionary). Of several channels the embeddings are summed,
            which is ours: a dictionary of all colours would have 16.8 million entries. None for plain numbers.
        pooling: `cls` reads the image off a token of its own, `mean` off the mean of its pixels; then there is no
            extra token.
        pixel_selection: which pixels of `pixel_values` become tokens; `pixel_selection.py` defines each.
            `random` draws them anew in every training step, in evaluation it is `random_fixed`.
        num_selected_pixels: how many, for all but `all`.
        selection_seed: of `random_fixed`, and of the order in which equal scores are chosen.
        mask_ratio: share of the pixels that pre-training hides.
        mask_type: `random` hides single pixels, `block` whole squares, which cannot be copied from next door.
        mask_block_size: side of these squares in pixels.
        norm_pix_loss: must be False. It normalises the target of each patch by its own mean and variance, and a patch
            of one pixel has none: of a grey one nothing would be left.
        decoder_hidden_size: width of the decoder of pre-training.
        decoder_num_hidden_layers: layers of that decoder.
        decoder_num_attention_heads: heads of each of them.
        decoder_intermediate_size: width of their feed-forward layers.
        decoder_position_embedding_type: `sincos2d` as MAE has it, or `learned`: a table of the decoder's own.
        semantic_loss_ignore_index: label of pixels that do not count in the loss of `PixelViTForSemanticSegmentation`.
    """

    model_type = "pixelvit"
    keys_to_ignore_at_inference = ["coordinates", "pixel_mask", "ids_restore", "mask"]

    image_size: int | list[int] | tuple[int, int] = 28
    num_channels: int = 3
    hidden_size: int = 192
    num_hidden_layers: int = 12
    num_attention_heads: int = 3
    intermediate_size: int = 768
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True
    position_embedding_type: Literal["learned", "sincos2d", "rope_axial", "rope_mixed", "none"] = "learned"
    position_init_std: float | int = 1.0
    rope_theta: float | int | None = None
    pixel_vocab_size: int | None = None
    pooling: Literal["cls", "mean"] = "cls"
    pixel_selection: Literal["all", "random", "random_fixed", "grid", "edge", "ink", "saliency"] = "all"
    num_selected_pixels: int | None = None
    selection_seed: int = 0
    mask_ratio: float | int = 0.75
    mask_type: Literal["random", "block"] = "random"
    mask_block_size: int = 4
    norm_pix_loss: bool = False
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    decoder_position_embedding_type: Literal["sincos2d", "learned"] = "sincos2d"
    semantic_loss_ignore_index: int = 255
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.stage_names = ["stem", *(f"stage{index + 1}" for index in range(self.num_hidden_layers))]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def of_size(cls, size: str, **changes) -> "PixelViTConfig":
        """The configuration of one of the published sizes: tiny, small, base or large.

        Args:
            size: its name.
            changes: further fields.

        Raises:
            ValueError: there is no such size.
        """
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, not {size!r}.")
        return cls(**{**SIZES[size], **changes})

    @property
    def image_height_width(self) -> tuple[int, int]:
        """Height and width of the frame that positions are counted in, in pixels."""
        return (self.image_size,) * 2 if isinstance(self.image_size, int) else tuple(self.image_size)

    def validate_architecture(self):
        """Part of `@strict`: raises where the numbers cannot make a model."""
        self._validate_sizes()
        if self.norm_pix_loss:
            raise ValueError(
                "norm_pix_loss must be False: it divides the target of each patch by the patch's own deviation, and "
                f"a patch of one pixel has only its {self.num_channels} channel(s) to take one from."
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}.")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be above 0 and below 1, not {self.mask_ratio}.")
        for name in ("position_init_std", "rope_theta"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}.")
        self._validate_selection()

    def _validate_sizes(self):
        sizes = self.image_height_width
        if len(sizes) != 2 or min(sizes) < 1:
            raise ValueError(f"image_size must be a height and a width of at least 1, not {self.image_size}.")
        names = "num_channels hidden_size num_hidden_layers num_attention_heads intermediate_size mask_block_size"
        names += " decoder_hidden_size decoder_num_hidden_layers decoder_num_attention_heads decoder_intermediate_size"
        for name in names.split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.pixel_vocab_size is not None and self.pixel_vocab_size < 2:
            raise ValueError(f"pixel_vocab_size must be at least 2, not {self.pixel_vocab_size}.")
        for side in ("", "decoder_"):
            width, heads = getattr(self, f"{side}hidden_size"), getattr(self, f"{side}num_attention_heads")
            if width % heads:
                raise ValueError(f"{side}hidden_size {width} is not a multiple of {side}num_attention_heads {heads}.")
        if self.position_embedding_type.startswith("rope") and self.hidden_size // self.num_attention_heads % 4:
            raise ValueError(
                f"{self.position_embedding_type} needs heads of a multiple of 4 channels, not "
                f"{self.hidden_size // self.num_attention_heads}."
            )
        if self.position_embedding_type == "sincos2d" and self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of 4, which sincos2d needs.")
        if self.decoder_hidden_size % 4:
            raise ValueError(
                f"decoder_hidden_size {self.decoder_hidden_size} is not a multiple of 4, which its positions need."
            )

    def _validate_selection(self):
        if self.pixel_selection == "all":
            if self.num_selected_pixels is not None:
                raise ValueError("num_selected_pixels is set, but pixel_selection 'all' reads every pixel.")
        elif self.num_selected_pixels is None or self.num_selected_pixels < 1:
            raise ValueError(
                f"pixel_selection {self.pixel_selection!r} needs num_selected_pixels of at least 1, not "
                f"{self.num_selected_pixels}."
            )


__all__ = ["PixelViTConfig"]
