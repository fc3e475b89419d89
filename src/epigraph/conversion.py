"""Official checkpoints to epigraph model folders."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .models.configuration_comer import CoMERConfig
from .models.modeling_comer import CoMERForConditionalGeneration
from .models.processing import comer_processor


class ConversionError(ValueError):
    """A checkpoint that is not what the converter knows."""


# Official name (below `comer_model.`) -> ours; the first match wins.
_COMER_NAMES = [
    (r"encoder\.model\.conv1\.", "encoder.stem.conv."),
    (r"encoder\.model\.norm1\.", "encoder.stem.norm."),
    (r"encoder\.model\.post_norm\.", "encoder.post_norm."),
    (r"encoder\.feature_proj\.", "encoder.feature_proj."),
    (r"encoder\.norm\.", "encoder.layer_norm."),
    (r"decoder\.word_embed\.0\.", "decoder.embed_tokens."),
    (r"decoder\.word_embed\.1\.", "decoder.embed_layer_norm."),
    (r"decoder\.norm\.", "decoder.position_layer_norm."),
    (r"decoder\.model\.arm\.conv\.", "decoder.refinement.conv."),
    (r"decoder\.model\.arm\.proj\.", "decoder.refinement.proj."),
    (r"decoder\.model\.arm\.post_norm\.bn\.", "decoder.refinement.norm."),
    (r"decoder\.proj\.", "lm_head."),
]
_DENSE_PARTS = {"conv1": "bottleneck.conv", "bn1": "bottleneck.norm", "conv2": "growth.conv", "bn2": "growth.norm"}
_LAYER_PARTS = {
    "linear1": "fc1",
    "linear2": "fc2",
    "norm1": "self_attn_layer_norm",
    "norm2": "cross_attn_layer_norm",
    "norm3": "final_layer_norm",
}
_ATTENTION_PARTS = {"self_attn": "self_attn", "multihead_attn": "cross_attn"}


def comer_name(name: str) -> str | None:
    """Our name of an official CoMER tensor that maps one to one, None where it does not."""
    if match := re.fullmatch(r"encoder\.model\.dense(\d)\.(\d+)\.(conv[12]|bn[12])\.(\w+)", name):
        block, layer, part, leaf = match.groups()
        return f"encoder.blocks.{int(block) - 1}.layers.{layer}.{_DENSE_PARTS[part]}.{leaf}"
    if match := re.fullmatch(r"encoder\.model\.trans(\d)\.(conv1|bn1)\.(\w+)", name):
        index, part, leaf = match.groups()
        return f"encoder.transitions.{int(index) - 1}.projection.{'conv' if part == 'conv1' else 'norm'}.{leaf}"
    if match := re.fullmatch(r"decoder\.model\.layers\.(\d+)\.(linear[12]|norm[123])\.(\w+)", name):
        layer, part, leaf = match.groups()
        return f"decoder.layers.{layer}.{_LAYER_PARTS[part]}.{leaf}"
    if match := re.fullmatch(r"decoder\.model\.layers\.(\d+)\.(self_attn|multihead_attn)\.out_proj\.(\w+)", name):
        layer, part, leaf = match.groups()
        return f"decoder.layers.{layer}.{_ATTENTION_PARTS[part]}.o_proj.{leaf}"
    for pattern, target in _COMER_NAMES:
        if match := re.match(pattern, name):
            return target + name[match.end() :]
    return None


def convert_comer_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Official `LitCoMER` tensors under our names; the packed attention projections are split.

    Raises:
        ConversionError: naming the tensors that CoMER does not have.
    """
    converted, unknown = {}, []
    for full_name, tensor in state_dict.items():
        name = full_name.removeprefix("comer_model.")
        packed = re.fullmatch(r"decoder\.model\.layers\.(\d+)\.(self_attn|multihead_attn)\.in_proj_(weight|bias)", name)
        if packed:
            layer, part, leaf = packed.groups()
            for projection, piece in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                converted[f"decoder.layers.{layer}.{_ATTENTION_PARTS[part]}.{projection}.{leaf}"] = piece.clone()
        elif name == "decoder.pos_enc.pe":
            continue  # a table of sines, computed where it is used
        elif target := comer_name(name):
            converted[target] = tensor
        else:
            unknown.append(full_name)
    if unknown:
        raise ConversionError(f"{len(unknown)} tensors are not CoMER's, the first: {', '.join(unknown[:3])}.")
    return converted


def comer_config(hyper_parameters: dict, **overrides) -> CoMERConfig:
    """CoMERConfig of official hyper-parameters. Padding is not masked: the official weights expect it so."""
    names = {
        "d_model": "hidden_size",
        "nhead": "num_attention_heads",
        "num_decoder_layers": "num_hidden_layers",
        "dim_feedforward": "intermediate_size",
        "dropout": "dropout",
        "growth_rate": "growth_rate",
        "dc": "coverage_channels",
        "cross_coverage": "cross_coverage",
        "self_coverage": "self_coverage",
    }
    missing = [name for name in [*names, "num_layers"] if name not in hyper_parameters]
    if missing:
        raise ConversionError(f"The checkpoint's hyper-parameters lack {', '.join(missing)}.")
    values = {ours: hyper_parameters[official] for official, ours in names.items()}
    depth = [hyper_parameters["num_layers"]] * 3
    return CoMERConfig(**values, dense_layers=depth, mask_padding=False, **overrides)
