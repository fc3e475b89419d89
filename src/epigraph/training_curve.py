"""A picture of a training run, drawn from the metrics.jsonl that `training.train` writes.

python -m epigraph.training_curve runs/first/metrics.jsonl runs/longer/metrics.jsonl training_curve.png
"""

import argparse
import json
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

NOT_DRAWN = {"step", "learning_rate", "epoch", "examples", "seconds", "eval_selection"}
COLOURS = ["#1f6feb", "#d1242f", "#1a7f37", "#8250df", "#9a6700", "#57606a"]
SIZE, PANEL, MARGIN = 900, 260, 70  # width of the picture, height of a panel, room for labels; pixels
SCALE = 2  # drawn larger and averaged down, since Pillow's lines are not anti-aliased


def read_series(metrics_file: str | Path) -> dict[str, dict[int, float]]:
    """Name -> {step: value}. A step that was repeated after a resumption counts once, as it went the last time."""
    series = {}
    for number, line in enumerate(Path(metrics_file).read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            step = record["step"]
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{metrics_file}, line {number}: not a record of training; remove the line") from None
        for name, value in record.items():
            if name not in NOT_DRAWN and isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(name, {})[step] = value
    if not series:
        raise ValueError(f"{metrics_file} holds nothing to draw; it is empty or not what training writes")
    return series


def draw_training_curve(metrics_files: str | Path | list[str | Path], image_file: str | Path):
    """Write a picture with a panel for the losses and one for what was evaluated, over the steps.

    Of several runs each goes on where the one before it ended. Raises ValueError, naming the file, where one of
    `metrics_files` holds no training metrics.
    """
    series, done = {}, 0
    for file in metrics_files if isinstance(metrics_files, list) else [metrics_files]:
        run = read_series(file)
        for name, values in run.items():
            series.setdefault(name, {}).update({done + step: value for step, value in values.items()})
        done += max(step for values in run.values() for step in values)
    losses = [name for name in series if name.endswith("loss")]
    panels = [names for names in (losses, [name for name in series if name not in losses]) if names]
    last = max(step for values in series.values() for step in values) or 1
    image = Image.new("RGB", (SIZE * SCALE, (PANEL * len(panels) + 30) * SCALE), "white")
    pen = ImageDraw.Draw(image)
    for row, names in enumerate(panels):
        draw_panel(pen, {name: series[name] for name in names}, last, row * PANEL)
    middle, bottom = (MARGIN + SIZE) / 2, PANEL * len(panels) + 4
    pen.text((middle * SCALE, bottom * SCALE), "step", "black", font(), anchor="ma")
    image.resize((image.width // SCALE, image.height // SCALE), Image.Resampling.LANCZOS).save(image_file)


def font() -> ImageFont.FreeTypeFont:
    """Pillow's own font, so that the picture is the same everywhere."""
    return ImageFont.load_default(size=13 * SCALE)


def draw_panel(pen: ImageDraw.ImageDraw, series: dict[str, dict[int, float]], last: int, top: int):
    """Axes, grid, legend and lines of one panel whose upper edge is at `top` pixels."""
    values = [value for line in series.values() for value in line.values()]
    low, high = min(0.0, *values), max(values)
    high = high if high > low else low + 1
    left, right, upper, lower = MARGIN, SIZE - 30, top + 34, top + PANEL - 26

    def at(step, value):
        x = left + (right - left) * step / last
        y = lower - (lower - upper) * (value - low) / (high - low)
        return x * SCALE, y * SCALE

    for part in range(5):
        value, step = low + (high - low) * part / 4, round(last * part / 4)
        pen.line([at(0, value), at(last, value)], "#d8dee4", SCALE)
        x, y = at(0, value)
        pen.text((x - 8 * SCALE, y), f"{value:.3g}", "black", font(), anchor="rm")
        x, y = at(step, low)
        pen.text((x, y + 6 * SCALE), f"{step:,}", "black", font(), anchor="ma")
    x = left * SCALE
    for colour, (name, line) in zip(COLOURS * len(series), series.items()):
        points = [at(step, value) for step, value in sorted(line.items())]
        pen.line(points if len(points) > 1 else points * 2, colour, 2 * SCALE, joint="curve")
        pen.text((x, (top + 10) * SCALE), name, colour, font())
        x += pen.textlength(name + "    ", font())


def main(args: list[str] | None = None):
    """See the module."""
    parser = argparse.ArgumentParser(description="Draw what training logged.")
    parser.add_argument("metrics", nargs="+", type=Path, help="metrics.jsonl of runs that follow each other")
    parser.add_argument("image", type=Path, help="the picture to write")
    arguments = parser.parse_args(args)
    draw_training_curve(arguments.metrics, arguments.image)


if __name__ == "__main__":
    main()
