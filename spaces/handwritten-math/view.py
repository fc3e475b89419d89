"""What the page shows of a reading, as HTML without scripts: the formula, how sure it is, where the model looked."""

import base64
import html
import io
import math

from PIL import Image, ImageFilter, ImageOps

from epigraph.reading import FormulaReading
from epigraph.report import ATTENTION, COVERAGE, heat_uri, is_light, mathml, opaque

WAITING = "<div class=answer><div role=status><p class=soft>The formula appears here as you draw.</p></div></div>"


def alert(message: str) -> str:
    """A sentence in place of an answer; screen readers say it at once."""
    return f"<div class=answer><div role=status><p class=alert role=alert>{html.escape(message)}</p></div></div>"


def answer(reading: FormulaReading) -> str:
    """The formula, rendered, in words and numbers how far to trust it, and LaTeX and MathML to copy (`copy.js`)."""
    percent = f"{100 * reading.score:.0f} %"
    words = "Doubtful" if reading.doubtful else "Probably right"
    advice = " Compare the other readings, or write it again." if reading.doubtful else ""
    return (
        f"<div class=answer><div role=status><div class=formula>{_formula(reading.text)}</div>"
        f"<p class=confidence><meter low=0.5 high=0.5 optimum=1 value={reading.score:.3f} aria-hidden=true></meter>"
        f"<span><b>{words}: {percent}</b> confidence.{advice}</span></p></div>"
        f"{_field('LaTeX', reading.text)}{_field('MathML', mathml(reading.text) or '')}</div>"
    )


def _field(name: str, content: str) -> str:
    return (
        f"<div class=field><label for={name}>{name}</label><button type=button>Copy {name}</button>"
        f"<textarea id={name} rows=1 readonly spellcheck=false>{html.escape(content)}</textarea></div>"
    )


def readings(reading: FormulaReading) -> str:
    """The n best, best first."""
    rows = "".join(
        f"<tr><td>{_percent(candidate.score)}<td>{_formula(candidate.text)}"
        f"<td><code>{html.escape(candidate.text)}</code>"
        for candidate in reading.n_best
    )
    return (
        "<section class=readings><h2 class=part>Best readings</h2>"
        f"<table><thead><tr><th>Score<th>Formula<th>LaTeX</thead><tbody>{rows}</tbody></table></section>"
    )


def _percent(score: float) -> str:
    return f"{100 * score:.1f} %" if score >= 0.001 else "< 0.1 %"


def _formula(latex: str) -> str:
    """MathML; of what cannot be rendered, the LaTeX itself."""
    return mathml(latex) or f"<code>{html.escape(latex)}</code>"


def look(reading: FormulaReading, ink: bool) -> str:
    """The picture, and under it the tokens: each lays a map of attention or of coverage over the picture.

    Args:
        reading: read with `explain=True`.
        ink: whether the picture is of strokes, black on white; they are then shown in the colours of the page.
    """
    if ink:
        strokes = ImageOps.invert(reading.image).filter(ImageFilter.MedianFilter(5))  # closes the notches of joints
        kind, picture = "ink", Image.merge("LA", (Image.new("L", strokes.size), strokes))
    else:
        picture = opaque(reading.image)
        kind = "bright" if is_light(picture) else "dim"
    width, height = picture.size
    tokens = reading.text.split()
    chips = []
    for index, (token, score) in enumerate(zip(tokens, reading.token_scores)):
        name, probability = html.escape(token), math.exp(score)
        heats = "".join(
            f'<img class="heat {label}" alt="" src="{heat_uri(maps[index], color, peak)}">'
            for label, maps, color, peak in (
                ("attention", reading.attentions, ATTENTION, None),
                ("coverage", reading.coverages, COVERAGE, float(reading.coverages[-1].max())),
            )
        )
        chips.append(
            f'<label title="{name}: {probability:.0%}"><input type=radio name=token value={index} '
            f'aria-label="{name}, {probability:.0%} sure"{" checked" if index == 0 else ""}>'
            f'<span class="chip{" unsure" if probability < 0.5 else ""}">{name}</span>{heats}</label>'
        )
    kinds = "".join(
        f"<label><input type=radio name=kind value={value}{checked}><span class=choice>{words}</span></label>"
        for value, checked, words in (
            ("attention", " checked", "Attention"),
            ("coverage", "", "Coverage"),
        )
    )
    return (
        "<h2 class=part>What the model looked at</h2>"
        f'<div class=look style="--width: {0.75 * width if ink else width:.0f}px; --ratio: {width} / {height}">'
        f'<img class="picture {kind}" src="{_data_uri(picture)}" width={width} height={height} alt="what was read">'
        f"<fieldset><legend>Show the model's</legend>{kinds}</fieldset>"
        f"<fieldset><legend>for the token</legend>{''.join(chips)}</fieldset>"
        "<p class=soft>Attention: where it looked as it wrote the token. Coverage: all that it had looked at by then. "
        "Of a dashed token it was less than 50 % sure.</p></div>"
    )


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
