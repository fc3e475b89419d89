"""The transformers pipeline gives what `epigraph.read` and the command give."""

import json
from dataclasses import asdict

import pytest
import torch
from drawings import BAR, PLUS, STEPS, WAVE
from PIL import Image
from torch.utils.data import Dataset
from transformers import AutoProcessor, pipeline
from typer.testing import CliRunner

import epigraph
from epigraph.data.ink import render
from epigraph.models.modeling_comer import CoMERForConditionalGeneration
from epigraph_cli import app

FAST = {"num_beams": 3, "max_length": 10}


@pytest.fixture(scope="module")
def pipe(reader):
    return pipeline("formula-recognition", model=str(reader), **FAST)


@pytest.fixture
def files(tmp_path):
    """A picture, ink, a damaged picture and ink again."""
    render(WAVE).save(tmp_path / "a.png")
    (tmp_path / "b.json").write_text(json.dumps(PLUS))
    (tmp_path / "c.png").write_bytes(b"\x89PNG")
    (tmp_path / "d.json").write_text(json.dumps({"strokes": BAR}))
    return [str(tmp_path / name) for name in ("a.png", "b.json", "c.png", "d.json")]


def same(one, other):
    """Equal but for the rounding that another batch makes."""
    for name in ("name", "text", "error", "score", "token_scores"):
        assert one[name] == pytest.approx(other[name], abs=1e-4) if "score" in name else one[name] == other[name]
    assert [candidate["text"] for candidate in one["n_best"]] == [candidate["text"] for candidate in other["n_best"]]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_pipeline_function_and_command_agree(pipe, reader, files, batch_size):
    expected = [asdict(result) for result in epigraph.read(files, reader, n_best=2, **FAST)]
    assert [result["text"] for result in expected] == [r"\sin x", "+", "", "1"] and expected[2]["error"]
    found = pipe(files, batch_size=batch_size, n_best=2)
    arguments = ["read", *files, "--model", str(reader), "--json", "--n-best", "2", "--batch-size", str(batch_size)]
    printed = [json.loads(line) for line in CliRunner().invoke(app, arguments).stdout.splitlines()]
    assert len(found) == len(printed) == 4
    for one, line, other in zip(found, printed, expected):
        same(one, other)
        assert line["text"] == other["text"] and line["error"] == other["error"]


def test_one_input_gives_one_result(pipe, files):
    assert pipe(files[0])["text"] == pipe(Image.open(files[0]))["text"] == r"\sin x"
    assert pipe(PLUS)["text"] == "+", "a list of strokes is one input"
    assert files[2] in pipe(files[2])["error"]
    assert pipe([]) == []


def test_streams_come_back_as_streams(pipe):
    class Drawings(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return render([PLUS, STEPS][index])

    for stream in (Drawings(), (render(drawing) for drawing in (PLUS, STEPS))):
        results = pipe(stream)
        assert not isinstance(results, list)
        assert [result["text"] for result in results] == ["+", "a ^ { 2 }"]


def test_half_precision_checkpoints_run_in_float32_on_cpus(reader, tmp_path):
    CoMERForConditionalGeneration.from_pretrained(reader).half().save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(reader).save_pretrained(tmp_path)
    pipe = pipeline("formula-recognition", model=str(tmp_path), device="cpu", **FAST)
    assert pipe.model.dtype == torch.float32 and pipe(BAR)["text"] == "1"


def test_doubtful_readings_are_marked(pipe, files):
    results = pipe(files, min_score=1.0)
    assert [result["doubtful"] for result in results] == [True, True, False, True], "what cannot be read has an error"
    assert all(0 < result["score"] < 1 for result in results if not result["error"])
    assert not pipe(files[1], min_score=0.0)["doubtful"]
    with pytest.raises(ValueError, match="min_score is a probability"):
        pipe(files[1], min_score=90)


def test_unknown_settings_are_refused(pipe):
    with pytest.raises(ValueError, match="beam"):
        pipe(PLUS, beam=3)
