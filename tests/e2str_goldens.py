"""Recorded tensors of the published E2STR code, and a model with their weights.

Small ones lie under tests/fixtures/e2str; all of them, with the images as tensors and all gradients, under
EPIGRAPH_GOLDENS. The fixtures leave out what is the same tensor under a second name, and have the images once, as the
official code resized them: versions of Pillow differ by a grey level in that.
"""

import json
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from epigraph.conversion_e2str import _e2str_model, convert_e2str_state_dict, e2str_config
from epigraph.models.image_processing_e2str import E2STRImageProcessor
from epigraph.models.processing_e2str import E2STRProcessor

FIXTURES = Path(__file__).parent / "fixtures" / "e2str"
# What the tensors do not say, because it is not as in the official model.
HYPER_PARAMETERS = {
    "vision_config": {"num_attention_heads": 3},
    "text_config": {"num_attention_heads": 4, "dropout": 0.0},
}
# Images of each prompt.
CASES = {
    "vanilla_single": [[0]],
    "vanilla_batch3_leftpad": [[0], [1], [2]],
    "incontext_3": [[0, 1, 2]],
    "incontext_batch2x3_leftpad": [[0, 1, 2], [3, 4, 5]],
}
WHERE = ["shipped", pytest.param("recorded", marks=pytest.mark.goldens)]
META = json.loads((FIXTURES / "meta.json").read_text())


@cache
def golden(name: str, where: str = "shipped") -> dict[str, torch.Tensor]:
    """Tensors of a file."""
    folder = FIXTURES if where == "shipped" else Path(os.environ["EPIGRAPH_GOLDENS"]) / "e2str"
    return load_file(folder / f"{name}.safetensors")


def images(*numbers: int) -> list[Image.Image]:
    """The recorded pictures, resized."""
    return _pictures(golden("pixels")["words"][list(numbers)])


def originals(*numbers: int) -> list[Image.Image]:
    """The recorded pictures as they were."""
    return [Image.open(FIXTURES / "images" / META["images"][number]) for number in numbers]


def stage2() -> tuple[list[Image.Image], list[str]]:
    """Pictures, resized, and texts of the stage-2 sequence: whole words and parts of them."""
    texts = META["stage2_text"].removeprefix("</s><image>").removesuffix("<|endofchunk|>")
    return _pictures(golden("pixels")["stage2"]), texts.split("<|endofchunk|><image>")


def stage2_originals() -> list[Image.Image]:
    """The same pictures as they were cut, between two x positions."""
    pictures = []
    for number, left, right in META["stage2_crops"]:
        (picture,) = originals(number)
        pictures.append(picture if right is None else picture.crop((left, 0, right, picture.height)))
    return pictures


def _pictures(pixels: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(picture) for picture in pixels.permute(0, 2, 3, 1).numpy()]


def official(where: str = "shipped") -> dict[str, torch.Tensor]:
    """The official state_dict, each layer of the decoder under both of its names."""
    tensors = {name.removeprefix("state_dict."): value for name, value in golden("state_dict", where).items()}
    if where == "shipped":
        prefix = "model.lang_encoder."
        seconds = {"gated_cross_attn_layers": "gated_cross_attn_layer", "old_decoder_blocks": "decoder_layer"}
        for name, value in list(tensors.items()):
            part, _, rest = name.removeprefix(prefix).partition(".")
            if part in seconds:
                layer, _, rest = rest.partition(".")
                tensors[f"{prefix}model.decoder.layers.{layer}.{seconds[part]}.{rest}"] = value
        tensors[prefix + "lm_head.weight"] = tensors[prefix + "model.decoder.embed_tokens.weight"]
    return tensors


def build(where: str = "shipped", attention: str = "sdpa"):
    """The recorded model, in evaluation mode."""
    tensors = {name: value.clone() for name, value in convert_e2str_state_dict(official(where)).items()}
    model = _e2str_model(tensors, e2str_config(tensors, HYPER_PARAMETERS)).eval()
    model.set_attn_implementation(attention)
    return model


def gradients(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The recorded gradients by our names."""
    return convert_e2str_state_dict(
        {name.removeprefix("grad."): value for name, value in tensors.items() if name.startswith("grad.")}
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """The recorded one, without the two tokens of the prompt."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *map(chr, range(32, 127))]
    inner = Tokenizer(WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="</s>", eos_token="</s>", unk_token="<unk>"
    )


def processor(official_labels: bool = False) -> E2STRProcessor:
    """The recorded preparation of images and texts."""
    own = tokenizer()
    own.add_tokens(["<|endofchunk|>", "<image>"], special_tokens=True)
    return E2STRProcessor(
        E2STRImageProcessor(), own, end_of_chunk_token="<|endofchunk|>", official_labels=official_labels
    )


def prepared(case: str, official_labels: bool = False) -> dict:
    """A case as our processor prepares it."""
    if case == "stage2_sequence":
        pictures, texts = stage2()
        return processor(official_labels)([pictures], [texts])
    return processor(official_labels)(
        [images(*numbers) for numbers in CASES[case]],
        [[META["words"][number] for number in numbers] for numbers in CASES[case]],
    )
