"""CoMER configuration."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class CoMERConfig(PreTrainedConfig):
    r"""Configuration of CoMER (Zhao & Gao, ECCV 2022, arXiv 2207.04410); the defaults are the paper's 6.39 M model.

    Args:
        vocab_size: number of tokens, the three special ones included.
        hidden_size: width of the decoder and of the projected image features.
        num_hidden_layers: decoder layers. The coverage module acts in every layer but the first.
        num_attention_heads: heads of self- and cross-attention.
        intermediate_size: width of the feed-forward layers.
        dropout: probability in the decoder, on attention weights too.
        growth_rate: channels that each layer of a dense block adds; the stem has twice as many.
        dense_layers: layers of the three dense blocks.
        bottleneck_factor: width of a dense layer's 1x1 convolution, in growth rates.
        transition_reduction: share of the channels that a transition keeps.
        encoder_dropout: probability inside dense layers and transitions.
        coverage_channels: hidden channels of the attention refinement module (the paper's d_c).
        coverage_kernel_size: side of its convolution, odd.
        cross_coverage: feed it the refined attention of the layer before.
        self_coverage: feed it the layer's own attention. With neither, the model is BTTR.
        mask_padding: keep padding out of every convolution and of the BatchNorm statistics, so that an image's result
            does not depend on its batch. False reproduces the official behaviour, and official weights expect it.
        label_smoothing: of the training loss, 0 in the paper.
        position_temperature: base of the sinusoidal positions of image and text.
        grammar: ids of the tokens with a grammatical role, as `grammar_from_vocabulary` finds them, which
            generation keeps to. None for no grammar.
        score_calibration: `slope` and `intercept` of the logistic function that turns the log-probability of a reading
            into the probability that it is right, fitted by scripts/calibrate.py. None for the model's own
            probability.
    """

    model_type = "comer"
    attribute_map = {"d_model": "hidden_size"}
    # Their sizes change from batch to batch, so that a Trainer could not gather them.
    keys_to_ignore_at_inference = ["cross_attentions", "coverages", "encoder_last_hidden_state", "feature_mask"]

    vocab_size: int = 113
    hidden_size: int = 256
    num_hidden_layers: int = 3
    num_attention_heads: int = 8
    intermediate_size: int = 1024
    dropout: float | int = 0.3
    growth_rate: int = 24
    dense_layers: list[int] | tuple[int, ...] = (16, 16, 16)
    bottleneck_factor: int = 4
    transition_reduction: float = 0.5
    encoder_dropout: float | int = 0.2
    coverage_channels: int = 32
    coverage_kernel_size: int = 5
    cross_coverage: bool = True
    self_coverage: bool = True
    mask_padding: bool = True
    label_smoothing: float | int = 0.0
    position_temperature: float | int = 10000.0
    grammar: dict[str, int | list[int]] | None = None
    score_calibration: dict[str, float | int] | None = None
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    decoder_start_token_id: int | None = 1

    def validate_architecture(self):
        """Part of `@strict`: raises where the numbers cannot make a model."""
        sizes = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size growth_rate"
        for name in [*sizes.split(), "bottleneck_factor", "coverage_channels", "coverage_kernel_size"]:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("dropout", "encoder_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}.")
        if not 0 < self.transition_reduction <= 1:
            raise ValueError(f"transition_reduction must be above 0 and at most 1, not {self.transition_reduction}.")
        if not self.position_temperature > 0:
            raise ValueError(f"position_temperature must be above 0, not {self.position_temperature}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}."
            )
        if self.hidden_size % 4:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of 4, which the 2-D sinusoidal positions need."
            )
        if len(self.dense_layers) != 3 or min(self.dense_layers) < 1:
            raise ValueError(f"dense_layers must give the depths of three blocks, not {list(self.dense_layers)}.")
        if self.coverage_kernel_size % 2 == 0:
            raise ValueError(f"coverage_kernel_size {self.coverage_kernel_size} must be odd.")
        if (numbers := self.score_calibration) is not None:
            if set(numbers) != {"slope", "intercept"} or not all(map(math.isfinite, numbers.values())):
                raise ValueError(f"score_calibration must give a finite slope and intercept, not {numbers}.")
            if not numbers["slope"] > 0:
                raise ValueError(f"score_calibration must have a slope above 0, not {numbers['slope']}.")


__all__ = ["CoMERConfig"]
