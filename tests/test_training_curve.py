"""The picture of a training run."""

import json

import pytest
from PIL import Image

from epigraph.training_curve import draw_training_curve, main, read_series


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_repeated_step_counts_once_as_it_went_last(tmp_path):
    records = [{"step": 50, "loss": 3.0, "learning_rate": 0.1}, {"step": 100, "loss": 2.0}, {"step": 100, "loss": 1.5}]
    records += [{"step": 100, "eval_loss": 1.0, "eval_token_accuracy": 0.5}, {"step": 150, "loss": float("nan")}]
    assert read_series(write(tmp_path / "metrics.jsonl", records)) == {
        "loss": {50: 3.0, 100: 1.5},
        "eval_loss": {100: 1.0},
        "eval_token_accuracy": {100: 0.5},
    }


def test_the_line_is_where_the_values_are(tmp_path):
    falling = [{"step": step, "loss": 10.0 - step / 10} for step in range(0, 101, 10)]
    draw_training_curve(write(tmp_path / "metrics.jsonl", falling), tmp_path / "curve.png")
    image = Image.open(tmp_path / "curve.png").convert("RGB")
    blue = [
        (x, y)
        for x in range(80, image.width - 40)
        for y in range(30, image.height - 50)
        if image.getpixel((x, y))[2] > 150 > image.getpixel((x, y))[0]
    ]
    columns = dict(blue)
    assert len(columns) > 600, "the line spans the panel"
    heights = [columns[x] for x in sorted(columns)]
    assert heights == sorted(heights) and heights[-1] - heights[0] > 100, "a falling loss falls"


def test_runs_that_follow_each_other_are_one_curve(tmp_path):
    first = [{"step": 50, "loss": 3.0}, {"step": 100, "loss": 2.0}]
    second = [{"step": 50, "loss": 1.5}, {"step": 80, "loss": 1.0}]
    files = [write(tmp_path / "first.jsonl", first), write(tmp_path / "second.jsonl", second)]
    main([*map(str, files), str(tmp_path / "two.png")])
    whole = first + [{**record, "step": record["step"] + 100} for record in second]
    main([str(write(tmp_path / "whole.jsonl", whole)), str(tmp_path / "one.png")])
    assert (tmp_path / "two.png").read_bytes() == (tmp_path / "one.png").read_bytes()
    main([str(files[0]), str(tmp_path / "first.png")])
    assert (tmp_path / "two.png").read_bytes() != (tmp_path / "first.png").read_bytes()


@pytest.mark.parametrize("content", ["", "not json\n", '{"loss": 1.0}\n', "[1]\n", '{"step": 5}\n'])
def test_a_file_of_something_else_is_named(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(ValueError, match="metrics.jsonl"):
        draw_training_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
