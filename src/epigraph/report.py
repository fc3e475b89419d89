"""A page of readings: drawing, rendered formula, truth, and where the model looked at each token. HTML and CSS only.

The page needs no script and no network. Tokens are radio buttons, so that a keyboard walks through them like a mouse.
"""

import base64
import html
import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageChops, ImageStat

from .reading import MAX_SIDE, FormulaReading

CELL = 16  # pixels of the model's input along a side of one cell of its features
HEAT = (232, 89, 12)
# An orange and a blue that stay apart for the colour-blind, and leave black and white ink legible.
ATTENTION = (242, 111, 20)
COVERAGE = (28, 126, 214)


@dataclass
class Look:
    """A drawing as the model sees it, and where it looks.

    Attributes:
        ink: (height, width) uint8, white ink on black.
        maps: (tokens, rows, columns), each map summing to 1.
        extent: height and width of a map as multiples of the drawing's: the last cells reach beyond it.
    """

    ink: np.ndarray
    maps: np.ndarray
    extent: tuple[float, float]


@dataclass
class Example:
    """One entry of the page.

    Attributes:
        name: shown as its title.
        reading: what was read.
        seconds: how long that took.
        truth: what was drawn, as tokens; None where not known.
        right: whether reading and truth are the same formula; None where not known.
        look: the drawing and where the model looked in it.
    """

    name: str
    reading: FormulaReading
    seconds: float
    truth: str | None
    right: bool | None
    look: Look


@torch.no_grad()
def look(model, processor, image: Image.Image, text: str) -> Look:
    """Where the model looks as it reads `text` from left to right: the last layer's attention, mean of its heads."""
    # What the processor cuts away is not shown; what it shrinks is.
    whole = processor(images=[image], scale=1.0, max_size={"height": MAX_SIDE, "width": MAX_SIDE})
    ink = (whole["pixel_values"][0, 0].numpy() * 255).astype(np.uint8)
    inputs = processor(images=[image], text=[text]).to(model.device)
    labels = inputs.pop("labels").long()
    start = labels.new_full((1, 1), model.config.bos_token_id)
    output = model(**inputs, decoder_input_ids=torch.cat([start, labels], dim=1))
    rows, columns = output.feature_mask.shape[1:]
    maps = output.cross_attentions[-1].mean(1)[0, :-1].float().cpu()  # the last step looks for the stop token
    height, width = inputs["pixel_values"].shape[2:]
    return Look(ink, maps.view(-1, rows, columns).numpy(), (rows * CELL / height, columns * CELL / width))


def page(examples: list[Example], model: str) -> str:
    """The whole page.

    Args:
        examples: in the order in which they are shown.
        model: name of the model, for the heading.
    """
    known = [example.right for example in examples if example.right is not None]
    seconds = sum(example.seconds for example in examples)
    summary = f"{sum(known)} of {len(known)} formulas read right" if known else f"{len(examples)} formulas"
    return _PAGE.format(
        css=_CSS,
        summary=html.escape(f"{summary} by {model}, in {seconds:.1f} s."),
        articles="\n".join(_article(number, example) for number, example in enumerate(examples)),
    )


def _article(number: int, example: Example) -> str:
    reading = example.reading
    verdict, mark = {True: ("right", "✓ right"), False: ("wrong", "✗ misread"), None: ("unknown", "")}[example.right]
    facts = f"{example.seconds:.2f} s"
    if reading.error:
        body = f"<p class=note>{html.escape(reading.error)}</p>"
    else:
        facts = f"score {reading.score:.3f} · {facts}"
        body = f"<h3>Reading</h3>{formula(reading.text)}"
    if example.truth is not None:
        body += f"<h3>Truth</h3>{formula(example.truth)}"
    return (
        f'<article class="{verdict}"><header><h2>{html.escape(example.name)}</h2>'
        f"<strong>{mark}</strong><span>{facts}</span></header>"
        f"<div class=columns>{_drawing(number, example)}<section>{body}{_n_best(reading)}</section></div></article>"
    )


def mathml(latex: str) -> str | None:
    """LaTeX tokens as a MathML element, ready to stand in HTML; None where there is nothing, or no rendering it."""
    from latex2mathml.converter import convert

    if not latex.strip():
        return None
    try:
        return convert(latex, display="block")
    except Exception:  # it raises a class of its own for each thing that a misreading can lack
        return None


def overlay(
    image: Image.Image, heat: np.ndarray, color: tuple[int, int, int] = ATTENTION, peak: float | None = None
) -> Image.Image:
    """A picture with a map of where the model looked laid over it.

    On a light ground the colour darkens like a highlighter, on a dark one it shines; the ink stays as it is.

    Args:
        image: the picture, of any mode.
        heat: (height, width) of any size, at least 0, spread over the whole picture; a map of
            `FormulaReading.attentions` or `.coverages`.
        color: RGB; `ATTENTION` or `COVERAGE`.
        peak: the value that is drawn in full colour; the map's greatest by default. Maps to compare need the same.

    Returns:
        An RGB image of the picture's size.
    """
    image = opaque(image)
    strength = Image.fromarray(_strength(heat, peak)).resize(image.size, Image.Resampling.BICUBIC)
    light = ImageStat.Stat(image.convert("L")).median[0] > 127
    ground = Image.new("RGB", image.size, "white" if light else "black")
    tint = Image.composite(Image.new("RGB", image.size, color), ground, strength)
    return (ImageChops.multiply if light else ImageChops.screen)(image, tint)


def opaque(image: Image.Image) -> Image.Image:
    """As RGB; what is transparent shows white paper."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.composite(image, Image.new("RGBA", image.size, "white"), image.getchannel("A")).convert("RGB")
    return image.convert("RGB")


def _strength(heat: np.ndarray, peak: float | None) -> np.ndarray:
    """(height, width) uint8, 255 at `peak` and above."""
    heat = np.asarray(heat, np.float32)
    peak = float(heat.max()) if peak is None else peak
    return (255 * np.clip(heat / max(peak, 1e-12), 0, 1)).astype(np.uint8)


def formula(latex: str) -> str:
    """MathML of LaTeX tokens above the tokens themselves; of what cannot be rendered, only the tokens and a note."""
    source = f"<code>{html.escape(latex) or 'nothing'}</code>"
    if (rendered := mathml(latex)) is None:
        return f"<p class=note>This LaTeX cannot be rendered.</p>{source}"
    return f"<div class=formula>{rendered}</div>{source}"


def _n_best(reading: FormulaReading) -> str:
    if len(reading.n_best) < 2:
        return ""
    rows = "".join(
        f"<tr><td>{candidate.score:.3f}<td>{candidate.forward_score:.3f}"
        f"<td>{'' if candidate.reverse_score is None else f'{candidate.reverse_score:.3f}'}"
        f"<td><code>{html.escape(candidate.text)}</code>"
        for candidate in reading.n_best
    )
    table = f"<table><tr><th>score<th>forward<th>reverse<th>LaTeX{rows}</table>"
    return f"<details><summary>{len(reading.n_best)} best readings</summary><div class=scroll>{table}</div></details>"


def _drawing(number: int, example: Example) -> str:
    """The drawing, and under it the tokens; each carries its attention as an overlay of the drawing."""
    ink = example.look.ink
    picture = _data_uri(np.dstack([np.zeros((*ink.shape, 3), np.uint8), ink]))
    height, width = ink.shape
    style = f'style="--width: {1.75 * width:.0f}px; --ratio: {width} / {height}"'
    tall, wide = (f"{100 * share:.2f}%" for share in example.look.extent)
    chips = [
        f"<label><input type=radio name=t{number} checked><span class=chip>ink only</span></label>",
    ]
    for token, score, heat in zip(example.reading.text.split(), example.reading.token_scores, example.look.maps):
        token = html.escape(token)
        probability = f"{100 * math.exp(score):.0f} %"
        overlay = f'<img src="{_data_uri(_heat(heat))}" alt="" style="width: {wide}; height: {tall}">'
        chips.append(
            f'<label title="{token}: {probability}">'
            f'<input type=radio name=t{number} aria-label="attention for {token}">'
            f"<span class=chip>{token}</span><span class=heat>{overlay}</span></label>"
        )
    described = html.escape(example.truth or example.name)
    return (
        f'<figure {style}><img class=ink src="{picture}" alt="drawing of {described}" '
        f'width={width} height={height}><figcaption role=radiogroup aria-label="attention of each token">'
        f"{''.join(chips)}</figcaption></figure>"
    )


def _heat(weights: np.ndarray) -> np.ndarray:
    """One transparent pixel per cell, opaque where the weight is greatest; the browser draws the cells smoothly."""
    share = weights / max(float(weights.max()), 1e-9)
    image = np.empty((*weights.shape, 4), np.uint8)
    image[..., :3] = HEAT
    image[..., 3] = (200 * share).astype(np.uint8)
    return image


def _data_uri(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


_CSS = """
:root { color-scheme: light dark; --back: #f6f5f2; --card: #fff; --text: #1c1b19; --soft: #6b6862; --line: #dedbd4;
  --right: #2b7a4b; --wrong: #c0392b; --accent: #e8590c; }
@media (prefers-color-scheme: dark) { :root { --back: #161513; --card: #201f1c; --text: #ece9e2; --soft: #a09c93;
  --line: #3a3833; --right: #6cc08b; --wrong: #f08a7c; --accent: #ff8a4c; } .ink { filter: invert(1); } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1rem 4rem; max-width: 70rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.75rem; letter-spacing: -.02em; text-wrap: balance; }
body > p { margin: .25rem 0; max-width: 46rem; color: var(--soft); }
body > p b { color: var(--text); font-weight: 600; }
article { margin-top: 1.25rem; padding: 1rem 1.25rem 1.25rem; background: var(--card); border: 1px solid var(--line);
  border-left: 4px solid var(--line); border-radius: 8px; }
article.right { border-left-color: var(--right); }
article.wrong { border-left-color: var(--wrong); }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .1rem .9rem; margin-bottom: .9rem; }
h2 { margin: 0; font-size: 1.05rem; }
h3 { margin: 1rem 0 .25rem; font-size: .8rem; font-weight: 600; color: var(--soft); }
section > h3:first-child { margin-top: 0; }
header strong { font-size: .9rem; }
.right header strong { color: var(--right); }
.wrong header strong { color: var(--wrong); }
header span { margin-left: auto; color: var(--soft); font-size: .85rem; font-variant-numeric: tabular-nums; }
.columns { display: grid; grid-template-columns: minmax(0, 1fr); gap: 1.25rem 2.5rem; }
@media (min-width: 48rem) { .columns { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); } }
figure { position: relative; margin: 0; }
.ink, .heat { display: block; width: min(100%, var(--width)); height: auto; aspect-ratio: var(--ratio); }
.ink { position: relative; z-index: 1; }
.heat { position: absolute; inset: 0 auto auto 0; overflow: hidden; opacity: 0; pointer-events: none;
  transition: opacity .12s; }
.heat img { display: block; max-width: none; }
figcaption { display: flex; flex-wrap: wrap; gap: .3rem; margin-top: .9rem; }
label { cursor: pointer; }
input { position: absolute; opacity: 0; pointer-events: none; }
.chip { display: block; min-width: 1.9rem; padding: .1rem .5rem; border: 1px solid var(--line); border-radius: 5px;
  text-align: center; font: .85rem/1.5 ui-monospace, monospace; }
label:hover .chip { border-color: var(--accent); }
input:checked + .chip { border-color: var(--accent); background: color-mix(in srgb, var(--accent) 16%, transparent); }
input:focus-visible + .chip { outline: 2px solid var(--accent); outline-offset: 1px; }
input:checked ~ .heat { opacity: 1; }
figcaption:has(label:hover) .heat { opacity: 0; }
figcaption label:hover .heat { opacity: 1; }
.formula { overflow-x: auto; padding: .25rem 0; font-size: 1.35rem; }
math[display=block] { display: block math; text-align: left; width: fit-content; }
code { font: .85rem/1.5 ui-monospace, monospace; color: var(--soft); overflow-wrap: anywhere; }
.note { margin: 0 0 .25rem; color: var(--wrong); font-size: .9rem; }
details { margin-top: 1rem; font-size: .9rem; }
summary { cursor: pointer; color: var(--soft); }
.scroll { overflow-x: auto; }
table { margin-top: .4rem; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: baseline; white-space: nowrap; }
td:last-child { white-space: normal; min-width: 12rem; }
th { font-size: .8rem; font-weight: 600; color: var(--soft); }
@media (prefers-reduced-motion: reduce) { .heat { transition: none; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Handwritten formulas, read by epigraph</title>
<style>{css}</style>
</head>
<body>
<h1>Handwritten formulas, read by epigraph</h1>
<p><b>{summary}</b></p>
<p>Choose a token under a drawing, by pointer or arrow keys, to see where the model looked when it wrote it.
A score is the probability that the whole reading is right; forward and reverse are log-probabilities per token.</p>
{articles}
</body>
</html>
"""

__all__ = ["ATTENTION", "COVERAGE", "Example", "Look", "formula", "look", "mathml", "overlay", "page"]
