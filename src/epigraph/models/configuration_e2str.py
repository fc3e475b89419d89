"""E2STR configuration."""

import math

from huggingface_hub.dataclasses import strict
from transformers import OPTConfig, PreTrainedConfig, ViTConfig
from transformers.activations import ACT2FN

# What is not the configuration's own default where no sub-configuration is given. Sizes are ours: the official model
# has the 324 million parameters of `E2STRConfig.official()`, its decoder that of a general language model.
VISION = {
    "image_size": [32, 128],
    "patch_size": 4,
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "layer_norm_eps": 1e-5,
}
TEXT = {
    "vocab_size": 100,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "ffn_dim": 1536,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@strict
class E2STRResamplerConfig(PreTrainedConfig):
    r"""Configuration of the Perceiver resampler (Alayrac et al., NeurIPS 2022, arXiv 2204.14198, section 3.1).

    Args:
        num_latents: learned queries, and so tokens for each image.
        num_hidden_layers: layers.
        num_attention_heads: heads of each layer.
        head_dim: channels of each head.
        ffn_multiplier: width of the feed-forward layers, in widths of the image tokens.
    """

    model_type = "e2str_resampler"
    base_config_key = "resampler_config"

    num_latents: int = 64
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    head_dim: int = 64
    ffn_multiplier: int = 4

    def validate_architecture(self):
        """Part of `@strict`: raises where the numbers cannot make a model."""
        for name in ("num_latents", "num_hidden_layers", "num_attention_heads", "head_dim", "ffn_multiplier"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")


@strict
class E2STRConfig(PreTrainedConfig):
    r"""Configuration of E2STR (Zhao et al., CVPR 2024, arXiv 2311.13120).

    Sub-configurations are configurations or dictionaries; what these leave out is ours, not that of transformers.

    Args:
        vision_config: of the ViT that encodes a word image (`ViTConfig`).
        resampler_config: of the resampler that makes a few latents of its tokens (`E2STRResamplerConfig`).
        text_config: of the decoder (`OPTConfig`). By default it is small and writes characters.
        num_cross_attention_heads: heads of the gated cross-attention in front of every layer of the decoder.
        cross_attention_head_dim: channels of each of them.
        cross_attention_ffn_multiplier: width of its feed-forward half, in widths of the decoder.
        gate_init: what both gates of the cross-attention start at, before tanh. At 0 they are closed, which spares a
            decoder that has been trained on text; one that starts at random learns sooner with open ones.
        stem_channels: of convolutions in front of the ViT, each halving height and width; None for none, as in the
            official model. The ViT then reads their feature map: `vision_config.image_size` is that of the map, and
            `vision_config.num_channels` its channels, filled in where left out.
        stem_blocks: residual blocks of two convolutions behind each of these but the first.
        ctc_loss_weight: share of a second loss, by which the ViT's tokens alone say the text (see `E2STRCTCHead`). For
            encoders that start at random; 0 for none, as in the official model, whose encoder comes from elsewhere.
        vision_post_layernorm: norm the image tokens after the last layer. The pinned version of the official code
            does, the ones before it did not.
        score_calibration, char_score_calibration: `slope` and `intercept` of the logistic functions that turn the
            log-probability of a reading, and of a character, into the probability that it is right, fitted by
            scripts/calibrate.py. None for the model's own probabilities.
        image_token_id: token that stands where an image is.
        end_of_chunk_token_id: token that ends the text of an image, and so generation.
    """

    model_type = "e2str"
    sub_configs = {
        "vision_config": ViTConfig,
        "resampler_config": E2STRResamplerConfig,
        "text_config": OPTConfig,
    }
    keys_to_ignore_at_inference = ["past_key_values", "hidden_states", "attentions", "latents", "image_hidden_states"]

    vision_config: dict | PreTrainedConfig | None = None
    resampler_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    num_cross_attention_heads: int = 8
    cross_attention_head_dim: int = 64
    cross_attention_ffn_multiplier: int = 4
    gate_init: float = 0.0
    stem_channels: list[int] | None = None
    stem_blocks: int = 0
    ctc_loss_weight: float = 0.0
    vision_post_layernorm: bool = True
    score_calibration: dict[str, float | int] | None = None
    char_score_calibration: dict[str, float | int] | None = None
    image_token_id: int = 3
    end_of_chunk_token_id: int = 2
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        vision = {**VISION, "num_channels": self.stem_channels[-1]} if self.stem_channels else VISION
        for name, default in (("vision_config", vision), ("resampler_config", {}), ("text_config", TEXT)):
            value, wanted = getattr(self, name), self.sub_configs[name]
            if not isinstance(value, PreTrainedConfig):
                value = {**default, **(value or {})}
                if value.get("model_type", wanted.model_type) == wanted.model_type:
                    value = wanted(**value)
            if not isinstance(value, wanted):
                kind = value["model_type"] if isinstance(value, dict) else value.model_type
                raise ValueError(f"{name} must be of the type {wanted.model_type!r}, not {kind!r}.")
            setattr(self, name, value)
        self.pad_token_id = kwargs.pop("pad_token_id", self.text_config.pad_token_id)
        self.bos_token_id = kwargs.pop("bos_token_id", self.text_config.bos_token_id)
        self.eos_token_id = kwargs.pop("eos_token_id", self.end_of_chunk_token_id)
        super().__post_init__(**kwargs)

    @classmethod
    def official(cls, **changes) -> "E2STRConfig":
        """The published model: ViT-B on 32 x 128 pixels with patches of 4, and OPT-125M.

        Its vocabulary is OPT's with the two special tokens of the prompt.
        """
        vision = {**VISION, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
        text = {"vocab_size": 50267, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
        text |= {"ffn_dim": 3072, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}
        tokens = {"image_token_id": 50266, "end_of_chunk_token_id": 50265}
        return cls(**{"vision_config": vision, "text_config": text, **tokens, **changes})

    @property
    def image_height_width(self) -> tuple[int, int]:
        """Pixels of the images that the model takes: of `vision_config`, before any convolutions."""
        size, halvings = self.vision_config.image_size, len(self.stem_channels or ())
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return height * 2**halvings, width * 2**halvings

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the ViT's tokens."""
        sizes = self.vision_config.image_size, self.vision_config.patch_size
        (height, width), (tall, wide) = (size if isinstance(size, (list, tuple)) else (size, size) for size in sizes)
        return height // tall, width // wide

    def validate_architecture(self):
        """Part of `@strict`: raises where the numbers cannot make a model."""
        if self.stem_blocks < 0:
            raise ValueError(f"stem_blocks must be at least 0, not {self.stem_blocks}.")
        if not 0 <= self.ctc_loss_weight < float("inf"):
            raise ValueError(f"ctc_loss_weight must be a number of at least 0, not {self.ctc_loss_weight}.")
        for name in ("num_cross_attention_heads", "cross_attention_head_dim", "cross_attention_ffn_multiplier"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        vision, text = self.vision_config, self.text_config
        if self.stem_channels is not None:
            if not self.stem_channels or min(self.stem_channels) < 1:
                raise ValueError(f"stem_channels must be numbers of at least 1, or None, not {self.stem_channels}.")
            if vision.num_channels != self.stem_channels[-1]:
                raise ValueError(
                    f"vision_config.num_channels is {vision.num_channels}, but the stem gives "
                    f"{self.stem_channels[-1]}; leave it out."
                )
        sizes = vision.image_size, vision.patch_size
        image, patch = (size if isinstance(size, (list, tuple)) else (size, size) for size in sizes)
        if min(*image, *patch) < 1:
            raise ValueError(f"image_size {list(image)} and patch_size {list(patch)} must be at least 1.")
        for name, config, activation in (
            ("vision_config", vision, vision.hidden_act),
            ("text_config", text, text.activation_function),
        ):
            if activation not in ACT2FN:
                raise ValueError(f"{name} has the activation {activation!r}, which transformers does not know.")
            for size in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
                if getattr(config, size) < 1:
                    raise ValueError(f"{name}.{size} must be at least 1, not {getattr(config, size)}.")
            if config.hidden_size % config.num_attention_heads:
                raise ValueError(
                    f"{name}.hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
                    f"{config.num_attention_heads}."
                )
        if text.layerdrop:
            raise ValueError(f"text_config.layerdrop must be 0, not {text.layerdrop}: no layer is left out.")
        if any(side % part for side, part in zip(image, patch)):
            raise ValueError(f"image_size {list(image)} is not a multiple of patch_size {list(patch)}.")
        for name in ("image_token_id", "end_of_chunk_token_id", "pad_token_id", "bos_token_id"):
            if getattr(self, name) not in range(text.vocab_size):
                raise ValueError(
                    f"{name} {getattr(self, name)} is not in the decoder's vocabulary of {text.vocab_size}."
                )
        if self.image_token_id in (self.pad_token_id, self.bos_token_id):
            raise ValueError(f"image_token_id {self.image_token_id} is that of padding or of the begin of sequence.")
        if self.image_token_id == self.end_of_chunk_token_id:
            raise ValueError(f"image_token_id and end_of_chunk_token_id are both {self.image_token_id}.")
        for name in ("score_calibration", "char_score_calibration"):
            if (numbers := getattr(self, name)) is None:
                continue
            if set(numbers) != {"slope", "intercept"} or not all(map(math.isfinite, numbers.values())):
                raise ValueError(f"{name} must give a finite slope and intercept, not {numbers}.")
            if not numbers["slope"] > 0:
                raise ValueError(f"{name} must have a slope above 0, not {numbers['slope']}.")


__all__ = ["E2STRConfig", "E2STRResamplerConfig"]
