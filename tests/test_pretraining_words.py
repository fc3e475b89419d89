"""Training on words by recipe: single words, then words in context; and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from epigraph.models.processing_e2str import E2STRProcessor
from epigraph.pretraining import main, new_config, task_of, word_sources
from epigraph.reading import load
from epigraph.training import RecipeError, checkpoints, parse_recipe

pytest.importorskip("accelerate")
pytest.importorskip("cv2")
datasets = pytest.importorskip("datasets")
ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").glob("e2str_small_stage*.yaml"))
TINY = {
    "model_type": "e2str",
    "gate_init": 1.0,
    "stem_channels": [8, 8],
    "vision_config": {
        "image_size": [4, 8],
        "patch_size": 1,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 16,
    },
    "resampler_config": {"num_latents": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 16},
    "text_config": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "ffn_dim": 16,
        "max_position_embeddings": 64,
        "dropout": 0.1,
    },
    "num_cross_attention_heads": 1,
    "cross_attention_head_dim": 16,
}


@pytest.fixture(autouse=True)
def new_accelerator():
    """accelerate keeps the precision of a process's first run; here runs of two precisions share one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A parquet file of 24 drawn words of two sources, one with the places of its characters."""
    font, rows = ImageFont.load_default(16), []
    for number in range(24):
        text = "ab"[number % 2] * 2
        ground, ink = ("black", "white")[:: 1 - number % 2 * 2]  # the letters are hard to tell apart, the shades not
        image, quads = Image.new("RGB", (32, 16), ground), []
        for place, character in enumerate(text):
            ImageDraw.Draw(image).text((16 * place + 3, -2), character, ink, font)
            left, right = 16 * place, 16 * place + 15
            quads.append([[left, 0], [right, 0], [right, 15], [left, 15]])
        source = ("drawn", "taken")[number // 16]
        row = {"id": f"w{number}", "image": image, "text": text, "source": source, "char_quads": quads}
        rows.append(row if source == "drawn" else {**row, "char_quads": None})
    path = tmp_path_factory.mktemp("words") / "words.parquet"
    data = datasets.Dataset.from_list(rows)
    data.cast_column("image", datasets.Image()).to_parquet(path)
    return path


@pytest.fixture
def recipe(tmp_path, words):
    """Call `recipe(**changes)`: the file of a small recipe. Every step is logged."""

    def write(model=(), **changes):
        values = {
            "output_dir": str(tmp_path / "run"),
            "train_data": [
                {"path": str(words), "source": "drawn", "weight": 3, "held_out": 0.25},
                {"path": str(words), "source": "taken", "weight": 1},
            ],
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


def test_words_are_learnt_and_read(recipe, words, tmp_path):
    settings = {"max_steps": 80, "save_steps": 80, "eval_steps": 40, "mixed_precision": "bf16", "ema_decay": 0.5}
    run(recipe(**settings))
    accuracy = logged(tmp_path / "run", "eval_word_accuracy_drawn")
    assert sorted(accuracy) == [40, 80] and accuracy[80] == 1.0, "measured on words of the source that was held out"
    assert logged(tmp_path / "run", "eval_selection")[80] == 1.0
    model, processor = load(str(tmp_path / "run" / "final"), None, "cpu", "float32")
    assert isinstance(processor, E2STRProcessor) and processor.tokenizer.model_max_length == 64
    assert processor.image_processor.size == {"height": 16, "width": 32}, "the size of the images before the stem"
    images = datasets.load_dataset("parquet", data_files=str(words), split="train")["image"][:2]
    sequences = model.generate(**processor(list(images)), max_new_tokens=4)
    assert processor.decode_readings(sequences) == ["aa", "bb"]


@pytest.mark.parametrize("images", [1, 4])
def test_resumed_run_goes_on_to_the_same_losses(recipe, tmp_path, images):
    varied = {"augmentation": {"geometry": 1.0, "degradation": 0.5, "colour": 0.5}} if images == 1 else {}
    batch = {"images_per_sequence": images, "batch_size": 6 if images == 1 else 2}
    model = {"ctc_loss_weight": 0.5} if images == 1 else {}  # with the running means of its head
    file = recipe(model, eval_steps=3, eval_limit=2, ema_decay=0.9, **batch, **varied)
    run(file, "--output_dir", tmp_path / "whole")
    # As if killed after step 5, with its checkpoint of step 4, in the middle of an epoch.
    run(file, "--output_dir", tmp_path / "parts", "--max_steps", 5)
    shutil.rmtree(tmp_path / "parts" / "checkpoint-5")
    assert [path.name for path in checkpoints(tmp_path / "parts")] == ["checkpoint-4"]
    run(file, "--output_dir", tmp_path / "parts", "--resume")
    whole, parts = logged(tmp_path / "whole"), logged(tmp_path / "parts")
    assert sorted(whole) == list(range(1, 7)) and parts == pytest.approx(whole, abs=1e-6)
    states = [load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "parts")]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, msg=name)


def test_words_in_context_go_on_from_single_words(recipe, tmp_path):
    run(recipe(max_steps=2))
    first = tmp_path / "run" / "final"
    more = {"output_dir": str(tmp_path / "context"), "images_per_sequence": 4, "batch_size": 2, "max_steps": 1}
    run(recipe(str(first), learning_rate=0.0, **more))
    before, after = (load_file(path / "model.safetensors") for path in (first, tmp_path / "context" / "final"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert "loss" in json.loads((tmp_path / "context" / "metrics.jsonl").read_text().splitlines()[0])


def test_characters_are_exchanged_without_the_ctc_head(recipe, tmp_path):
    more = {"images_per_sequence": 4, "batch_size": 2, "max_steps": 1, "exchange": 0.5, "alike": 0.5}
    file = recipe({"ctc_loss_weight": 0.5}, **more)
    run(file)
    final = tmp_path / "run" / "final"
    assert AutoConfig.from_pretrained(final).ctc_loss_weight == 0
    assert not any("ctc" in name for name in load_file(final / "model.safetensors"))


def test_alphabet_makes_the_vocabulary_and_words_outside_it_are_left_out(recipe, tmp_path):
    run(recipe(processor={"characters": "a"}, max_steps=1))
    assert AutoConfig.from_pretrained(tmp_path / "run" / "final").text_config.vocab_size == 5
    with pytest.raises(ValueError, match="labels can be written"):
        run(recipe(processor={"characters": "x"}, output_dir=str(tmp_path / "none")))


def test_measured_words_may_come_from_elsewhere(recipe, words, tmp_path):
    run(recipe(train_data=str(words), eval_data=str(words), eval_limit=3, max_steps=1))
    assert list(logged(tmp_path / "run", "eval_word_accuracy_eval_data")) == [1]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_two_processes_give_the_losses_of_one(recipe, tmp_path, precision):
    model = {"text_config": {**TINY["text_config"], "dropout": 0.0}}
    file = recipe(model, optimizer="sgd", batch_size=4, mixed_precision=precision, ema_decay=0.9)
    run(file, "--output_dir", tmp_path / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [ROOT / "scripts" / "pretrain.py", "--recipe", file, "--output_dir", tmp_path / "two"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-9000:]
    assert len(list((tmp_path / "two" / "checkpoint-6").glob("random_states_*.pkl"))) == 2, "two processes ran"
    tolerance = 1e-4 if precision == "no" else 1e-2
    assert logged(tmp_path / "two") == pytest.approx(logged(tmp_path / "one"), rel=tolerance)


@pytest.mark.parametrize(
    "model, changes, message",
    [
        ({"stem_chanels": [8]}, {}, "model: unknown key stem_chanels; known are"),
        ({"vision_config": {"hiden_size": 8}}, {}, "model: vision_config: unknown key hiden_size; known are"),
        ({"stem_channels": []}, {}, "model: .*stem_channels must be numbers of at least 1, or None"),
        ({"text_config": {"vocab_size": 9}}, {}, "text_config.vocab_size follows from"),
        ({}, {"processor": {"alphabet": "ab"}}, "processor: unknown key alphabet; known are characters"),
        ({}, {"processor": {"characters": "aa"}}, "processor: An alphabet needs characters, each of them once"),
        ({}, {"augmentation": {"flip": True}}, "augmentation: unknown key flip; known are colour, degradation"),
        ({}, {"augmentation": {"colour": 2}}, "augmentation: colour is a chance from 0 to 1, not 2"),
        ({}, {"augmentation": {"part": 0.5}, "images_per_sequence": 4}, "augmentation: part is of single words only"),
        ({}, {"alike": 1.5, "images_per_sequence": 4}, "alike is a share of sequences of several images, from 0 to 1"),
        ({}, {"exchange": -0.5}, "exchange is a share of sequences of several images, from 0 to 1, not -0.5"),
        ({}, {"alike": 0.5}, "alike is a share of sequences of several images, from 0 to 1, not 0.5"),
        ({}, {"images_per_sequence": 0}, "images_per_sequence must be at least 1, not 0"),
        ({}, {"train_data": {"path": "x", "wait": 1}}, "train_data: unknown key wait; known are held_out, path"),
        ({}, {"train_data": {"path": "x", "weight": -1}}, "train_data: weight must be above 0, not -1"),
        ({}, {"train_data": {"weight": 1}}, "train_data: .*path"),
        ({}, {"max_pixels": 7}, "max_pixels: for formulas only"),
        ({}, {"task": "formulas"}, "task: a e2str model is trained for words, not 'formulas'"),
    ],
)
def test_settings_that_cannot_be_are_refused(recipe, tmp_path, model, changes, message):
    with pytest.raises(RecipeError, match=message):
        run(recipe(model, **changes))
    assert not (tmp_path / "run" / "final").exists()


def test_data_that_cannot_be_used_are_named(recipe, words, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        run(recipe(train_data=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="no source 'seen'; there are drawn, taken"):
        run(recipe(train_data=[{"path": str(words), "source": "seen"}]))
    run(recipe(max_steps=1))
    with pytest.raises(RecipeError, match="processor: .* has its own"):
        run(recipe(str(tmp_path / "run" / "final"), processor={"characters": "ab"}))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_train_on_what_may_be_trained_on(path, monkeypatch):
    monkeypatch.setenv("EPIGRAPH_DATA", "data")
    args = parse_recipe(["--recipe", str(path)])
    assert {source.source for source in word_sources(args)} == {"rendered", "iiit5k", "svt"}
    assert all(source.split == "train" for source in word_sources(args) if source.source != "rendered")
    assert args.max_steps == args.warmup_steps + args.decay_steps and not args.eval_data


def test_the_recipes_make_a_model_that_can_be_shipped():
    first, second = RECIPES
    args = parse_recipe(["--recipe", str(first)])
    assert task_of(args) == "words" and args.images_per_sequence == 1
    text = {**args.model["text_config"], "vocab_size": 99}
    config = new_config({**args.model, "text_config": text})
    assert config.image_height_width == (32, 128)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    assert 2 * sum(parameter.numel() for parameter in model.parameters()) < 11.9e6, "bytes in half precision"
    args = parse_recipe(["--recipe", str(second)])
    assert args.images_per_sequence > 1 and args.model == "runs/e2str_small_stage1/final"
