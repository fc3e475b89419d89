"""Recorded tensors of the published CoMER code, and models with their weights.

`both` and `both_3l` (and a training step of `both`) lie under tests/fixtures, the others under EPIGRAPH_GOLDENS.
"""

import json
import os
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file

from epigraph.conversion import comer_config, convert_comer_state_dict
from epigraph.models.modeling_comer import CoMERForConditionalGeneration

FIXTURES = Path(__file__).parent / "fixtures" / "comer"
SHIPPED = ("both", "both_3l")
VARIANTS = [*SHIPPED, *(pytest.param(name, marks=pytest.mark.goldens) for name in ("none", "cross", "self"))]


@cache
def golden(name):
    """Tensors and JSON record of a variant, or of `both_train`."""
    folder = FIXTURES if (FIXTURES / f"{name}.json").exists() else Path(os.environ["EPIGRAPH_GOLDENS"]) / "comer"
    return load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text())


def part(tensors, prefix):
    """The tensors under a prefix, by our names."""
    return convert_comer_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})


def build(name, mask_padding=False, dropout=0.3, **overrides):
    """The variant's model in evaluation mode."""
    tensors, record = golden(name)
    config = comer_config({**record["config"], "dropout": dropout}, **overrides)
    config.mask_padding = mask_padding
    model = CoMERForConditionalGeneration(config)
    model.load_state_dict(part(tensors, "state_dict."))
    return model.eval()


def image(tensors, index):
    """One image alone: pixel_values (1, 1, height, width)."""
    return tensors[f"image_u8.{index}"][None, None].float() / 255
