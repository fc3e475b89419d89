"""Training on images by recipe: classes from scratch, hidden pixels, classes after these; and what is refused."""

import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

import epigraph  # noqa: F401  registers the Auto classes
from epigraph.pretraining import TASKS, main, set_attention, task_of
from epigraph.training import PretrainArguments, RecipeError, checkpoints, learning_rate_factor, parse_recipe

pytest.importorskip("accelerate")
pytest.importorskip("datasets")
ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").glob("pixelvit*.yaml"))
TINY = {
    "model_type": "pixelvit",
    "image_size": 6,
    "num_channels": 1,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 16,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 1,
    "decoder_intermediate_size": 16,
}


@pytest.fixture(autouse=True)
def new_accelerator():
    """accelerate keeps the precision of a process's first run; here runs of two precisions share one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """16 images of two classes: bright to the left, bright to the right."""
    root, generator = tmp_path_factory.mktemp("sides"), np.random.default_rng(0)
    for number in range(16):
        image = generator.integers(0, 60, (6, 6))
        side = ("left", "right")[number % 2]
        image[:, slice(0, 3) if side == "left" else slice(3, 6)] += 180
        (root / side).mkdir(exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).save(root / side / f"{number}.png")
    return root


@pytest.fixture
def recipe(tmp_path, folder):
    """Call `recipe(**changes)`: the file of a small recipe. Every step is logged."""

    def write(model=(), **changes):
        values = {
            "output_dir": str(tmp_path / "run"),
            "train_data": str(folder),
            "model": TINY | dict(model) if not isinstance(model, str) else model,
            "batch_size": 6,
            "max_steps": 6,
            "warmup_steps": 1,
            "num_workers": 0,
            "logging_steps": 1,
            "save_steps": 2,
            "learning_rate": 0.01,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return path

    return write


def run(recipe_file, *more):
    main(["--recipe", str(recipe_file), *map(str, more)])


def logged(folder: Path, name: str = "loss") -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[name] for row in rows if name in row}


def test_classes_of_a_folder_are_learnt(recipe, folder, tmp_path, capsys):
    run(recipe(max_steps=30, save_steps=30, eval_data=str(folder), eval_steps=15, mixed_precision="bf16"))
    assert logged(tmp_path / "run", "eval_accuracy")[30] == 1.0, "evaluated, and learnt"
    assert sorted(logged(tmp_path / "run", "eval_accuracy")) == [15, 30]
    assert "step 30: accuracy 1.0000" in capsys.readouterr().err
    for name in ("best", "final"):
        model = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / name).eval()
        assert model.config.id2label == {0: "left", 1: "right"} and model.config.label2id == {"left": 0, "right": 1}
        processor = AutoImageProcessor.from_pretrained(tmp_path / "run" / name)
        pictures = [Image.open(folder / "left" / "0.png"), Image.open(folder / "right" / "1.png")]
        inputs = processor(images=pictures, return_tensors="pt")
        assert inputs["pixel_values"].shape == (2, 1, 6, 6), "the processor follows the model"
    assert model(**inputs).logits.argmax(1).tolist() == [0, 1]


@pytest.mark.parametrize("task", ["classification", "pixels"])
def test_resumed_run_goes_on_to_the_same_losses(recipe, folder, tmp_path, task):
    # Drawn anew in every step: dropout, the selection or the mask, and shifts.
    model = {"hidden_dropout_prob": 0.1, "pixel_selection": "random", "num_selected_pixels": 24, "mask_type": "block"}
    file = recipe(model, task=task, augmentation={"shift": 1}, eval_data=str(folder), eval_steps=3, ema_decay=0.9)
    run(file, "--output_dir", tmp_path / "whole")
    # As if killed after step 5, with its checkpoint of step 4, in the middle of the second epoch.
    run(file, "--output_dir", tmp_path / "parts", "--max_steps", 5)
    shutil.rmtree(tmp_path / "parts" / "checkpoint-5")
    assert [path.name for path in checkpoints(tmp_path / "parts")] == ["checkpoint-4"]
    run(file, "--output_dir", tmp_path / "parts", "--resume")
    whole, parts = logged(tmp_path / "whole"), logged(tmp_path / "parts")
    assert sorted(whole) == list(range(1, 7)) and parts == pytest.approx(whole, abs=1e-6)
    states = [load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "parts")]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, msg=name)


def test_hidden_pixels_need_no_labels_and_are_measured_the_same_way_each_time(recipe, folder, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in sorted(folder.rglob("*.png")):
        shutil.copy(file, flat / file.name)
    settings = {"task": "pixels", "train_data": str(flat), "eval_data": str(flat), "eval_steps": 1}
    run(recipe(**settings, max_steps=2, learning_rate=0.0))
    losses = logged(tmp_path / "run", "eval_loss")
    assert losses[1] == losses[2] and logged(tmp_path / "run", "eval_selection")[2] == -losses[2]
    config = AutoConfig.from_pretrained(tmp_path / "run" / "best")
    assert config.architectures == ["PixelViTForPreTraining"]
    longer = {"output_dir": str(tmp_path / "longer"), "max_steps": 100, "save_steps": 100, "eval_steps": 100}
    run(recipe(**settings | longer))
    assert logged(tmp_path / "longer", "eval_loss")[100] < 0.8 * losses[1]


@pytest.fixture(scope="module")
def pretrained(folder, tmp_path_factory):
    """Folder of a model that was trained on hidden pixels."""
    root = tmp_path_factory.mktemp("mae")
    (root / "recipe.yaml").write_text(yaml.safe_dump({"model": TINY, "max_steps": 2, "warmup_steps": 1}))
    run(root / "recipe.yaml", "--task", "pixels", "--train_data", folder, "--output_dir", root / "run")
    return root / "run" / "final"


def test_classes_follow_hidden_pixels(recipe, pretrained, folder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run(recipe(str(pretrained), learning_rate=0.0, max_steps=1))
    assert f"{pretrained}: the encoder is trained further, the classifier is new; left out: decoder" in caplog.text
    before, after = (load_file(path / "model.safetensors") for path in (pretrained, tmp_path / "run" / "final"))
    encoder = {name for name in before if name.startswith("pixelvit.")}
    assert set(after) == encoder | {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(before[name], after[name]) for name in encoder), "nothing was learnt at a rate of zero"
    assert AutoConfig.from_pretrained(tmp_path / "run" / "final").id2label == {0: "left", 1: "right"}
    run(recipe(str(pretrained), output_dir=str(tmp_path / "more"), max_steps=30, eval_data=str(folder)))
    assert logged(tmp_path / "more", "eval_accuracy")[30] == 1.0


def test_a_classifier_goes_on_with_its_classes_or_gets_new_ones(recipe, folder, tmp_path, caplog):
    run(recipe(max_steps=1))
    trained = tmp_path / "run" / "final"
    with caplog.at_level(logging.WARNING):
        run(recipe(str(trained), output_dir=str(tmp_path / "same"), learning_rate=0.0, max_steps=1))
    assert "is new" not in caplog.text
    before, after = (load_file(path / "model.safetensors") for path in (trained, tmp_path / "same" / "final"))
    assert all(torch.equal(before[name], after[name]) for name in before)

    other = tmp_path / "other"
    for number, file in enumerate(sorted(folder.rglob("*.png"))):
        (other / str(number % 3)).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, other / str(number % 3))
    with caplog.at_level(logging.WARNING):
        run(recipe(str(trained), output_dir=str(tmp_path / "new"), train_data=str(other), max_steps=1))
    assert "the classifier is new; left out: classifier" in caplog.text
    assert AutoConfig.from_pretrained(tmp_path / "new" / "final").num_labels == 3
    with caplog.at_level(logging.WARNING):
        run(recipe(str(trained), output_dir=str(tmp_path / "mae"), task="pixels", max_steps=1))
    assert "the decoder is new; left out: classifier" in caplog.text


def test_several_sources_share_their_classes(recipe, folder, tmp_path):
    more = tmp_path / "more"
    for side in ("right", "up"):
        (more / side).mkdir(parents=True)
        shutil.copy(next((folder / "right").glob("*.png")), more / side / "a.png")
    run(recipe(train_data=[str(folder), str(more)], max_steps=1, batch_size=99))
    config = AutoConfig.from_pretrained(tmp_path / "run" / "final")
    assert config.label2id == {"left": 0, "right": 1, "up": 2}
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert row["examples"] == 18


def test_pixel_dictionary_gets_ids(recipe, tmp_path):
    run(recipe({"pixel_vocab_size": 256}, max_steps=1))
    assert AutoImageProcessor.from_pretrained(tmp_path / "run" / "final").pixel_ids is True


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_two_processes_give_the_losses_of_one(recipe, tmp_path, precision):
    file = recipe(optimizer="sgd", augmentation={"shift": 1}, batch_size=4, mixed_precision=precision)
    run(file, "--output_dir", tmp_path / "one")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", precision, "--dynamo_backend", "no"]
    command += ["--main_process_port", "0"]
    command += [ROOT / "scripts" / "pretrain.py", "--recipe", file, "--output_dir", tmp_path / "two"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-9000:]
    assert len(list((tmp_path / "two" / "checkpoint-6").glob("random_states_*.pkl"))) == 2, "two processes ran"
    tolerance = 1e-4 if precision == "no" else 1e-2
    assert logged(tmp_path / "two") == pytest.approx(logged(tmp_path / "one"), rel=tolerance)


@pytest.mark.parametrize(
    "model, changes, message",
    [
        ({"hiden_size": 16}, {}, "model: unknown key hiden_size; known are"),
        ({"num_labels": 3}, {}, "model: unknown key num_labels; known are"),
        ({"num_attention_heads": 3}, {"task": "pixels"}, "model: .*hidden_size 16 is not a multiple of"),
        ({}, {"processor": {"sise": 8}}, "processor: unknown key sise; known are"),
        ({}, {"augmentation": {"rotation": 2}}, "augmentation: unknown key rotation; known are flip, shift"),
        ({}, {"augmentation": {"shift": -1}}, "augmentation: shift must be 0, 1, 2"),
        ({}, {"zoom": [0.5, 2.0], "max_pixels": 7}, "zoom, max_pixels: for formulas only"),
        ({}, {"task": "formulas"}, "task: a pixelvit model is trained for classification or pixels, not 'formulas'"),
        ({"model_type": "vit"}, {}, "model: recipes train comer, e2str, pixelvit, not vit"),
        ({}, {"attn_implementation": "telepathy"}, "attn_implementation: .*telepathy"),
        ({}, {"images_per_sequence": 2, "alike": 0.5}, "images_per_sequence, alike: of words only, not of class"),
        (
            {},
            {"train_data": [{"path": "x"}]},
            "train_data: classification take paths alone",
        ),
        ({}, {"schedule": "stairs"}, "schedule must be one of linear, cosine, not 'stairs'"),
    ],
)
def test_settings_that_cannot_be_are_refused(recipe, tmp_path, model, changes, message):
    with pytest.raises(RecipeError, match=message):
        run(recipe(model, **changes))
    assert not (tmp_path / "run" / "final").exists()


def test_data_that_cannot_be_used_are_named(recipe, folder, pretrained, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "left" / "4.png").write_bytes((damaged / "left" / "4.png").read_bytes()[:45])
    with pytest.raises(ValueError, match="row left/4.png: .*damaged"):
        run(recipe(train_data=str(damaged)))
    (damaged / "left").rename(damaged / "up")
    with pytest.raises(ValueError, match="the classes up, which the training data does not have"):
        run(recipe(eval_data=str(damaged)))
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        run(recipe(train_data=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="gone: no such folder"):
        run(recipe(str(tmp_path / "gone")))
    with pytest.raises(RecipeError, match="processor: .* has its own"):
        run(recipe(str(pretrained), processor={"num_channels": 1}))


def test_attention_is_blocked_where_that_is_faster(recipe):
    def attention(task="classification", **changes):
        args = PretrainArguments(output_dir="run", train_data="x", model=TINY, **changes)
        model = AutoModelForImageClassification.from_config(AutoConfig.for_model(**TINY))
        set_attention(model, args, task)
        return model.config._attn_implementation

    assert attention(mixed_precision="bf16") == "blocked" and attention() == "sdpa"
    assert attention(mixed_precision="bf16", attn_implementation="eager") == "eager"
    assert attention(mixed_precision="bf16", task="formulas") == "sdpa"


def test_cosine_falls_slowly_at_both_ends():
    args = PretrainArguments(
        output_dir="run", train_data="x", model=TINY, max_steps=100, decay_steps=80, warmup_steps=10, schedule="cosine"
    )
    rates = [learning_rate_factor(step, args) for step in (0, 9, 20, 22, 60, 98, 100)]
    assert rates[:3] == [0.1, 1.0, 1.0] and rates[4] == pytest.approx(0.5) and rates[6] == 0.0
    assert 0.99 < rates[3] < 1.0 and 0 < rates[5] < 0.01
    args.schedule = "linear"
    assert learning_rate_factor(98, args) == 0.025


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_setting_of_a_recipe_exists(path):
    from epigraph.data.image_classes import ImageAugmentation

    args = parse_recipe(["--recipe", str(path)])
    assert task_of(args) in TASKS["pixelvit"] and (args.train_split, args.eval_split) == ("train", "validation")
    settings = dict(args.model)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    assert settings.keys() <= {field.name for field in fields(config)}
    assert ImageAugmentation(**args.augmentation).flip, "garments only"
    assert args.max_steps == args.warmup_steps + args.decay_steps
