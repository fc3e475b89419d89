"""The shipped recipes: what they set exists, for settings inside settings too, and none looks at a test split."""

from dataclasses import fields
from pathlib import Path

import pytest
from transformers import AutoConfig

import epigraph  # noqa: F401  registers the configurations
from epigraph.data.ink import InkAugmentation
from epigraph.models.image_processing import TextImageProcessor
from epigraph.training import parse_recipe

RECIPES = sorted(
    (Path(__file__).resolve().parent.parent / "recipes").glob("comer_crohme*.yaml")
)  # of training from scratch


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_setting_exists(path):
    arguments = parse_recipe(["--recipe", str(path)])
    settings = dict(arguments.model)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    # Configurations and processors keep unknown settings without a word, so that a typo would change nothing.
    assert settings.keys() <= {field.name for field in fields(config)}
    assert arguments.processor.keys() <= vars(TextImageProcessor).keys()
    assert arguments.augmentation.keys() <= {field.name for field in fields(InkAugmentation)}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_no_test_split_is_trained_or_selected_on(path):
    arguments = parse_recipe(["--recipe", str(path)])
    assert arguments.train_split == "train" and arguments.eval_split == "test_2013", "reported is test_2014"
