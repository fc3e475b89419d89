"""Fill the tables of docs/pixelvit.md, and draw its figure, from what scripts/compare_pixels.py measured.

python scripts/pixel_tables.py            # write them
python scripts/pixel_tables.py --check    # write nothing, fail where one is out of date
"""

import argparse
import json
import math
import re
import sys
from hashlib import sha256
from pathlib import Path
from statistics import mean

from compare_pixels import ARMS, SETTINGS
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from epigraph.cards import fill

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "model_cards" / "results" / "pixelvit"
PAGE = ROOT / "docs" / "pixelvit.md"
FIGURE = "pixelvit_selection.png"
NAMES = {"digits": "Digits", "mnist5k": "MNIST-5k", "fashion": "Fashion-MNIST"}
FASHION_BAR = 0.82  # what all pixels must reach on Fashion-MNIST for the comparison to count
CUT = "† stopped at the limit of CPU time, before the end of its schedule."
TRIED = ("epochs", "batch_size", "learning_rate", "weight_decay", "warmup", "shift", "flip", "initializer_range")
Rows = list[dict]


def read(table: str, data: str, folder: Path) -> Rows:
    """The rows of one table on one data set, none where there is no file.

    Raises:
        ValueError: rows that may not stand side by side: of other data or settings, or not measured on test images.
    """
    path = folder / f"{table}.{data}.json"
    if not path.is_file():
        return []
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    shared = {json.dumps([row["data_sha256"], {**row["settings"], "cpu_seconds": 0}]) for row in rows}
    if len(shared) > 1:
        raise ValueError(f"{path} holds rows of different settings or data; remove those that are not wanted")
    if any(row["accuracy"] is None for row in rows):
        raise ValueError(f"{path} holds rows that were not measured on the test images")
    return rows


def by_arm(rows: Rows, table: str) -> dict[str, Rows]:
    """Arm -> its seeds, in the order of the table; arms that were not run are left out."""
    arms = {arm: [row for row in rows if row["arm"] == arm] for arm in ARMS[table]}
    return {arm: found for arm, found in arms.items() if found}


def rate(rows: Rows) -> str:
    """Mean of the seeds, and each of them."""
    each = ", ".join(f"{100 * row['accuracy']:.1f}" for row in sorted(rows, key=lambda row: row["seed"]))
    mark = " †" if any("cut" in row for row in rows) else ""
    return f"{100 * mean(row['accuracy'] for row in rows):.1f} % ({each}){mark}"


def seconds(rows: Rows, name: str = "cpu_seconds") -> str:
    return f"{mean(row[name] for row in rows):,.0f}"


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """A table whose columns but the first are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))


def conditions(rows: Rows) -> str:
    """The data and settings of a table in words, and the commands that made it."""
    first, settings = rows[0], rows[0]["settings"]
    commands = dict.fromkeys(re.sub(r" --only .*", "", row["command"]) for row in rows)
    said = [f"{first['n']:,} test images", f"batches of {settings['batch_size']}"]
    said += [f"AdamW at {settings['learning_rate']:g} with weight decay {settings['weight_decay']:g}"]
    if settings["shift"]:
        said += [f"images moved by up to {settings['shift']} px"]
    if settings["flip"]:
        said += ["half of them mirrored"]
    if settings["selection"] != "all" and first["table"] != "selection":
        said += [f"a quarter of the pixels read ({settings['selection']})"]
    said += [settings["dtype"], f"attention {settings['attention']}"]
    said += [f"seeds {' and '.join(str(seed) for seed in sorted({row['seed'] for row in rows}))}"]
    rates = [row["matmul_gflop_per_cpu_second"] for row in rows]
    machines = " and ".join(dict.fromkeys(row["machine"] for row in rows))
    marks = [CUT] if any("cut" in row for row in rows) else []
    return "\n\n".join(
        [
            *marks,
            f"{NAMES[first['data']]}: {', '.join(said)}. {machines}, where float32 products ran at "
            f"{min(rates):.0f} to {max(rates):.0f} GFLOP per CPU second.",
            "```bash\n" + "\n".join(commands) + "\n```",
        ]
    )


def positions_table(folder: Path) -> str:
    """Accuracy of every position embedding, the data sets side by side."""
    found = {data: rows for data in SETTINGS if (rows := read("positions", data, folder))}
    head = ["position embedding"]
    for data, rows in found.items():
        head += [f"{NAMES[data]}, {rows[0]['epochs']:.0f} epochs", "CPU s"]
    lines = []
    for arm, what in ARMS["positions"].items():
        cells = [by_arm(rows, "positions").get(arm) for rows in found.values()]
        if any(cells):
            shown = [text for rows in cells for text in ((rate(rows), seconds(rows)) if rows else ("–", "–"))]
            lines.append([what.title, *shown])
    return "\n\n".join([markdown(head, lines), *map(conditions, found.values())]) if found else "No results yet."


def selection_table(rows: Rows) -> str:
    """Share of pixels, tokens, accuracy and time of every selection on one data set, at equal epochs or times."""
    lines = []
    for arm, found in by_arm(rows, "selection").items():
        first = found[0]
        lines.append([ARMS["selection"][arm].title, f"{100 * first['share']:.4g} %", f"{first['tokens']}"])
        lines[-1] += [f"{mean(row['epochs'] for row in found):.0f}", rate(found), seconds(found)]
    return markdown(["pixels", "share", "tokens", "epochs", "accuracy", "CPU s"], lines)


def selection_section(folder: Path) -> str:
    """Every data set's tables and the figure."""
    parts, panels = [], selection_panels(folder)
    for data in SETTINGS:
        rows = read("selection", data, folder)
        if not rows:
            continue
        first = rows[0]
        position = ARMS["positions"].get(first["settings"]["position"])
        position = position.title if position else first["settings"]["position"]
        parts.append(f"**{NAMES[data]}**, {first['train_images']:,} training images; positions: {position}")
        for length in sorted({row["settings"]["cpu_seconds"] for row in rows}):
            same = [row for row in rows if row["settings"]["cpu_seconds"] == length]
            parts.append(f"The same CPU seconds for all ({length:g}):" if length else "The same epochs for all:")
            parts.append(selection_table(same))
        if data == "fashion" and (whole := by_arm(rows, "selection").get("all")):
            reached = mean(row["accuracy"] for row in whole)
            if reached < FASHION_BAR:
                parts.append(
                    f"All pixels reach {100 * reached:.1f} %, less than the {100 * FASHION_BAR:.0f} % from which this "
                    "comparison was to count: it does not."
                )
        parts.append(conditions(rows))
    if panels:
        parts.append(f"![Accuracy against CPU seconds of every selection]({FIGURE})")
    return "\n\n".join(parts) or "No results yet."


def mae_table(rows: Rows) -> str:
    """Pre-training and fine-tuning against from scratch on one data set."""
    lines = []
    for arm, found in by_arm(rows, "mae").items():
        first = found[0]
        before = seconds(found, "pretrain_cpu_seconds") if "pretrain_cpu_seconds" in first else "–"
        lines.append([ARMS["mae"][arm].title, f"{first['train_images']:,}", before, seconds(found), rate(found)])
    return markdown(["training", "labelled images", "pre-training, CPU s", "in all, CPU s", "accuracy"], lines)


def mae_section(folder: Path) -> str:
    parts = []
    for data in SETTINGS:
        if rows := read("mae", data, folder):
            parts += [f"**{NAMES[data]}**", mae_table(rows), conditions(rows)]
    return "\n\n".join(parts) or "No results yet."


def choices_table(folder: Path) -> str:
    """What was tried with --validation-only, from choices.json: by what it differs from the settings of the study."""
    path = folder / "choices.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    if any(row["accuracy"] is not None for row in rows):
        raise ValueError(f"{path} holds rows that were measured on test images; choices are made without them")
    lines = []
    for row in sorted(
        rows, key=lambda row: (list(SETTINGS).index(row["data"]), row["arm"], row["validation_accuracy"])
    ):
        chosen, own = vars(SETTINGS[row["data"]]), row["settings"]
        differs = [f"{name} {own[name]:g}" for name in TRIED if own[name] != chosen[name]]
        differs += [f"{name} {own[name]}" for name in ("position", "dtype", "attention") if own[name] != chosen[name]]
        arm = ARMS[row["table"]][row["arm"]].title
        shown = f"{100 * row['validation_accuracy']:.1f} %"
        lines.append([NAMES[row["data"]], arm, ", ".join(differs) or "as chosen", shown, f"{row['cpu_seconds']:.0f}"])
    head = ["data", "pixels", "settings other than those of the tables", "validation accuracy", "CPU s"]
    return markdown(head, lines) if lines else "No results yet."


# ---------------------------------------------------------------------- the figure

COLOURS = ["#1f6feb", "#d1242f", "#1a7f37", "#8250df", "#9a6700", "#57606a", "#bf3989", "#0a7d8c", "#24292f"]
SIZE, PANEL, LEFT, RIGHT = 900, 300, 70, 290  # width of the picture, height of a panel, room for labels; pixels
SCALE = 2  # drawn larger and averaged down, since Pillow's shapes are not anti-aliased


def selection_panels(folder: Path) -> dict[str, list[tuple[str, float, float]]]:
    """Data set -> (arm, CPU seconds, accuracy), means of the seeds at equal epochs."""
    panels = {}
    for data in SETTINGS:
        rows = [row for row in read("selection", data, folder) if not row["settings"]["cpu_seconds"]]
        points = [
            (
                arm,
                round(mean(row["cpu_seconds"] for row in found), 1),
                round(mean(row["accuracy"] for row in found), 4),
            )
            for arm, found in by_arm(rows, "selection").items()
        ]
        if points:
            panels[data] = points
    return panels


def panels_digest(panels: dict) -> str:
    return sha256(json.dumps(panels, sort_keys=True).encode()).hexdigest()


def draw(panels: dict[str, list[tuple[str, float, float]]], path: Path):
    """A panel of points for each data set; what was drawn is named in the file by its digest."""
    image = Image.new("RGB", (SIZE * SCALE, PANEL * len(panels) * SCALE), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=13 * SCALE)
    for row, (data, points) in enumerate(panels.items()):
        draw_panel(pen, font, NAMES[data], points, row * PANEL)
    image = image.resize((image.width // SCALE, image.height // SCALE), Image.Resampling.LANCZOS)
    info = PngInfo()
    info.add_text("points", panels_digest(panels))
    image.save(path, pnginfo=info, optimize=True)


def draw_panel(pen, font, name: str, points: list[tuple[str, float, float]], top: int):
    """Accuracy over CPU seconds, whose axis is logarithmic, with its upper edge at `top` pixels."""
    times, rates = [time for _, time, _ in points], [value for _, _, value in points]
    first, last = math.log(min(times) / 1.15), math.log(max(times) * 1.15)
    low, high = math.floor(min(rates) * 10) / 10, min(1.0, math.ceil(max(rates) * 20 + 0.2) / 20)
    left, right, upper, lower = LEFT, SIZE - RIGHT, top + 34, top + PANEL - 50

    def at(time, value):
        x = left + (right - left) * (math.log(time) - first) / (last - first)
        return x * SCALE, (lower - (lower - upper) * (value - low) / (high - low)) * SCALE

    pen.text((left * SCALE, (top + 10) * SCALE), name, "black", font)
    pen.text(((left + right) / 2 * SCALE, (lower + 24) * SCALE), "CPU seconds (log)", "black", font, anchor="ma")
    for part in range(5):
        value, time = low + (high - low) * part / 4, math.exp(first + (last - first) * part / 4)
        y, x = at(1, value)[1], at(time, low)[0]
        pen.line([(left * SCALE, y), (right * SCALE, y)], "#d8dee4", SCALE)
        pen.text(((left - 8) * SCALE, y), f"{100 * value:.1f} %", "black", font, anchor="rm")
        pen.text((x, (lower + 6) * SCALE), f"{time:,.0f}", "black", font, anchor="ma")
    order = list(ARMS["selection"])
    for place, (arm, time, value) in enumerate(points):
        colour, (x, y) = COLOURS[order.index(arm) % len(COLOURS)], at(time, value)
        share = f" {100 * ARMS['selection'][arm].share:.4g} %" if ARMS["selection"][arm].share < 1 else ""
        legend = (right + 24) * SCALE, (upper + 22 * place) * SCALE
        for cx, cy in ((x, y), (legend[0], legend[1])):
            pen.ellipse([cx - 5 * SCALE, cy - 5 * SCALE, cx + 5 * SCALE, cy + 5 * SCALE], colour)
        title = f"{ARMS['selection'][arm].title}{share}"
        pen.text((legend[0] + 12 * SCALE, legend[1]), title, "black", font, anchor="lm")


def rendered(text: str, folder: Path = RESULTS) -> str:
    """The page with its blocks filled."""
    blocks = {
        "positions": positions_table(folder),
        "selection": selection_section(folder),
        "mae": mae_section(folder),
        "choices": choices_table(folder),
    }
    for block, content in blocks.items():
        text = fill(text, block, content)
    return text


def figure_is_current(path: Path, panels: dict) -> bool:
    if not panels:
        return True
    if not path.is_file():
        return False
    with Image.open(path) as image:
        return image.info.get("points") == panels_digest(panels)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a file is out of date")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--page", type=Path, default=PAGE, help="the document; the figure is written beside it")
    arguments = parser.parse_args(argv)
    old = arguments.page.read_text(encoding="utf-8")
    new, panels = rendered(old, arguments.results), selection_panels(arguments.results)
    figure = arguments.page.with_name(FIGURE)
    current = {arguments.page: old == new, figure: figure_is_current(figure, panels)}
    stale = [path for path in current if not current[path]]
    if arguments.check and stale:
        names = ", ".join(path.name for path in stale)
        sys.exit(f"out of date: {names}; run python scripts/pixel_tables.py and commit what it writes")
    if arguments.page in stale:
        arguments.page.write_text(new, encoding="utf-8")
    if figure in stale:
        draw(panels, figure)
    for path in stale:
        print(f"wrote {path}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
