"""Checkpoints of other code to model folders: CoMER's here, others' in conversion_vit.py and conversion_e2str.py.

python scripts/convert.py comer "lightning_logs/version_0/checkpoints/epoch=151.ckpt" comer-official
"""

import argparse
import inspect
import json
import re
import sys
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from safetensors.torch import load_file
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from .data.dictionary import read_dictionary
from .models.configuration_comer import CoMERConfig
from .models.grammar_comer import grammar_from_vocabulary
from .models.modeling_comer import CoMERForConditionalGeneration
from .models.processing import comer_processor
from .models.tokenization import SPECIAL_TOKENS
from .training import save_atomically

# Lightning up to 1.4 files the state of each callback under the callback's class.
_CALLBACKS = ("pytorch_lightning.callbacks.", "lightning.pytorch.callbacks.")
# What MMEngine and MAE file beside the weights: curves, and the arguments of the script.
_RECORDS = {
    "argparse.Namespace",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}


class ConversionError(ValueError):
    """A checkpoint that is not what the converter knows."""


class _Record:
    """Stands where a file has a record: takes what belongs to it, and keeps and does nothing."""

    def __new__(cls, *args):
        return super().__new__(cls)

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


def load_checkpoint(path: str | Path) -> dict:
    """What `torch.save` or safetensors wrote: tensors and plain values, never code.

    Lightning's callbacks, and arrays and records of numpy, MMEngine and argparse, are read as empty stand-ins.

    Returns:
        The dictionary of the file; of a safetensors file, its tensors under `state_dict`.

    Raises:
        ConversionError: the file is missing, damaged, no checkpoint, or names any other class or function.
    """
    path = Path(path)
    if not path.is_file():
        raise ConversionError(f"There is no checkpoint file {path}.")
    try:
        if path.suffix == ".safetensors":
            return {"state_dict": load_file(path)}
        names = get_unsafe_globals_in_checkpoint(path)
        if refused := sorted(name for name in names if not name.startswith(_CALLBACKS) and name not in _RECORDS):
            raise ConversionError(
                f"{path} asks for {', '.join(refused[:3])}, which could run code: nothing was loaded; "
                "save its tensors as safetensors where you trust it."
            )
        # A callback's stand-in takes no arguments: its class would act on them.
        bases = {name: (_Record,) if name in _RECORDS else () for name in names}
        with safe_globals([(type(name.rpartition(".")[2], bases[name], {}), name) for name in names]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except ConversionError:
        raise
    except Exception as error:  # what torch raises depends on where the damage is
        reason = str(error).partition("\n")[0][:200]
        raise ConversionError(f"{path} is damaged or no checkpoint ({reason}).") from None
    if not isinstance(checkpoint, dict):
        raise ConversionError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint's dictionary.")
    return checkpoint


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
        packed = re.fullmatch(
            r"decoder\.model\.layers\.(\d+)\.(self_attn|multihead_attn)\.in_proj_(weight|bias)", name
        )
        if packed:
            layer, part, leaf = packed.groups()
            if tensor.ndim == 0 or len(tensor) % 3:
                raise ConversionError(f"{full_name} has the shape {tuple(tensor.shape)}, not three projections'.")
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
        raise ConversionError(f"the hyper-parameters lack {', '.join(missing)}.")
    values = {ours: hyper_parameters[official] for official, ours in names.items()}
    depth = [hyper_parameters["num_layers"]] * 3
    try:
        return CoMERConfig(**values, dense_layers=depth, mask_padding=False, **overrides)
    except (StrictDataclassFieldValidationError, StrictDataclassClassValidationError) as error:
        raise ConversionError(f"the hyper-parameters make no model: {error.__cause__}") from None


def read_json(path: str | Path) -> dict:
    """A JSON object; ConversionError naming the file where it is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"The hyper-parameters {path} cannot be read as JSON ({error}).") from None
    if not isinstance(content, dict):
        raise ConversionError(f"The hyper-parameters {path} are a {type(content).__name__}, not a JSON object.")
    return content


def fit_tensors(state_dict: dict[str, torch.Tensor], model: torch.nn.Module):
    """Loads `state_dict` into a model on the meta device; ConversionError unless names and shapes are exactly its."""
    wanted = model.state_dict()
    if missing := sorted(wanted.keys() - state_dict.keys()):
        raise ConversionError(f"the checkpoint lacks {len(missing)} tensors, the first: {', '.join(missing[:3])}.")
    if extra := sorted(state_dict.keys() - wanted.keys()):
        raise ConversionError(
            f"the checkpoint holds {len(extra)} tensors that its hyper-parameters do not call for, the first: "
            f"{', '.join(extra[:3])}."
        )
    for name, tensor in wanted.items():
        if state_dict[name].shape != tensor.shape:
            raise ConversionError(
                f"{name} has the shape {tuple(state_dict[name].shape)}; the hyper-parameters call for "
                f"{tuple(tensor.shape)}."
            )
    state_dict = {name: state_dict[name].to(tensor.dtype).contiguous() for name, tensor in wanted.items()}
    model.load_state_dict(state_dict, assign=True)


def new_folder(path: str | Path) -> Path:
    """A folder to write to; ConversionError where something is in it already."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConversionError(f"{path} exists already; name another folder or remove it.")
    return path


def _comer_model(official: dict[str, torch.Tensor], values: dict, vocabulary: dict[str, int]):
    """The model that official tensors and hyper-parameters make."""
    state_dict = convert_comer_state_dict(official)
    written = state_dict["lm_head.bias"].shape if "lm_head.bias" in state_dict else (len(vocabulary),)
    if written != (len(vocabulary),):
        raise ConversionError(
            f"the model writes {written[0] if written else 0} tokens, the dictionary has {len(vocabulary)} with "
            f"{', '.join(SPECIAL_TOKENS)}; name the file of its symbols with --dictionary."
        )
    # Each layer brings tensors: more layers than tensors would only take time and memory.
    depths = [values.get("num_layers"), values.get("num_decoder_layers")]
    if any(isinstance(depth, int) and depth > len(official) for depth in depths):
        raise ConversionError("the hyper-parameters call for more layers than it has tensors.")
    config = comer_config(values, vocab_size=len(vocabulary), grammar=grammar_from_vocabulary(vocabulary))
    with torch.device("meta"):
        model = CoMERForConditionalGeneration(config)
    fit_tensors(state_dict, model)
    return model


def convert_comer(
    checkpoint: str | Path,
    out_dir: str | Path,
    hyper_parameters: str | Path | None = None,
    dictionary: str | Path | None = None,
):
    """Turns an official CoMER checkpoint into a folder that AutoModel and AutoProcessor load.

    Args:
        checkpoint: the Lightning file, or its tensors as safetensors under their official names.
        out_dir: folder to write; it must not exist, or be empty.
        hyper_parameters: JSON of the official hyper-parameters, for a checkpoint that does not hold them.
        dictionary: one symbol a line in the order of their ids; CROHME's 110 symbols if None.

    Raises:
        ValueError: one sentence that says what is wrong with which file. Nothing is written then.
        OSError: the folder cannot be written; nothing half-written is left.
    """
    out_dir = new_folder(out_dir)
    content = load_checkpoint(checkpoint)
    official = content.get("state_dict")
    if not isinstance(official, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in official.items()
    ):
        raise ConversionError(f"{checkpoint} has no state_dict of tensors; name the file that Lightning wrote.")
    values = read_json(hyper_parameters) if hyper_parameters else content.get("hyper_parameters")
    if not isinstance(values, dict):
        raise ConversionError(f"{checkpoint} holds no hyper_parameters; name a JSON file with --hyper-parameters.")

    symbols = None if dictionary is None else read_dictionary(dictionary)
    processor = comer_processor(symbols, polarity="light_on_dark", antialias=False)
    try:
        model = _comer_model(official, values, processor.tokenizer.get_vocab())
    except ConversionError as error:
        raise ConversionError(f"{checkpoint}: {error}") from None

    def write(folder: Path):
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    save_atomically(out_dir, write)


def main(args: list[str] | None = None):
    """`epigraph convert` and scripts/convert.py."""
    from .conversion_e2str import convert_e2str, convert_mae, convert_opt  # they build on what is above
    from .conversion_vit import convert_to_pixelvit, convert_to_vit

    converters = {
        "comer": convert_comer,
        "e2str": convert_e2str,
        "mae": convert_mae,
        "opt": convert_opt,
        "pixelvit": convert_to_pixelvit,
        "vit": convert_to_vit,
    }
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Turn a checkpoint of other code into a model folder. Files are read as data: nothing in them is "
        "ever run.\n\n"
        "  comer     official CoMER (.ckpt or .safetensors) to a folder for AutoModel and AutoProcessor\n"
        "  e2str     official E2STR (.pth or .safetensors) to a folder for AutoModel and AutoProcessor\n"
        "  mae       ViT pretrained as MAE (MAERec, Union14M) to an E2STR that starts with it as vision encoder\n"
        "  opt       transformers' OPT (folder or Hub id) to an E2STR that starts with it as decoder\n"
        "  pixelvit  folder of transformers' ViT or ViTMAE with patch_size 1 to a folder of PixelViT\n"
        "  vit       folder of PixelViT to a folder of transformers' ViT or ViTMAE, which needs no epigraph",
    )
    parser.add_argument("method", metavar="METHOD", choices=converters, help=", ".join(converters))
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="the file, folder or Hub id to read")
    parser.add_argument("out_dir", metavar="OUT_DIR", help="model folder to write; must not exist")
    parser.add_argument(
        "--hyper-parameters",
        metavar="FILE",
        help="comer: JSON of the official hyper-parameters, where CHECKPOINT has none. e2str, mae, opt: JSON of "
        "E2STRConfig's fields that CHECKPOINT does not say",
    )
    parser.add_argument("--dictionary", metavar="FILE", help="comer: its symbols, one a line (default: CROHME's 110)")
    parser.add_argument(
        "--tokenizer",
        metavar="FOLDER_OR_ID",
        help="e2str: the tokenizer it was trained with (default: facebook/opt-125m, from the Hub)",
    )
    parser.add_argument(
        "--into", metavar="FOLDER", help="mae, opt: E2STR that gives all other parts (default: untrained ones)"
    )
    options = vars(parser.parse_args(args))
    method, checkpoint, out_dir = (options.pop(name) for name in ("method", "checkpoint", "out_dir"))
    options = {name: value for name, value in options.items() if value is not None}
    takes = {name: inspect.signature(converter).parameters for name, converter in converters.items()}
    for option in options:
        if option not in takes[method]:
            others = ", ".join(name for name in takes if option in takes[name])
            parser.error(f"--{option.replace('_', '-')} belongs to {others}, not to {method}.")
    try:
        converters[method](checkpoint, out_dir, **options)
    except (ValueError, OSError) as error:
        sys.exit(f"convert: {error}")
    how = "AutoModel.from_pretrained and AutoProcessor.from_pretrained"
    if method in ("pixelvit", "vit"):
        how = "the class that its config.json names under architectures"
    print(f"{out_dir}: load it with {how}")
