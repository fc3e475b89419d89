"""PixelViT to and from transformers' ViT and ViTMAE with patches of one pixel: the same numbers for the same weights.

python scripts/convert.py pixelvit VIT_FOLDER OUT_DIR
python scripts/convert.py vit PIXELVIT_FOLDER OUT_DIR
"""

import json
import logging
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from .conversion import ConversionError, fit_tensors, new_folder
from .models.configuration_pixelvit import PixelViTConfig
from .models.image_processing_pixelvit import PixelViTImageProcessor
from .models.layers import sincos_2d
from .models.modeling_pixelvit import PixelViTForImageClassification, PixelViTModel
from .models.modeling_pixelvit_pretraining import PixelViTForPreTraining
from .training import save_atomically

logger = logging.getLogger(__name__)

_TO_PIXELVIT = {
    ViTForImageClassification: PixelViTForImageClassification,
    ViTMAEForPreTraining: PixelViTForPreTraining,
    ViTModel: PixelViTModel,
}
_TO_VIT = {ours: stock for stock, ours in _TO_PIXELVIT.items()}
# What the configurations of both sides call by one name.
_SHARED = (
    "image_size num_channels hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act "
    "hidden_dropout_prob attention_probs_dropout_prob initializer_range layer_norm_eps qkv_bias id2label label2id "
    "problem_type"
).split()
_SHARED_BY_MAE = (
    "mask_ratio decoder_hidden_size decoder_num_hidden_layers decoder_num_attention_heads decoder_intermediate_size"
).split()
_SHARED_BY_PROCESSORS = "do_resize size resample do_rescale rescale_factor do_normalize image_mean image_std".split()
_TABLE, _DECODER_TABLE = "embeddings.position_embeddings", "decoder.decoder_pos_embed"


def pixelvit_from_vit(model: PreTrainedModel) -> PreTrainedModel:
    """The PixelViT that computes what a stock model with patches of one pixel computes.

    Position tables that hold MAE's sines and cosines become `sincos2d`, which needs no table and fits images of any
    size; all others become `learned`, and are trained on even where ViTMAE keeps its own fixed.

    Args:
        model: `ViTForImageClassification`, `ViTModel` (whose pooler and mask token are left out) or
            `ViTMAEForPreTraining`.

    Returns:
        `PixelViTForImageClassification`, `PixelViTModel` or `PixelViTForPreTraining` with copies of the weights, of
        the same dtype, on the same device, and with the same attention implementation.

    Raises:
        ConversionError: another class, patches of more than one pixel, or `norm_pix_loss`.
    """
    target = _counterpart(model, _TO_PIXELVIT)
    source = model.config
    patch = source.patch_size
    if patch not in (1, [1, 1], (1, 1)):
        raise ConversionError(
            f"patch_size is {patch}, but PixelViT's tokens are single pixels: only 1 can be converted."
        )
    if getattr(source, "norm_pix_loss", False):
        raise ConversionError(
            "norm_pix_loss is True: the model predicts pixels divided by the deviation of a patch, and a patch of one "
            "pixel has none to speak of; train it with norm_pix_loss False."
        )
    tensors, left_out = {}, []
    for name, tensor in model.state_dict().items():
        if name.startswith("pooler.") or name == "embeddings.mask_token":
            left_out.append(name)
        elif "embeddings.patch_embeddings.projection." in name:
            tensors[name.replace("patch_embeddings.", "")] = tensor.flatten(1) if tensor.ndim > 1 else tensor
        else:
            tensors[name] = tensor
    if left_out:
        logger.warning("left out, as PixelViT has no such part: %s", ", ".join(left_out))
    tensors = {f"pixel{name}" if name.startswith("vit.") else name: tensor for name, tensor in tensors.items()}

    values = _shared_values(source, target)
    prefix = "" if target is PixelViTModel else "pixelvit."
    tables = {"position_embedding_type": prefix + _TABLE, "decoder_position_embedding_type": _DECODER_TABLE}
    for field, name in tables.items():
        if name in tensors:
            expected = _sincos_table(_height_width(source), tensors[name])
            fixed = expected is not None and torch.allclose(tensors[name], expected, rtol=0, atol=1e-5)
            values[field] = "sincos2d" if fixed else "learned"
            if fixed:
                del tensors[name]
    return _build(target, PixelViTConfig, values, tensors, model)


def vit_from_pixelvit(model: PreTrainedModel) -> PreTrainedModel:
    """The stock model with patches of one pixel that computes what a PixelViT computes for whole images of its size.

    Of other sizes too, with `interpolate_pos_encoding=True` and a learned square table; `sincos2d` is written out as a
    table, which the stock models interpolate where PixelViT computes other places exactly.

    Args:
        model: `PixelViTForImageClassification`, `PixelViTModel` or `PixelViTForPreTraining`, with pooling `cls`,
            positions `learned` or `sincos2d`, and all pixels read.

    Returns:
        `ViTForImageClassification`, `ViTModel` without a pooler, or `ViTMAEForPreTraining`; otherwise as
        `pixelvit_from_vit`.

    Raises:
        ConversionError: another class, or something that the stock model cannot compute: its outputs would differ.
    """
    target = _counterpart(model, _TO_VIT)
    source = model.config
    _check_that_vit_can(source, target)
    prefix = "" if target is ViTModel else "vit."
    tensors = {}
    for name, tensor in model.state_dict().items():
        name = name.removeprefix("pixel") if name.startswith("pixelvit.") else name
        if "embeddings.projection." in name:
            name = name.replace("projection.", "patch_embeddings.projection.")
            tensor = tensor[..., None, None] if tensor.ndim > 1 else tensor
        tensors[name] = tensor
    size = source.image_height_width
    if prefix + _TABLE not in tensors:
        tensors[prefix + _TABLE] = _sincos_table(size, tensors[f"{prefix}embeddings.cls_token"])
    if target is ViTMAEForPreTraining and _DECODER_TABLE not in tensors:
        tensors[_DECODER_TABLE] = _sincos_table(size, tensors["decoder.mask_token"])
    values = {**_shared_values(source, target), "patch_size": 1}
    if target is ViTMAEForPreTraining:
        values["image_size"] = size[0]  # a single number is all that it reads in places
        return _build(target, ViTMAEConfig, values, tensors, model)
    return _build(target, ViTConfig, values, tensors, model)


def _counterpart(model, classes: dict) -> type:
    if type(model) not in classes:
        known = ", ".join(known.__name__ for known in classes)
        raise ConversionError(f"{type(model).__name__} cannot be converted; {known} can.")
    return classes[type(model)]


def _check_that_vit_can(config: PixelViTConfig, target: type):
    """Raises where outputs of the stock model would differ."""
    name = target.__name__
    if config.position_embedding_type not in ("learned", "sincos2d"):
        raise ConversionError(
            f"position_embedding_type is {config.position_embedding_type!r}, but {name} adds a table of positions: "
            "only 'learned' and 'sincos2d' can be written as one."
        )
    if config.pixel_vocab_size is not None:
        raise ConversionError(f"pixel_vocab_size is set, but {name} projects plain numbers and has no dictionary.")
    if config.pooling != "cls":
        raise ConversionError(f"pooling is {config.pooling!r}, but {name} reads the image off its CLS token.")
    if config.pixel_selection != "all":
        raise ConversionError(
            f"pixel_selection is {config.pixel_selection!r}, but {name} reads every pixel and would answer "
            "differently; set it to 'all' and num_selected_pixels to None if that is what you want."
        )
    height, width = config.image_height_width
    if target is ViTMAEForPreTraining and height != width:
        raise ConversionError(f"image_size is {height} x {width}, but {name} only takes squares.")
    if target is ViTMAEForPreTraining and config.mask_type != "random":
        logger.warning("left out, as %s hides single pixels only: mask_type %r", name, config.mask_type)


def _shared_values(config: PreTrainedConfig, target: type) -> dict:
    mae = target in (PixelViTForPreTraining, ViTMAEForPreTraining)
    return {name: getattr(config, name) for name in [*_SHARED, *(_SHARED_BY_MAE if mae else ())]}


def _height_width(config: PreTrainedConfig) -> tuple[int, int]:
    size = config.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _sincos_table(size: tuple[int, int], like: torch.Tensor) -> torch.Tensor | None:
    """MAE's fixed table, a row of zeros for CLS first: (1, 1 + height * width, width of `like`), of its dtype."""
    height, width = size
    dim = like.shape[-1]
    if dim % 4:
        return None
    # float64, as MAE computes it
    places = torch.cartesian_prod(torch.arange(height).double(), torch.arange(width).double())
    return torch.cat([torch.zeros(1, dim), sincos_2d(places.view(-1, 2), dim)])[None].to(like)


def _build(target: type, config_class: type, values: dict, tensors: dict, like: PreTrainedModel) -> PreTrainedModel:
    try:
        config = config_class(**values)
    except StrictDataclassError as error:
        raise ConversionError(f"the configuration makes no {target.__name__}: {error.__cause__ or error}") from None
    config._attn_implementation = like.config._attn_implementation
    arguments = {"add_pooling_layer": False} if target is ViTModel else {}
    with torch.device("meta"):
        model = target(config, **arguments).to(like.dtype)
    fit_tensors({name: tensor.clone() for name, tensor in tensors.items()}, model)
    return model.train(like.training)


def convert_to_pixelvit(folder: str | Path, out_dir: str | Path):
    """Turns a folder of a stock ViT or ViTMAE with patches of one pixel into a folder of PixelViT.

    Args:
        folder: what `save_pretrained` wrote. An image processor in it is converted too.
        out_dir: folder to write; it must not exist, or be empty.

    Raises:
        ValueError: one sentence that says what is wrong with the folder. Nothing is written then.
        OSError: the folder cannot be written; nothing half-written is left.
    """
    _convert(folder, out_dir, _TO_PIXELVIT, pixelvit_from_vit, ViTImageProcessorPil)


def convert_to_vit(folder: str | Path, out_dir: str | Path):
    """Turns a folder of PixelViT into a folder of a stock ViT or ViTMAE; see `convert_to_pixelvit`."""
    _convert(folder, out_dir, _TO_VIT, vit_from_pixelvit, PixelViTImageProcessor)


def _convert(folder, out_dir, classes: dict, convert, processor_class: type):
    folder, out_dir = Path(folder), new_folder(out_dir)
    source = _load(folder, classes)
    try:
        model = convert(source)
    except ConversionError as error:
        raise ConversionError(f"{folder}: {error}") from None
    processor = _convert_processor(folder, processor_class, source.config.num_channels)

    def write(temporary: Path):
        model.save_pretrained(temporary)
        if processor is not None:
            processor.save_pretrained(temporary)

    save_atomically(out_dir, write)


def _load(folder: Path, classes: dict) -> PreTrainedModel:
    """The model of a folder, of the class that its configuration names; only safetensors are read."""
    file = folder / "config.json"
    if not file.is_file():
        raise ConversionError(f"{folder} is no model folder: it has no config.json.")
    try:
        (name,) = json.loads(file.read_text(encoding="utf-8"))["architectures"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConversionError(f"{file} cannot be read, or does not name the one architecture it is of.") from None
    known = {known.__name__: known for known in classes}
    if name not in known:
        raise ConversionError(f"{folder} holds {name!r}, which cannot be converted; {', '.join(known)} can.")
    arguments = {"add_pooling_layer": False} if known[name] is ViTModel else {}
    try:
        model, report = known[name].from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **arguments
        )
    except Exception as error:  # what is raised depends on where the damage is
        reason = str(error.__cause__ or error).partition("\n")[0][:200]
        raise ConversionError(f"{folder} is damaged or no folder of {name} ({reason}).") from None
    if missing := sorted(report["missing_keys"]):
        raise ConversionError(f"{folder} lacks {len(missing)} tensors, the first: {', '.join(missing[:3])}.")
    extra = sorted(report["unexpected_keys"])
    left_out = [key for key in extra if key.startswith("pooler.") or key == "embeddings.mask_token"]
    if len(left_out) < len(extra):
        others = [key for key in extra if key not in left_out]
        raise ConversionError(
            f"{folder} holds {len(others)} tensors that {name} does not have: {', '.join(others[:3])}."
        )
    if left_out:
        logger.warning("left out, as PixelViT has no such part: %s", ", ".join(left_out))
    return model


def _convert_processor(folder: Path, source_class: type, num_channels: int):
    """The other side's image processor with the settings of the folder's, None where it has none."""
    if not (folder / "preprocessor_config.json").is_file():
        return None
    try:
        source = source_class.from_pretrained(folder)
    except Exception as error:  # as above
        reason = str(error).partition("\n")[0][:200]
        raise ConversionError(f"{folder}/preprocessor_config.json cannot be read ({reason}).") from None
    settings = {name: getattr(source, name) for name in _SHARED_BY_PROCESSORS}
    settings["size"] = dict(settings["size"])
    if source_class is PixelViTImageProcessor:
        return ViTImageProcessorPil(**settings)
    return PixelViTImageProcessor(**settings, num_channels=num_channels)
