"""The training loop: exact resume, several processes, recipes, and what happens when saving fails."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from epigraph import CoMERForConditionalGeneration, PixelViTConfig, PixelViTForPreTraining
from epigraph.pretraining import main, training_rows
from epigraph.training import (
    PretrainArguments,
    RecipeError,
    build_optimizer,
    checkpoints,
    parse_recipe,
    save_atomically,
)

pytest.importorskip("accelerate")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def formulas(tmp_path_factory):
    """The example formulas as a parquet file, each three times."""
    datasets = pytest.importorskip("datasets")
    rows = []
    for copy in range(3):
        for file in sorted((ROOT / "examples" / "handwritten-math").glob("*.json")):
            ink = json.loads(file.read_text())
            rows.append({"id": f"{file.stem}-{copy}", "text": ink["text"], "strokes": ink["strokes"]})
    path = tmp_path_factory.mktemp("formulas") / "formulas.parquet"
    datasets.Dataset.from_list(rows).to_parquet(path)
    return path


@pytest.fixture
def recipe(tmp_path, formulas):
    """Call `recipe(**changes)`: a small recipe's file. Every step is logged."""

    def write(**changes):
        values = {
            "output_dir": str(tmp_path / "run"),
            "train_data": str(formulas),
            "model": {
                "model_type": "comer",
                "hidden_size": 16,
                "num_attention_heads": 2,
                "num_hidden_layers": 2,
                "intermediate_size": 16,
                "growth_rate": 4,
                "dense_layers": [1, 1, 1],
                "coverage_channels": 4,
            },
            "processor": {"scale": 0.5, "crop_margin": 4},
            "augmentation": {"rotation": 2.0},
            "zoom": [0.9, 1.1],
            "batch_size": 4,
            "max_steps": 8,
            "warmup_steps": 2,
            "ema_decay": 0.9,
            "num_workers": 0,
            "logging_steps": 1,
            "save_steps": 2,
            "learning_rate": 0.003,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return path

    return write


def losses(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert len(steps) == len(set(steps)), "a step is logged twice"
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def run(recipe_file, *more):
    main(["--recipe", str(recipe_file), *map(str, more)])


def test_killed_run_resumes_to_the_same_losses(recipe, tmp_path):
    # Dropout is on: the random state is part of what must come back.
    run(recipe(), "--output_dir", tmp_path / "whole")
    file = recipe(logging_steps=1)
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, ROOT / "scripts" / "pretrain.py", "--recipe", file, "--output_dir", killed],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not checkpoints(killed) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and not (killed / "final").exists(), "it was to be killed on its way"
    assert checkpoints(killed), "the run was to leave a checkpoint before it was killed"
    run(file, "--output_dir", killed, "--resume")
    whole, resumed = losses(tmp_path / "whole"), losses(killed)
    assert sorted(whole) == list(range(1, 9))
    assert resumed == pytest.approx(whole, abs=1e-6)
    first = CoMERForConditionalGeneration.from_pretrained(tmp_path / "whole" / "final")
    second = CoMERForConditionalGeneration.from_pretrained(killed / "final")
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, msg=name)


def test_resume_between_log_lines_logs_the_same_means(recipe, tmp_path):
    run(recipe(logging_steps=4), "--output_dir", tmp_path / "whole")
    file = recipe(logging_steps=4, save_steps=3)
    run(file, "--max_steps", "7", "--output_dir", tmp_path / "parts")
    # As if killed after step 7: its own checkpoint and end never came.
    for leftover in ("checkpoint-7",):
        (tmp_path / "parts" / leftover).rename(tmp_path / "gone")
    run(file, "--output_dir", tmp_path / "parts", "--resume")
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=1e-6)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(recipe, tmp_path):
    model = yaml.safe_load(recipe().read_text())["model"] | {"dropout": 0.0, "encoder_dropout": 0.0}
    file = recipe(model=model, optimizer="sgd", learning_rate=0.02)
    run(file, "--output_dir", tmp_path / "one")
    # Trap: `accelerate launch --cpu --num_processes 2` runs one process only.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += [ROOT / "scripts" / "pretrain.py", "--recipe", file, "--output_dir", tmp_path / "two"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-9000:]
    assert len(list((tmp_path / "two" / "checkpoint-8").glob("random_states_*.pkl"))) == 2, "two processes ran"
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_evaluation_leaves_frozen_norms_frozen(recipe, formulas, tmp_path):
    run(recipe(freeze_norms_at=2, ema_decay=0.0, eval_data=str(formulas), eval_limit=2, eval_steps=3, save_steps=4))
    states = [safetensors.torch.load_file(tmp_path / "run" / f"checkpoint-{n}" / "model.safetensors") for n in (4, 8)]
    name = "encoder.post_norm.running_mean"
    assert torch.equal(states[0][name], states[1][name])


def test_torn_log_line_does_not_stop_a_resume(recipe, tmp_path):
    file = recipe(max_steps=4)
    run(file)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 4, "lo')
    run(file, "--resume")
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3, 4]


def test_a_trained_folder_is_trained_further(recipe, tmp_path):
    run(recipe(max_steps=2))
    more = recipe(model=str(tmp_path / "run" / "final"), output_dir=str(tmp_path / "more"), max_steps=2)
    run(more)
    assert sorted(losses(tmp_path / "more")) == [1, 2]


def test_frozen_norms_keep_their_statistics_and_resume(recipe, tmp_path):
    file = recipe(freeze_norms_at=4)
    run(file, "--output_dir", tmp_path / "whole")
    states = [
        safetensors.torch.load_file(tmp_path / "whole" / f"checkpoint-{step}" / "model.safetensors") for step in (6, 8)
    ]
    means = [name for name in states[0] if name.endswith("running_mean")]
    assert means and all(torch.equal(states[0][name], states[1][name]) for name in means)
    # Resumed behind the step at which they froze, they are frozen still.
    for leftover in ("checkpoint-8", "final"):
        shutil.rmtree(tmp_path / "whole" / leftover)
    whole = losses(tmp_path / "whole")
    run(file, "--output_dir", tmp_path / "whole", "--resume")
    assert losses(tmp_path / "whole") == pytest.approx(whole, abs=1e-6)


def test_accumulated_batches_count_every_token_once(recipe, tmp_path):
    """The logged loss of two accumulated batches is the mean over the tokens of both."""
    run(recipe(accumulate=2, max_steps=2, learning_rate=0.0), "--output_dir", tmp_path / "two")
    run(recipe(max_steps=4, learning_rate=0.0, save_steps=10), "--output_dir", tmp_path / "one")
    two, one = losses(tmp_path / "two"), losses(tmp_path / "one")
    for step in (1, 2):
        low, high = sorted((one[2 * step - 1], one[2 * step]))
        assert low - 1e-6 <= two[step] <= high + 1e-6


def test_training_fits_the_examples_and_keeps_the_best(recipe, formulas, tmp_path, capsys):
    file = recipe(
        augmentation={},
        eval_data=str(formulas),
        eval_steps=20,
        eval_limit=4,
        max_steps=60,
        save_steps=60,
        ema_decay=0.0,
    )
    run(file)
    assert "step 60: exprate " in capsys.readouterr().err, "who trains sees what was measured"
    values = losses(tmp_path / "run")
    assert values[60] < 0.7 * values[1]
    best = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    assert best["architectures"] == ["CoMERForConditionalGeneration"]
    assert best["grammar"], "a trained model keeps to the grammar of its vocabulary"
    assert (tmp_path / "run" / "best" / "processor_config.json").exists()
    assert (tmp_path / "run" / "best" / "tokenizer.json").exists()
    assert list((tmp_path / "run" / "logs").rglob("events.out.tfevents.*")), "tensorboard has something to show"
    evaluated = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in evaluated if "eval_exprate" in row] == [20, 40, 60]


def test_half_precision_on_disk_is_single_precision_in_memory(recipe, tmp_path):
    run(recipe(max_steps=2, save_dtype="float16"))
    final = tmp_path / "run" / "final"
    stored = safetensors.torch.load_file(final / "model.safetensors")
    assert stored["lm_head.weight"].dtype == torch.float16
    model = CoMERForConditionalGeneration.from_pretrained(final)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_existing_run_is_not_overwritten(recipe):
    file = recipe(max_steps=2)
    run(file)
    with pytest.raises(RecipeError, match="already holds checkpoints; add --resume"):
        run(file)


def test_full_disk_while_saving_loses_nothing(recipe, tmp_path, monkeypatch):
    file = recipe(save_steps=2, max_steps=4)
    from accelerate import Accelerator

    save_state = Accelerator.save_state

    def full_at_the_second(self, folder, **kwargs):
        if "checkpoint-4" in str(folder):
            Path(folder).mkdir(parents=True)
            raise OSError(errno.ENOSPC, "No space left on device")
        return save_state(self, folder, **kwargs)

    monkeypatch.setattr(Accelerator, "save_state", full_at_the_second)
    with pytest.raises(OSError, match="checkpoint-4.*could not be saved.*No space left on device.*unchanged"):
        run(file)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    assert not list((tmp_path / "run").glob(".checkpoint*"))
    monkeypatch.undo()
    run(file, "--resume")
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3, 4]


def test_atomic_save_keeps_what_was_there(tmp_path):
    folder = tmp_path / "model"
    save_atomically(folder, lambda path: (path / "weights").write_text("first"))

    def fails(path):
        (path / "weights").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="model: could not be saved.*No space left"):
        save_atomically(folder, fails)
    assert (folder / "weights").read_text() == "first"
    save_atomically(folder, lambda path: (path / "weights").write_text("second"))
    assert (folder / "weights").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_diverging_loss_stops_the_run(recipe):
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        run(recipe(learning_rate=1e30, optimizer="sgd", warmup_steps=0))


@pytest.mark.parametrize(
    "content, message",
    [
        ("{output_dir: x, train_data: y, learning_speed: 3}", "unknown key learning_speed; known are"),
        ("[1, 2]", "mapping of argument names"),
        ("a: [", "not valid YAML"),
        ("{output_dir: x, train_data: y, model: '{broken'}", "recipe.yaml"),
        (
            "{output_dir: x, train_data: y, model: folder, optimizer: adam}",
            "optimizer must be one of adamw, sgd, not 'adam'",
        ),
    ],
)
def test_recipe_errors(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=message):
        parse_recipe(["--recipe", str(path)])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": {"model_type": "comer", "hiden_size": 16}}, "model: unknown key hiden_size; known are"),
        ({"model": {"model_type": "comet"}}, "there is no model_type 'comet'"),
        ({"model": {"hidden_size": 16}}, "recipe.yaml: model needs a model_type"),
        ({"model": {"model_type": "comer", "dense_layers": 2}}, "model: .*dense_layers"),
        ({"processor": {"scael": 1}}, "processor: unknown key scael; known are"),
        ({"augmentation": {"rotatoin": 2}}, "augmentation: unknown key rotatoin; known are"),
    ],
)
def test_misspelt_settings_are_refused(recipe, changes, message):
    with pytest.raises(RecipeError, match=message):
        run(recipe(**changes))


def test_missing_recipe_is_one_sentence(tmp_path):
    with pytest.raises(RecipeError, match="none.yaml: cannot be read"):
        parse_recipe(["--recipe", str(tmp_path / "none.yaml")])


def test_unset_variable_is_one_sentence(recipe, monkeypatch):
    monkeypatch.delenv("EPIGRAPH_DATA", raising=False)
    with pytest.raises(ValueError, match="the environment variable EPIGRAPH_DATA is not set"):
        run(recipe(train_data="${EPIGRAPH_DATA}/crohme_ink.parquet"))


def test_command_line_overrides_the_recipe(recipe):
    args = parse_recipe(["--recipe", str(recipe()), "--max_steps", "5", "--model", '{"model_type": "comer"}'])
    assert isinstance(args, PretrainArguments)
    assert (args.max_steps, args.model, args.batch_size) == (5, {"model_type": "comer"}, 4)


def test_shipped_recipes_parse():
    for path in sorted((ROOT / "recipes").glob("comer_crohme*.yaml")):
        args = parse_recipe(["--recipe", str(path)])
        assert args.train_data[0].startswith("${EPIGRAPH_DATA}/"), path


@pytest.fixture
def sources(tmp_path):
    """Call `sources(**columns)`: a parquet file of two rows, with columns changed or, where None, left out."""
    datasets = pytest.importorskip("datasets")

    def write(name, **columns):
        row = {"id": "a", "text": "x", "split": "train", "strokes": [[0.0, 0.0, 1.0, 2.0]]} | columns
        row = {key: value for key, value in row.items() if value is not None}
        path = tmp_path / f"{name}.parquet"
        datasets.Dataset.from_list([row, row | {"split": "other"}]).to_parquet(path)
        return str(path)

    return write


def test_several_sources_follow_each_other(sources):
    symbols = [{"label": "y", "strokes": [0]}]
    paths = [sources("plain", writer="w"), sources("segmented", text="y", symbols=symbols)]
    rows = training_rows(paths, "train")
    assert rows["text"][:] == ["x", "y"] and set(rows["split"]) == {"train"}
    assert rows["symbols"][:] == [None, symbols] and "writer" not in rows.column_names
    assert training_rows(paths[:1], "train").column_names == ["id", "text", "split", "strokes", "writer"]


def test_sources_that_do_not_go_together_are_refused(sources):
    image = {"bytes": b"", "path": None}
    paths = [sources("ink"), sources("images", strokes=None, image=image), sources("odd", split="validation")]
    with pytest.raises(ValueError, match="images.parquet has images, .*ink.parquet has ink"):
        training_rows(paths[:2], "train")
    with pytest.raises(ValueError, match="odd.parquet: no split 'train'; there are other, validation"):
        training_rows([paths[0], paths[2]], "train")


def test_several_sources_on_the_command_line_and_in_a_recipe(recipe, formulas, tmp_path):
    args = parse_recipe(["--recipe", str(recipe()), "--train_data", "a", "b"])
    assert args.train_data == ["a", "b"]
    assert parse_recipe(["--recipe", str(recipe(train_data="one"))]).train_data == ["one"]
    with pytest.raises(RecipeError, match="train_data must be a path or a list of paths"):
        parse_recipe(["--recipe", str(recipe(train_data=[1]))])
    run(recipe(train_data=[str(formulas), str(formulas)], max_steps=1))
    assert len(losses(tmp_path / "run")) == 1


@pytest.mark.parametrize("positions", ["learned", "rope_mixed"])
def test_only_matrices_and_kernels_decay(positions):
    args = PretrainArguments(output_dir="run", train_data="data", model={"model_type": "pixelvit"}, weight_decay=0.3)
    sizes = {"num_hidden_layers": 1, "decoder_num_hidden_layers": 1, "hidden_size": 12, "intermediate_size": 8}
    config = PixelViTConfig(position_embedding_type=positions, decoder_position_embedding_type="learned", **sizes)
    model = PixelViTForPreTraining(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, args).param_groups
    decayed, plain = [{names[id(parameter)] for parameter in group["params"]} for group in groups]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert decayed | plain == set(names.values()) and not decayed & plain
    layer = "pixelvit.layers.0"
    assert {"pixelvit.embeddings.projection.weight", f"{layer}.attention.q_proj.weight", f"{layer}.mlp.fc1.weight"} < (
        decayed
    )
    assert {"pixelvit.embeddings.cls_token", "decoder.mask_token", "decoder.decoder_pos_embed"} < plain
    assert {"pixelvit.layernorm.weight", f"{layer}.mlp.fc1.bias"} < plain
    table = "pixelvit.embeddings.position_embeddings" if positions == "learned" else "pixelvit.rotary_frequencies"
    assert table in plain

    with_dictionary = PixelViTForPreTraining(PixelViTConfig(pixel_vocab_size=16, **sizes))
    plain = {id(parameter) for parameter in build_optimizer(with_dictionary, args).param_groups[1]["params"]}
    assert id(with_dictionary.pixelvit.embeddings.projection.weight) in plain, "an embedding"


def test_comer_decays_every_matrix_but_its_embedding(tiny_comer):
    model = CoMERForConditionalGeneration.from_pretrained(tiny_comer)
    args = PretrainArguments(output_dir="run", train_data="data", model="folder")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(parameter)] for parameter in build_optimizer(model, args).param_groups[0]["params"]}
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    assert matrices - decayed == {"decoder.embed_tokens.weight"} and decayed < matrices
