"""Adapters (LoRA and its kin) as checkpoints: which base model they belong to, and reading with them.

An adapter folder holds `adapter_config.json`, `adapter_model.safetensors` and a processor, as fine-tuning saves them;
its `adapter_config.json` names the base model, a folder or a repository on the Hub.
"""

import json
import warnings
from pathlib import Path

from safetensors import safe_open
from transformers import PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_RESULTS = "finetuning.json"  # what fine-tuning measured, beside the adapter


def is_adapter(folder: str | Path) -> bool:
    """Whether the folder holds an adapter rather than a whole model."""
    return (Path(folder) / ADAPTER_CONFIG).is_file() and not (Path(folder) / "config.json").is_file()


def base_of(folder: str | Path) -> str:
    """Folder or Hub id of the base model that the adapter in `folder` belongs to.

    Raises:
        ValueError: the adapter does not say, or its weights are not there as safetensors; others are never opened.
    """
    folder = Path(folder)
    try:
        base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: its {ADAPTER_CONFIG} cannot be used ({type(error).__name__}: {error}).") from None
    if not base or not isinstance(base, str):
        raise ValueError(f"{folder}: its {ADAPTER_CONFIG} names no base_model_name_or_path; write it there.")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"{folder}: an adapter without {ADAPTER_WEIGHTS}; save it again with safetensors.")
    return base


def base_weights(folder: str | Path) -> str | None:
    """The sha256 of the base model's weights that the adapter in `folder` was trained on, where it says so."""
    try:
        return json.loads((Path(folder) / ADAPTER_RESULTS).read_text(encoding="utf-8")).get("base_weights_sha256")
    except (OSError, ValueError, AttributeError):
        return None


def merge_adapter(model: PreTrainedModel, folder: str | Path, vocabulary: dict[str, int]) -> PreTrainedModel:
    """The base model with the adapter in `folder` merged into its weights: it reads as fast as the base.

    Args:
        model: the base model, which is changed in place.
        vocabulary: that of the adapter's tokenizer; tokens that the base lacks make its embedding wider.

    Raises:
        ValueError: peft is not installed, or the adapter does not fit the base model.
    """
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError:
        raise ValueError(f"{folder}: an adapter needs peft; install it with pip install 'epigraph[train]'.") from None
    if hasattr(model, "widen_vocabulary"):  # of models that take new symbols
        model.widen_vocabulary(vocabulary)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".is_gradient_checkpointing")  # peft's own, about transformers
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # refused below
            adapted = PeftModel.from_pretrained(model, str(folder), torch_device="cpu")
            wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
            with safe_open(Path(folder) / ADAPTER_WEIGHTS, framework="pt") as file:
                differing = sorted(wanted ^ set(file.keys()))
            merged = adapted.merge_and_unload()
    except Exception as error:  # damaged files and wrong shapes raise whatever the library in charge raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"{folder}: the adapter does not fit its base model ({reason}).") from error
    if differing:  # peft would go on without them
        raise ValueError(f"{folder}: {len(differing)} weights are missing or unknown to the base, as {differing[0]}.")
    merged.name_or_path = str(folder)
    return merged


__all__ = ["base_of", "base_weights", "is_adapter", "merge_adapter"]
