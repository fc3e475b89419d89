"""A page of readings: picture, rendered formula, truth, and where the model looked at each token. HTML and CSS only.

The page needs no script and no network. Tokens are radio buttons, so that a keyboard walks through them like a mouse.
"""

import base64
import html
import io
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageStat

from .reading import FormulaReading, checkpoint_folder, load, read_all

# An orange and a blue that stay apart for the colour-blind, and leave black and white ink legible.
ATTENTION = (242, 111, 20)
COVERAGE = (28, 126, 214)
_HEAT_SIDE = 96  # pixels along the longer side of a map; it is drawn over the picture smoothly
_DOUBT = math.log(0.5)  # tokens that the model gave less than this are marked
_MODES = (("attention", ATTENTION), ("coverage", COVERAGE))


@dataclass
class Example:
    """One entry of the page.

    Attributes:
        reading: what was read, with `explain`.
        name: shown as its title; by default the reading's file name.
        seconds: how long that took; None where not known.
        truth: what was drawn, as tokens; None where not known.
        right: whether reading and truth are the same formula; None where not known.
    """

    reading: FormulaReading
    name: str | None = None
    seconds: float | None = None
    truth: str | None = None
    right: bool | None = None

    @property
    def title(self) -> str:
        return self.name or Path(self.reading.name).name


# ---------------------------------------------------------------------------------------------------------- the page


def read_to_page(path: str | Path, inputs, model=None, task=None, device=None, dtype=None, **settings):
    """`epigraph.read` of a list, that writes where the model looked into a page instead of keeping it.

    Args:
        path: of the page, which appears when it is complete; see `new_page`.
        inputs, model, task, device, dtype: see `epigraph.read`; `model` is a folder or Hub id.
        settings: of `read_all`.

    Returns:
        The list of readings, without their explanations.

    Raises:
        ValueError: see `new_page` and `epigraph.read`; before anything is read.
    """
    readings = []

    def examples(model, processor):
        for reading in read_all(inputs, model, processor, task=task, explain=True, **settings):
            yield Example(reading)
            reading.image = reading.attentions = reading.coverages = None
            readings.append(reading)

    with new_page(path) as file:
        loaded = load(model, task, device, dtype)
        if loaded[0].config.model_type == "e2str":
            raise ValueError(f"{path}: the page shows formulas, and {model} reads words.")
        file.write(page(examples(*loaded), checkpoint_folder(model, task).name))
    return readings


@contextmanager
def new_page(path: str | Path) -> Iterator[TextIO]:
    """A file to write a page to, that takes its place when the block ends well; until then what was there stays.

    Raises:
        ValueError: at once, if the page cannot be written there, or lacks what renders its formulas.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{path}: the page is HTML; give it a name that ends in .html.")
    if find_spec("latex2mathml") is None:
        raise ValueError(f"{path}: the page needs latex2mathml; install it with: pip install 'epigraph[html]'.")
    if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
        raise ValueError(f"{path}: cannot be written there; name another file.")
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        file = draft.open("w", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written there ({error.strerror}); name another file.") from None
    try:
        with file:
            yield file
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def page(examples: Iterable[Example], model: str) -> str:
    """The whole page.

    Args:
        examples: in the order in which they are shown; each is done with when the next is asked for.
        model: name of the model, for the heading.
    """
    articles, verdicts, errors, seconds = [], [], 0, 0.0
    for number, example in enumerate(examples):
        articles.append(_article(number, example))
        errors += example.reading.error is not None
        seconds += example.seconds or 0
        if example.right is not None:
            verdicts.append(example.right)
    summary = f"{len(articles)} formula{'s' * (len(articles) != 1)} read by {model}"
    if errors:
        summary = f"{len(articles) - errors} of {len(articles)} inputs read by {model}"
    if verdicts:
        summary = f"{sum(verdicts)} of {len(verdicts)} formulas read right by {model}"
    if seconds:
        summary += f", in {seconds:.1f} s"
    colors = " ".join(f"--{name}: rgb{color};" for name, color in _MODES)
    return _PAGE.format(
        css=_CSS.replace("/*colors*/", colors), summary=html.escape(summary), articles="\n".join(articles)
    )


def _article(number: int, example: Example) -> str:
    reading = example.reading
    kind, mark = {True: ("right", "✓ right"), False: ("wrong", "✗ misread"), None: ("", "")}[example.right]
    facts = [] if example.seconds is None else [f"{example.seconds:.2f} s"]
    if reading.error:
        kind, mark = kind or "unread", mark or "not read"
        body = f"<p class=note>{html.escape(reading.error)}</p>"
    else:
        facts.insert(0, f"{_percent(reading.score)} sure")
        same = reading.text == example.truth
        body = f"<h3>Reading{' and truth' * same}</h3>{formula(reading.text)}"
    if reading.doubtful:
        kind, mark = kind or "doubtful", " · ".join(filter(None, (mark, "? doubtful")))
    if example.truth not in (None, reading.text):
        body += f"<h3>Truth</h3>{formula(example.truth)}"
    body = f"<section>{body}{_n_best(reading)}</section>"
    if reading.image is not None:
        body = f"<div class=columns>{_figure(number, example)}{body}</div>"
    return (
        f'<article class="{kind}"><header><h2>{html.escape(example.title)}</h2>'
        f"<strong>{mark}</strong><span>{' · '.join(facts)}</span></header>{body}</article>"
    )


def _percent(probability: float) -> str:
    share = 100 * probability
    return f"{share:.0f} %" if share >= 1 else "under 1 %"


def _n_best(reading: FormulaReading) -> str:
    if len(reading.n_best) < 2:
        return ""
    rows = "".join(
        f"<tr><td>{_percent(candidate.score)}<td>{candidate.forward_score:.3f}"
        f"<td>{'' if candidate.reverse_score is None else f'{candidate.reverse_score:.3f}'}"
        f"<td><code>{html.escape(candidate.text)}</code>"
        for candidate in reading.n_best
    )
    table = f"<table><tr><th>sure<th>forward<th>reverse<th>LaTeX{rows}</table>"
    return f"<details><summary>{len(reading.n_best)} best readings</summary><div class=scroll>{table}</div></details>"


def _figure(number: int, example: Example) -> str:
    """The picture, a switch between attention and coverage, and the tokens; each token carries both of its maps."""
    reading = example.reading
    picture = opaque(reading.image)
    width, height = picture.size
    shown = width * min(1.75, 280 / height)
    ground = "light" if is_light(picture) else "dark"
    title = html.escape(example.title)
    switch = "".join(
        f"<label><input type=radio name=m{number} class={name}{' checked' * (not place)}>"
        f"<span class=mode>{name}</span></label>"
        for place, (name, _) in enumerate(_MODES)
    )
    chips = [f"<label><input type=radio name=t{number}><span class=chip>picture</span></label>"]
    peak = float(reading.coverages.max(initial=0))
    for place, (token, score) in enumerate(zip(reading.text.split(), reading.token_scores)):
        token, sure = html.escape(token), _percent(math.exp(score))
        heats = "".join(
            f'<img class="heat {name}" src="{heat_uri(maps[place], color, limit)}" alt="">'
            for (name, color), maps, limit in zip(_MODES, (reading.attentions, reading.coverages), (None, peak))
        )
        chips.append(
            f'<label title="{token}: {sure}"><input type=radio name=t{number} aria-label="{token}, {sure}"'
            f"{' checked' * (not place)}><span class='chip{' low' * (score < _DOUBT)}'>{token}</span>"
            f"<output aria-hidden=true><b>{token}</b> {sure}</output>{heats}</label>"
        )
    return (
        f'<figure class={ground} style="--width: {shown:.0f}px; --ratio: {width} / {height}">'
        f'<div class=switch role=radiogroup aria-label="what to show over {title}">{switch}</div>'
        f'<img class=picture src="{_picture_uri(picture)}" alt="picture of {title}" width={width} height={height}>'
        f'<figcaption role=radiogroup aria-label="token of {title}">{"".join(chips)}</figcaption></figure>'
    )


def _picture_uri(picture: Image.Image) -> str:
    return _uri(picture, quality=80)


def _uri(image: Image.Image, **options) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", **options)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


# ------------------------------------------------------------------------------------------- parts for other pages


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
    strength = _strength(heat, peak).resize(image.size, Image.Resampling.BICUBIC)
    light = is_light(image)
    ground = Image.new("RGB", image.size, "white" if light else "black")
    tint = Image.composite(Image.new("RGB", image.size, color), ground, strength)
    return (ImageChops.multiply if light else ImageChops.screen)(image, tint)


def opaque(image: Image.Image) -> Image.Image:
    """As RGB; what is transparent shows white paper, behind light ink a black board, as the model sees it."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        ink_is_light = ImageStat.Stat(image.convert("L"), alpha.point(lambda value: 255 * (value > 127))).mean[0] > 127
        ground = "black" if ink_is_light and ImageStat.Stat(alpha).mean[0] < 128 else "white"
        return Image.composite(image, Image.new("RGBA", image.size, ground), alpha).convert("RGB")
    return image.convert("RGB")


def formula(latex: str) -> str:
    """MathML of LaTeX tokens above the tokens themselves; of what cannot be rendered, only the tokens and a note."""
    source = f"<code>{html.escape(latex) or 'nothing'}</code>"
    if (rendered := mathml(latex)) is None:
        return f"<p class=note>This LaTeX cannot be rendered.</p>{source}"
    return f"<div class=formula>{rendered}</div>{source}"


def heat_uri(heat: np.ndarray, color: tuple[int, int, int], peak: float | None = None) -> str:
    """The map of `overlay` alone, as a small transparent picture in a data URI, to be laid over the whole picture."""
    strength = _strength(heat, peak)
    plain = Image.new("RGB", strength.size, color)
    plain.putalpha(strength)
    return _uri(plain, alpha_quality=80)


def is_light(picture: Image.Image) -> bool:
    """Whether a map is laid over the picture like a highlighter; over a dark one it shines."""
    return ImageStat.Stat(picture.convert("L")).median[0] > 127


def _strength(heat: np.ndarray, peak: float | None) -> Image.Image:
    """A small grey image, white at `peak` and above; softened, as the edge of what the model saw is no finding."""
    heat = np.asarray(heat, np.float32)
    peak = float(heat.max()) if peak is None else peak
    strength = Image.fromarray((255 * np.clip(heat / max(peak, 1e-12), 0, 1)).astype(np.uint8))
    strength = strength.reduce(math.ceil(max(strength.size) / _HEAT_SIDE))
    return strength.filter(ImageFilter.GaussianBlur(max(strength.size) / 64))


_CSS = """
:root { color-scheme: light dark; /*colors*/
  --back: #f6f5f2; --card: #fff; --text: #1c1b19; --soft: #6b6862; --line: #dedbd4; --tint: #efede7; --on: #fff;
  --right: #2b7a4b; --wrong: #c0392b; --doubt: #9a6700; --orange: #b84c00; --blue: #1864ab; }
@media (prefers-color-scheme: dark) { :root { --back: #161513; --card: #201f1c; --text: #ece9e2; --soft: #a09c93;
  --line: #3a3833; --tint: #2b2925; --on: #45423c; --right: #6cc08b; --wrong: #f08a7c; --doubt: #e0b050;
  --orange: #ff9a57; --blue: #74b9ff; } .light .picture { filter: brightness(.9); } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1rem 4rem; max-width: 72rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; letter-spacing: -.02em; text-wrap: balance; }
body > p { margin: .6rem 0 0; max-width: 46rem; color: var(--soft); }
body > p.summary { color: var(--text); font-weight: 600; }
b.attention { color: var(--orange); }
b.coverage { color: var(--blue); }
article { margin-top: 1.25rem; padding: 1rem 1.25rem 1.25rem; background: var(--card); border: 1px solid var(--line);
  border-left: 4px solid var(--edge, var(--line)); border-radius: 8px; }
.right { --edge: var(--right); }
.wrong, .unread { --edge: var(--wrong); }
.doubtful { --edge: var(--doubt); }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .1rem .9rem; margin-bottom: .9rem; }
h2 { margin: 0; font-size: 1.05rem; overflow-wrap: anywhere; }
h3 { margin: 1rem 0 .25rem; font-size: .8rem; font-weight: 600; color: var(--soft); }
section > h3:first-child { margin-top: 0; }
header strong { font-size: .9rem; color: var(--edge, inherit); }
header span { margin-left: auto; color: var(--soft); font-size: .85rem; font-variant-numeric: tabular-nums; }
.columns { display: grid; grid-template-columns: minmax(0, 1fr); gap: 1.25rem 2.5rem; }
@media (min-width: 48rem) { .columns { grid-template-columns: minmax(0, 1.1fr) minmax(0, 1fr); } }
figure { position: relative; isolation: isolate; margin: 0; }
.switch { display: flex; width: max-content; height: 1.9rem; margin-bottom: .7rem; padding: 2px;
  background: var(--tint); border-radius: 7px; }
.mode { display: block; padding: 0 .7rem; border-radius: 5px; color: var(--soft); font-size: .82rem;
  line-height: calc(1.9rem - 4px); }
.mode::before { content: ""; display: inline-block; width: .6rem; height: .6rem; margin-right: .4rem;
  border-radius: 50%; background: var(--attention); }
.coverage + .mode::before { background: var(--coverage); }
input:checked + .mode { background: var(--on); color: var(--text); box-shadow: 0 1px 2px rgb(0 0 0 / .18); }
output { position: absolute; top: 0; right: 0; max-width: calc(100% - 13.5rem); overflow: hidden; color: var(--soft);
  font-size: .82rem; line-height: 1.9rem; white-space: nowrap; text-overflow: ellipsis; visibility: hidden;
  font-variant-numeric: tabular-nums; }
output b { color: var(--text); font: 600 .9rem ui-monospace, monospace; }
.picture, .heat { display: block; width: min(100%, var(--width)); height: auto; aspect-ratio: var(--ratio);
  border-radius: 6px; }
.picture { box-shadow: 0 0 0 1px var(--line); }
.heat { position: absolute; top: 2.6rem; left: 0; opacity: 0; pointer-events: none; transition: opacity .12s; }
.light .heat { mix-blend-mode: multiply; }
.dark .heat { mix-blend-mode: screen; }
figure:has(.switch .attention:checked) .heat.coverage, figure:has(.switch .coverage:checked) .heat.attention {
  display: none; }
figcaption { display: flex; flex-wrap: wrap; gap: .3rem; margin-top: .9rem; }
label { cursor: pointer; }
input { position: absolute; opacity: 0; pointer-events: none; }
.chip { display: block; min-width: 1.9rem; padding: .1rem .5rem; border: 1px solid var(--line); border-radius: 5px;
  text-align: center; font: .85rem/1.5 ui-monospace, monospace; }
label:first-child > .chip { color: var(--soft); font-family: system-ui, sans-serif; }
.chip.low { border-style: dotted; border-width: 2px; padding: calc(.1rem - 1px) calc(.5rem - 1px);
  border-color: var(--doubt); }
figure { --accent: var(--attention); }
figure:has(.switch .coverage:checked) { --accent: var(--coverage); }
label:hover .chip { border-color: var(--accent); }
input:checked + .chip { border-color: var(--accent); background: color-mix(in srgb, var(--accent) 16%, transparent); }
input:focus-visible + span { outline: 2px solid var(--accent); outline-offset: 1px; }
input:checked ~ .heat { opacity: 1; }
input:checked ~ output { visibility: visible; }
figcaption:has(label:hover) .heat { opacity: 0; }
figcaption:has(label:hover) output { visibility: hidden; }
figcaption label:hover .heat { opacity: 1; }
figcaption label:hover output { visibility: visible; }
.formula { overflow-x: auto; overflow-y: hidden; padding: .35rem 0; font-size: 1.6rem; }
math[display=block] { display: block math; text-align: left; width: fit-content; }
code { font: .85rem/1.5 ui-monospace, monospace; color: var(--soft); overflow-wrap: anywhere; }
.note { margin: 0 0 .25rem; color: var(--wrong); font-size: .9rem; overflow-wrap: anywhere; }
details { margin-top: 1rem; font-size: .9rem; }
summary { cursor: pointer; color: var(--soft); }
.scroll { overflow-x: auto; }
table { margin-top: .4rem; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: baseline; white-space: nowrap; }
td:last-child { white-space: normal; min-width: 12rem; }
th { font-size: .8rem; font-weight: 600; color: var(--soft); }
@media (max-width: 30rem) { :is(th, td):is(:nth-child(2), :nth-child(3)) { display: none; } }
@media (prefers-reduced-motion: reduce) { .heat { transition: none; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Handwritten formulas, read by epigraph</title>
<style>{css}</style>
</head>
<body>
<h1>Handwritten formulas, read by epigraph</h1>
<p class=summary>{summary}</p>
<p>Choose a token under a picture, by pointer or arrow keys. <b class=attention>Attention</b> is where the model looked
as it wrote the token; <b class=coverage>coverage</b> is all it had looked at, from the first token up to this one.
Dotted tokens had a probability under 50 %. How sure a reading is says how likely all of it is right.</p>
{articles}
</body>
</html>
"""

__all__ = [
    "ATTENTION",
    "COVERAGE",
    "Example",
    "formula",
    "mathml",
    "new_page",
    "opaque",
    "overlay",
    "page",
    "read_to_page",
]
