"""E2STR from weights of other code: the official model, a ViT pretrained as MAE, OPT as the decoder.

python scripts/convert.py e2str epoch_5.pth OUT_DIR
python scripts/convert.py mae vit_base.pth OUT_DIR --into E2STR_FOLDER
python scripts/convert.py opt facebook/opt-125m OUT_DIR
"""

import logging
import re
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, AutoTokenizer, OPTConfig, OPTForCausalLM, PreTrainedTokenizerBase

from .conversion import ConversionError, fit_tensors, load_checkpoint, new_folder, read_json
from .models.configuration_e2str import E2STRConfig
from .models.image_processing_e2str import E2STRImageProcessor
from .models.modeling_e2str import E2STRForTextRecognition
from .models.processing_e2str import E2STRProcessor, e2str_processor
from .training import save_atomically

logger = logging.getLogger(__name__)

END_OF_CHUNK, IMAGE = "<|endofchunk|>", "<image>"  # the official tokens, in the order of their ids
OFFICIAL_TOKENIZER = "facebook/opt-125m"

# Below are names as patterns, and what they become. [qkv] and [kv] are projections that the other side packs into one
# tensor; the first match wins, None leaves a tensor out.
_VISION, _RESAMPLER = "model.vision_model.", "model.resampler."
_TEXT, _CROSS = "model.text_model.", r"model.text_model.layers.\1.cross_attention."
_BLOCK, _PERCEIVER = r"vision_encoder\.transformer\.resblocks\.(\d+)\.", r"perceiver\.layers\.(\d+)\."
_GATED = r"lang_encoder\.gated_cross_attn_layers\.(\d+)\."
_E2STR_NAMES = [
    (r"vision_encoder\.proj", None),  # only of the pooled class token, which E2STR does not read
    (r"vision_encoder\.class_embedding", _VISION + "embeddings.cls_token"),
    (r"vision_encoder\.positional_embedding", _VISION + "embeddings.position_embeddings"),
    (r"vision_encoder\.conv1\.(\w+)", _VISION + r"embeddings.patch_embeddings.projection.\1"),
    (r"vision_encoder\.ln_post\.(\w+)", _VISION + r"layernorm.\1"),
    (_BLOCK + r"ln_1\.(\w+)", _VISION + r"layers.\1.layernorm_before.\2"),
    (_BLOCK + r"ln_2\.(\w+)", _VISION + r"layers.\1.layernorm_after.\2"),
    (_BLOCK + r"attn\.in_proj_(\w+)", _VISION + r"layers.\1.attention.[qkv]_proj.\2"),
    (_BLOCK + r"attn\.out_proj\.(\w+)", _VISION + r"layers.\1.attention.o_proj.\2"),
    (_BLOCK + r"mlp\.c_fc\.(\w+)", _VISION + r"layers.\1.mlp.fc1.\2"),
    (_BLOCK + r"mlp\.c_proj\.(\w+)", _VISION + r"layers.\1.mlp.fc2.\2"),
    (r"perceiver\.(latents|norm\.\w+)", _RESAMPLER + r"\1"),
    (_PERCEIVER + r"0\.(norm_media|norm_latents)\.(\w+)", _RESAMPLER + r"layers.\1.\2.\3"),
    (_PERCEIVER + r"0\.to_q\.(\w+)", _RESAMPLER + r"layers.\1.attention.q_proj.\2"),
    (_PERCEIVER + r"0\.to_kv\.(\w+)", _RESAMPLER + r"layers.\1.attention.[kv]_proj.\2"),
    (_PERCEIVER + r"0\.to_out\.(\w+)", _RESAMPLER + r"layers.\1.attention.o_proj.\2"),
    (_PERCEIVER + r"1\.0\.(\w+)", _RESAMPLER + r"layers.\1.feed_forward.norm.\2"),
    (_PERCEIVER + r"1\.1\.(\w+)", _RESAMPLER + r"layers.\1.feed_forward.fc1.\2"),
    (_PERCEIVER + r"1\.3\.(\w+)", _RESAMPLER + r"layers.\1.feed_forward.fc2.\2"),
    (_GATED + r"attn\.norm\.(\w+)", _CROSS + r"norm.\2"),
    (_GATED + r"attn\.to_q\.(\w+)", _CROSS + r"attention.q_proj.\2"),
    (_GATED + r"attn\.to_kv\.(\w+)", _CROSS + r"attention.[kv]_proj.\2"),
    (_GATED + r"attn\.to_out\.(\w+)", _CROSS + r"attention.o_proj.\2"),
    (_GATED + r"attn_gate", _CROSS + "attention_gate"),
    (_GATED + r"ff\.0\.(\w+)", _CROSS + r"feed_forward.norm.\2"),
    (_GATED + r"ff\.1\.(\w+)", _CROSS + r"feed_forward.fc1.\2"),
    (_GATED + r"ff\.3\.(\w+)", _CROSS + r"feed_forward.fc2.\2"),
    (_GATED + r"ff_gate", _CROSS + "feed_forward_gate"),
    (r"lang_encoder\.old_decoder_blocks\.(\d+)\.(.+)", _TEXT + r"layers.\1.\2"),
    (r"lang_encoder\.model\.decoder\.((?!layers\.).+)", _TEXT + r"\1"),
    (r"lang_encoder\.lm_head\.weight", "lm_head.weight"),
]
# The official model files its decoder's layers twice; under these names, and under those of _GATED and old_decoder_.
_SECOND = r"^lang_encoder\.model\.decoder\.layers\.(\d+)\."
_SECOND_NAMES = [
    (_SECOND + r"gated_cross_attn_layer\.", r"lang_encoder.gated_cross_attn_layers.\1."),
    (_SECOND + r"decoder_layer\.", r"lang_encoder.old_decoder_blocks.\1."),
]
_MAE_BLOCK = r"blocks\.(\d+)\."
_MAE_NAMES = [
    (r"(decoder_|mask_token|head\.).*", None),  # what pretraining and classification add
    (r"cls_token", "embeddings.cls_token"),
    (r"pos_embed", "embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(\w+)", r"embeddings.patch_embeddings.projection.\1"),
    (r"norm\.(\w+)", r"layernorm.\1"),
    (_MAE_BLOCK + r"norm1\.(\w+)", r"layers.\1.layernorm_before.\2"),
    (_MAE_BLOCK + r"norm2\.(\w+)", r"layers.\1.layernorm_after.\2"),
    (_MAE_BLOCK + r"attn\.qkv\.(\w+)", r"layers.\1.attention.[qkv]_proj.\2"),
    (_MAE_BLOCK + r"attn\.proj\.(\w+)", r"layers.\1.attention.o_proj.\2"),
    (_MAE_BLOCK + r"mlp\.(fc[12])\.(\w+)", r"layers.\1.mlp.\2.\3"),
]


def _renamed(state_dict: dict[str, torch.Tensor], names: list, whose: str, plain=str) -> dict[str, torch.Tensor]:
    """Tensors under our names, packed projections split.

    Args:
        names: patterns of names and what they become, as above.
        whose: for the error about names that fit none of them.
        plain: makes of a name the one that `names` has patterns of.

    Raises:
        ConversionError: naming tensors that fit no pattern, or two that differ and become one.
    """
    converted, unknown = {}, []

    def put(name: str, tensor: torch.Tensor, source: str):
        if name in converted and not torch.equal(converted[name], tensor):
            raise ConversionError(f"{source} differs from the same weights under their other name.")
        converted[name] = tensor

    for source, tensor in state_dict.items():
        found = ((re.fullmatch(pattern, plain(source)), target) for pattern, target in names)
        match, target = next((pair for pair in found if pair[0]), (None, None))
        if match is None:
            unknown.append(source)
            continue
        if target is None:
            continue
        _check_numbers(source, tensor)
        if packed := re.search(r"\[(\w+)\]", target):
            letters = packed[1]
            if tensor.ndim == 0 or len(tensor) % len(letters):
                raise ConversionError(
                    f"{source} has the shape {tuple(tensor.shape)}, not {len(letters)} projections of one size."
                )
            for letter, piece in zip(letters, tensor.chunk(len(letters))):
                put(match.expand(target.replace(packed[0], letter)), piece, source)
        else:
            put(match.expand(target), tensor, source)
    if unknown:
        raise ConversionError(f"{len(unknown)} tensors are not {whose}, the first: {', '.join(sorted(unknown)[:3])}.")
    return converted


def _check_numbers(name: str, tensor: torch.Tensor):
    """ConversionError unless a tensor holds the finite floating point numbers that its shape says."""
    if tensor.layout != torch.strided or tensor.is_meta or not tensor.is_floating_point():
        raise ConversionError(f"{name} is no plain tensor of floating point numbers.")
    # Strides of 0 let a small file claim a tensor of any size.
    if tensor.untyped_storage().nbytes() < tensor.nbytes:
        raise ConversionError(f"{name} has fewer numbers than its shape {tuple(tensor.shape)} says.")
    if not tensor.isfinite().all():
        raise ConversionError(f"{name} holds NaN or infinite values; take a checkpoint from before training diverged.")


def convert_e2str_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Official E2STR tensors (or their gradients) under our names; packed projections are split.

    The decoder's layers may stand under either of their official names, or under both.

    Raises:
        ConversionError: naming the tensors that E2STR does not have, or that differ between their two names.
    """

    def plain(name: str) -> str:
        name = name.removeprefix("module.").removeprefix("model.")
        for second, first in _SECOND_NAMES:
            name = re.sub(second, first, name)
        return name

    converted = _renamed(state_dict, _E2STR_NAMES, "E2STR's", plain)
    for name, axes in (("cls_token", 2), ("position_embeddings", 1)):
        if (name := f"{_VISION}embeddings.{name}") in converted:
            converted[name] = converted[name][(None,) * axes]
    return converted


def convert_mae_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The encoder of a MAE (the names of its authors' code and of timm) under the names of transformers' `ViTModel`.

    Of a whole recogniser (MAERec) the tensors below `backbone.` are taken. What only pretraining needs is left out.

    Raises:
        ConversionError: naming the tensors that a ViT does not have.
    """
    state_dict = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    prefixes = ("backbone.", "model.", "encoder.")
    prefix = next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in state_dict)), "")
    state_dict = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
    return _renamed(state_dict, _MAE_NAMES, "a ViT's")


def _shape(tensors: dict[str, torch.Tensor], name: str, ndim: int) -> torch.Size:
    """Of a tensor that says a size; ConversionError where it is missing or has other axes."""
    if name not in tensors:
        raise ConversionError(f"the checkpoint lacks {name}.")
    if tensors[name].ndim != ndim or 0 in tensors[name].shape:
        raise ConversionError(f"{name} has the shape {tuple(tensors[name].shape)}, not one of {ndim} axes.")
    return tensors[name].shape


def _depth(tensors: dict[str, torch.Tensor], prefix: str) -> int:
    """How many layers there are below a prefix."""
    numbers = [int(match[1]) for name in tensors if (match := re.match(re.escape(prefix) + r"(\d{1,4})\.", name))]
    return 1 + max(numbers, default=-1)


def _heads(width: int, head_dim: int, what: str) -> int:
    if width % head_dim:
        raise ConversionError(
            f"the heads of the {what} cannot be told from a width of {width}; name their number in a JSON file with "
            "--hyper-parameters."
        )
    return width // head_dim


def _vision_values(tensors: dict[str, torch.Tensor], prefix: str, given: dict) -> dict:
    """What tensors say about a ViT, and over it what is given."""
    projection = f"{prefix}embeddings.patch_embeddings.projection.weight"
    width, channels, *patch = _shape(tensors, projection, 4)
    values = {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "num_hidden_layers": _depth(tensors, prefix + "layers."),
        "intermediate_size": _shape(tensors, f"{prefix}layers.0.mlp.fc1.weight", 2)[0],
        "image_size": [32, 128],
        **given,
    }
    if "num_attention_heads" not in given:
        values["num_attention_heads"] = _heads(width, 64, "vision encoder")
    size = values["image_size"]
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ConversionError(f"image_size must be [height, width] in pixels, not {size!r}.")
    wanted = 1 + (size[0] // patch[0]) * (size[1] // patch[1])
    rows = _shape(tensors, f"{prefix}embeddings.position_embeddings", 3)[1]
    if rows != wanted:
        raise ConversionError(
            f"its position table has {rows} rows, but images of {size[0]} x {size[1]} pixels and patches of "
            f"{patch[0]} x {patch[1]} call for {wanted}; name the size as vision_config.image_size in a JSON file "
            "with --hyper-parameters if these weights read images of another one."
        )
    return values


def e2str_config(tensors: dict[str, torch.Tensor], values: dict | None = None) -> E2STRConfig:
    """The configuration that tensors under our names call for.

    Heads have 64 channels, and the special tokens are the last two of the vocabulary, as in the official model.

    Args:
        tensors: what `convert_e2str_state_dict` gave.
        values: fields of `E2STRConfig` that the tensors do not say, or that differ from the official model's.

    Raises:
        ConversionError: a tensor that says a size is missing, or the numbers make no model.
    """
    values = dict(values or {})
    given = {name: values.pop(name, {}) for name in E2STRConfig.sub_configs}
    layer = _TEXT + "layers.0."
    vocabulary, embedding = _shape(tensors, _TEXT + "embed_tokens.weight", 2)
    ffn, width = _shape(tensors, layer + "fc1.weight", 2)
    text = {
        "vocab_size": vocabulary,
        "word_embed_proj_dim": embedding,
        "hidden_size": width,
        "ffn_dim": ffn,
        "num_hidden_layers": _depth(tensors, _TEXT + "layers."),
        "max_position_embeddings": _shape(tensors, _TEXT + "embed_positions.weight", 2)[0] - 2,
        **{"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2},
        **given["text_config"],
    }
    if "num_attention_heads" not in given["text_config"]:
        text["num_attention_heads"] = _heads(width, 64, "decoder")
    latents, vision_width = _shape(tensors, _RESAMPLER + "latents", 2)
    first, cross = _RESAMPLER + "layers.0.", layer + "cross_attention."
    resampler = {
        "num_latents": latents,
        "num_hidden_layers": _depth(tensors, _RESAMPLER + "layers."),
        "num_attention_heads": _shape(tensors, first + "attention.q_proj.weight", 2)[0] // 64,
        "ffn_multiplier": _shape(tensors, first + "feed_forward.fc1.weight", 2)[0] // vision_width,
        **given["resampler_config"],
    }
    own = {
        "num_cross_attention_heads": _shape(tensors, cross + "attention.q_proj.weight", 2)[0] // 64,
        "cross_attention_ffn_multiplier": _shape(tensors, cross + "feed_forward.fc1.weight", 2)[0] // width,
        "image_token_id": vocabulary - 1,
        "end_of_chunk_token_id": vocabulary - 2,
        **values,
    }
    vision = {"layer_norm_eps": 1e-5, **_vision_values(tensors, _VISION, given["vision_config"])}
    return _config(vision_config=vision, resampler_config=resampler, text_config=text, **own)


def _config(**values) -> E2STRConfig:
    """E2STRConfig; ConversionError where the values make none."""
    try:
        return E2STRConfig(**values)
    except (StrictDataclassFieldValidationError, StrictDataclassClassValidationError) as error:
        raise ConversionError(f"the hyper-parameters make no model: {error.__cause__}") from None


def _state_dict(checkpoint: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, wherever in it they are; ConversionError where there are none."""
    content = load_checkpoint(checkpoint)
    content = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
    if not content or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in content.items()):
        raise ConversionError(f"{checkpoint} has no state_dict of tensors; name the file that training wrote.")
    return content


def _hyper_parameters(path: str | Path | None, into: str | Path | None = None) -> dict:
    """Fields of E2STRConfig, those of its parts as dictionaries; none where weights go `into` a folder's model.

    Raises:
        ConversionError: the JSON file has others, or there is one though the model is a folder's.
    """
    if into and path:
        raise ConversionError(f"--hyper-parameters are of a new model, but {into} has its own.")
    values = read_json(path) if path else {}
    known = E2STRConfig().to_dict()
    unknown = set(values) - set(known)
    for name in E2STRConfig.sub_configs:
        if not isinstance(part := values.get(name, {}), dict):
            raise ConversionError(f"{path}: {name} must be a JSON object.")
        unknown |= {f"{name}.{field}" for field in set(part) - set(known[name])}
    if unknown:
        raise ConversionError(f"{path}: E2STR has no hyper-parameter {', '.join(sorted(unknown)[:3])}.")
    return values


def _opt_processor(source: str | Path, **image_kwargs) -> E2STRProcessor:
    """E2STR's processor around the tokenizer of an OPT, which gets the two tokens of the prompt."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    except Exception as error:  # a folder that is none, a name that the Hub does not have, no network: all differ
        reason = str(error).partition("\n")[0][:200]
        raise ConversionError(
            f"no tokenizer can be read from {source} ({reason}); name a folder with OPT's with --tokenizer."
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or None in (tokenizer.bos_token, tokenizer.pad_token):
        raise ConversionError(f"the tokenizer {source} has no token for the begin of a sequence, or for padding.")
    tokenizer.add_tokens([END_OF_CHUNK, IMAGE], special_tokens=True)
    return E2STRProcessor(E2STRImageProcessor(**image_kwargs), tokenizer, IMAGE, END_OF_CHUNK)


def _image_size(config: E2STRConfig) -> dict:
    height, width = config.vision_config.image_size
    return {"height": height, "width": width}


def _save(model: E2STRForTextRecognition, processor: E2STRProcessor, out_dir: Path):
    def write(folder: Path):
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    save_atomically(out_dir, write)


def _fresh(config: E2STRConfig) -> E2STRForTextRecognition:
    """A model with random weights, the same ones every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return E2STRForTextRecognition(config)


def _load_e2str(folder: str | Path) -> tuple[E2STRForTextRecognition, E2STRProcessor]:
    """A model folder of E2STR; only safetensors are read."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ConversionError(f"{folder} is no model folder: it has no config.json.")
    try:
        if (kind := AutoConfig.from_pretrained(folder).model_type) != "e2str":
            raise ValueError(f"its model_type is {kind}")
        model, report = E2STRForTextRecognition.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        processor = E2STRProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # what is raised depends on where the damage is
        reason = str(error.__cause__ or error).partition("\n")[0][:200]
        raise ConversionError(f"{folder} is damaged or no folder of E2STR ({reason}).") from None
    if lacking := sorted({*report["missing_keys"], *report["unexpected_keys"]}):
        raise ConversionError(f"{folder} lacks tensors of its model, or holds others: {', '.join(lacking[:3])}.")
    return model, processor


def convert_e2str(
    checkpoint: str | Path,
    out_dir: str | Path,
    hyper_parameters: str | Path | None = None,
    tokenizer: str | Path = OFFICIAL_TOKENIZER,
):
    """Turns an official E2STR checkpoint into a folder that AutoModel and AutoProcessor load.

    Args:
        checkpoint: the file that training wrote (torch.save or safetensors).
        out_dir: folder to write; it must not exist, or be empty.
        hyper_parameters: JSON of fields of `E2STRConfig` that differ from the official model's and that its tensors
            do not say, such as `{"vision_post_layernorm": false}` or `{"text_config": {"num_attention_heads": 4}}`.
        tokenizer: folder or Hub id of the tokenizer that it was trained with, without the two tokens of the prompt.

    Raises:
        ValueError: one sentence that says what is wrong with which file. Nothing is written then.
        OSError: the folder cannot be written; nothing half-written is left.
    """
    out_dir = new_folder(out_dir)
    official = _state_dict(checkpoint)
    values = _hyper_parameters(hyper_parameters)
    try:
        tensors = convert_e2str_state_dict(official)
        config = e2str_config(tensors, values)
        model = _e2str_model(tensors, config)
    except ConversionError as error:
        raise ConversionError(f"{checkpoint}: {error}") from None
    processor = _opt_processor(tokenizer, size=_image_size(config))
    text = config.text_config
    ours = [config.end_of_chunk_token_id, config.image_token_id, text.pad_token_id, text.bos_token_id, text.vocab_size]
    theirs = [processor.end_of_chunk_token_id, processor.image_token_id]
    theirs += [processor.tokenizer.pad_token_id, processor.tokenizer.bos_token_id, len(processor.tokenizer)]
    if ours != theirs:
        raise ConversionError(
            f"{checkpoint} counts {END_OF_CHUNK}, {IMAGE}, padding, begin and all tokens as {ours}, the tokenizer "
            f"{tokenizer} as {theirs}; name the one that it was trained with with --tokenizer."
        )
    _save(model, processor, out_dir)


def _e2str_model(tensors: dict[str, torch.Tensor], config: E2STRConfig) -> E2STRForTextRecognition:
    """The model that tensors under our names and a configuration make."""
    embeddings = _TEXT + "embed_tokens.weight"
    # One tensor in the official model, too: a file that says each tensor once may have it under either name.
    tensors = {"lm_head.weight": tensors[embeddings], **tensors}
    if not torch.equal(tensors["lm_head.weight"], tensors[embeddings]):
        raise ConversionError("lm_head.weight differs from the token embeddings, which E2STR writes with.")
    if not config.vision_post_layernorm:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_VISION + "layernorm.")}
    # Each layer brings tensors: more layers than tensors would only take time and memory.
    parts = (config.vision_config, config.resampler_config, config.text_config)
    if any(part.num_hidden_layers > len(tensors) for part in parts):
        raise ConversionError("the hyper-parameters call for more layers than it has tensors.")
    with torch.device("meta"):
        model = E2STRForTextRecognition(config)
    fit_tensors(tensors, model)
    model.tie_weights()
    return model


def convert_mae(
    checkpoint: str | Path,
    out_dir: str | Path,
    into: str | Path | None = None,
    hyper_parameters: str | Path | None = None,
):
    """Turns a ViT pretrained as MAE (MAERec on Union14M) into an E2STR that starts with it as its vision encoder.

    The encoder computes what it computed there: with the class token and the position table of the file (that of
    Union14M is made for a square grid of patches; it is kept) and with MAE's `layer_norm_eps` of 1e-6. The official
    code leaves the class token random and takes 1e-5.

    Args:
        checkpoint: the file of its authors' code or of timm, or of a whole recogniser with this backbone.
        out_dir: folder to write; it must not exist, or be empty.
        into: folder of an E2STR whose resampler, decoder and processor the new one gets. By default they are the
            small ones of `E2STRConfig()`, untrained, for characters.
        hyper_parameters: without `into`, JSON of fields of `E2STRConfig`.

    Raises:
        ValueError: one sentence that says what is wrong with which file. Nothing is written then.
        OSError: the folder cannot be written; nothing half-written is left.
    """
    out_dir = new_folder(out_dir)
    values = _hyper_parameters(hyper_parameters, into)
    official = _state_dict(checkpoint)
    model, processor = _load_e2str(into) if into else (None, None)
    try:
        tensors = convert_mae_state_dict(official)
        if model is None:
            vision = {"layer_norm_eps": 1e-6, **_vision_values(tensors, "", values.get("vision_config", {}))}
            if vision["num_hidden_layers"] > len(tensors):
                raise ConversionError("the hyper-parameters call for more layers than it has tensors.")
            model = _fresh(_config(**{**values, "vision_config": vision}))
            processor = e2str_processor(size=_image_size(model.config))
        model.config.vision_config.layer_norm_eps = 1e-6
        encoder = model.model.vision_model
        tensors.setdefault("embeddings.cls_token", encoder.embeddings.cls_token.detach())
        if not model.config.vision_post_layernorm:
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("layernorm.")}
        fit_tensors(tensors, encoder)
    except ConversionError as error:
        raise ConversionError(f"{checkpoint}: {error}") from None
    _save(model, processor, out_dir)


def convert_opt(
    source: str | Path,
    out_dir: str | Path,
    into: str | Path | None = None,
    hyper_parameters: str | Path | None = None,
):
    """Turns a folder or Hub id of transformers' OPT into an E2STR that starts with it as its decoder.

    The gates are closed: before any training it writes what OPT writes, whatever the images show. The two tokens of
    the prompt are added to its tokenizer and take the spare rows of its embeddings, as in the official code.

    Args:
        source: such as facebook/opt-125m, whose licence holds for what is trained from it.
        out_dir: folder to write; it must not exist, or be empty.
        into: folder of an E2STR whose vision encoder, resampler and image processor the new one gets. By default
            they are those of the official model, untrained.
        hyper_parameters: without `into`, JSON of fields of `E2STRConfig`.

    Raises:
        ValueError: one sentence that says what is wrong with the source. Nothing is written then.
        OSError: the folder cannot be written; nothing half-written is left.
    """
    out_dir = new_folder(out_dir)
    values = _hyper_parameters(hyper_parameters, into)
    if "text_config" in values:
        raise ConversionError(f"{hyper_parameters} describes a text_config, but the decoder is {source}.")
    opt = _load_opt(source)
    processor = _opt_processor(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        opt.resize_token_embeddings(len(processor.tokenizer))
    base, own = _load_e2str(into) if into else (None, None)
    if base is not None:
        kept = ("vision_config", "resampler_config", "vision_post_layernorm", "num_cross_attention_heads")
        kept += ("cross_attention_head_dim", "cross_attention_ffn_multiplier", "initializer_range")
        values = {name: getattr(base.config, name) for name in kept}
        processor.image_processor = own.image_processor
    else:
        values = {"vision_config": E2STRConfig.official().vision_config, **values}
    model = _fresh(_opt_config(opt.config, processor, values))
    text = model.model.text_model
    text.load_state_dict(text.state_dict() | opt.model.decoder.state_dict())
    if base is None:
        processor.image_processor = E2STRImageProcessor(size=_image_size(model.config))
    else:
        model.model.vision_model.load_state_dict(base.model.vision_model.state_dict())
        model.model.resampler.load_state_dict(base.model.resampler.state_dict())
    _save(model, processor, out_dir)


def _opt_config(opt: OPTConfig, processor: E2STRProcessor, values: dict) -> E2STRConfig:
    """Of an E2STR around an OPT."""
    tokenizer = processor.tokenizer
    text = {**opt.to_dict(), "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    text = {name: value for name, value in text.items() if name not in ("architectures", "dtype", "_name_or_path")}
    tokens = {
        "image_token_id": processor.image_token_id,
        "end_of_chunk_token_id": processor.end_of_chunk_token_id,
    }
    return _config(**{**values, "text_config": text, **tokens})


def _load_opt(source: str | Path) -> OPTForCausalLM:
    """An OPT of the Hub or of a folder, in single precision."""
    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type != "opt":
            raise ValueError(f"its model_type is {config.model_type}")
        # Files of torch.save are read as data here, too: transformers loads them with weights_only. With sizes that
        # do not fit ignored, the report names them.
        opt, report = OPTForCausalLM.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except Exception as error:  # what is raised depends on what is wrong
        reason = str(error.__cause__ or error).partition("\n")[0][:200]
        if "weights_only" in reason:  # torch goes on to explain how to run what is in there
            reason = "its weights are a pickle that could run code, or damaged: nothing was loaded"
        raise ConversionError(f"{source} is damaged, or no folder or Hub id of an OPT ({reason}).") from None
    if missing := sorted(report["missing_keys"]):
        raise ConversionError(f"{source} lacks {len(missing)} tensors, the first: {', '.join(missing[:3])}.")
    if unknown := sorted(report["unexpected_keys"]):
        raise ConversionError(f"{source} holds {len(unknown)} tensors that are not OPT's: {', '.join(unknown[:3])}.")
    if wrong := sorted((name, tuple(theirs), tuple(ours)) for name, theirs, ours in report["mismatched_keys"]):
        name, theirs, ours = wrong[0]
        raise ConversionError(f"{source}: {name} has the shape {theirs}; its configuration calls for {ours}.")
    if not opt.config.tie_word_embeddings:
        raise ConversionError(f"{source} does not write with its token embeddings, as E2STR does.")
    return opt
