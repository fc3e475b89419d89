"""Handwritten formulas become LaTeX: draw, or upload an image or digital ink; see what the model looked at.

    python app.py

The model is EPIGRAPH_MODEL (a folder or a name on the Hub), by default epigraph's own CoMER.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import gradio as gr
import view

from epigraph.data.ink import Ink, InkError, read_json
from epigraph.inputs import IMAGE_FORMATS
from epigraph.reading import FormulaReading, load, read_all
from epigraph.report import mathml

HERE = Path(__file__).parent
INK_FILES = (".inkml", ".json")
N_BEST = 5
MIN_SCORE = 0.5  # below it a reading is more often wrong than right
# One formula at a time, in the order of asking, since a reading uses all cores. Who finds so many waiting is
# told so.
ONE_AT_A_TIME = {"concurrency_id": "read", "concurrency_limit": 1}
MOST_WAITING = 100
HOUR = 3600  # seconds, after which uploads are deleted
Shown = tuple[str, str, str]  # of the page: answer, readings, where the model looked
MODEL, PROCESSOR = load(os.environ.get("EPIGRAPH_MODEL"))


def read_one(source: Ink | Path | bytes, name: str) -> FormulaReading:
    """What cannot be read has a sentence in `error`."""
    settings = {"n_best": N_BEST, "min_score": MIN_SCORE, "explain": True}
    return next(read_all([source], MODEL, PROCESSOR, names=[name], **settings))


def read_strokes(strokes: str) -> FormulaReading:
    """Read JSON strokes. A drawing, a JSON file and InkML with the same strokes give the same reading."""
    try:
        return read_one(read_json(strokes.encode(errors="replace"), name="your strokes"), "your strokes")
    except InkError as error:
        return FormulaReading("your strokes", error=str(error))


def read_upload(path: str) -> FormulaReading:
    """Read an uploaded file: by its ending, or by its content where the ending says nothing."""
    path = Path(path)
    known = path.suffix.lower() in (*IMAGE_FORMATS, *INK_FILES)
    reading = read_one(path if known else path.read_bytes(), path.name)
    if reading.error:
        reading.error += f" Upload an image ({', '.join(IMAGE_FORMATS)}) or ink ({', '.join(INK_FILES)})."
    return reading


# ------------------------------------------------------------------------------------------------------------ page


def shown(reading: FormulaReading, ink: bool) -> Shown:
    if reading.error or not reading.text:
        return view.alert(reading.error or f"No formula was found in {reading.name}; write it larger."), "", ""
    return view.answer(reading), view.readings(reading), view.look(reading, ink)


def show_drawing(strokes: str) -> Shown:
    """While it is drawn; an empty pad waits."""
    return shown(read_strokes(strokes), ink=True) if strokes else (view.WAITING, "", "")


def show_drawing_on_demand(strokes: str) -> Shown:
    """By the Read button; an empty pad is a mistake."""
    if not strokes:
        return view.alert("The pad is empty. Draw a formula first, or upload a file."), "", ""
    return show_drawing(strokes)


def show_upload(path: str | None) -> Shown:
    if not path:
        return show_nothing()
    return shown(read_upload(path), ink=path.lower().endswith(INK_FILES))


def show_nothing() -> Shown:
    return view.WAITING, "", ""


def pad() -> gr.HTML:
    """The stroke pad with our own examples; its value is JSON strokes, empty as long as nothing is drawn."""
    examples = []
    for path in sorted((HERE / "examples").glob("*.json")):
        strokes = [stroke.tolist() for stroke in read_json(path).strokes]
        right, bottom = (max(point[axis] for stroke in strokes for point in stroke) for axis in (0, 1))
        lines = [" ".join(f"{x:g},{y:g}" for x, y in stroke) for stroke in strokes]
        examples.append({"name": path.stem, "box": f"-20 -20 {right + 40:g} {bottom + 40:g}", "lines": lines})
    template, script = (HERE / name for name in ("pad.html", "pad.js"))
    return gr.HTML(
        "",
        label="Drawing",
        html_template=template.read_text(encoding="utf-8"),
        js_on_load=script.read_text(encoding="utf-8"),
        apply_default_css=False,
        padding=False,
        examples=examples,
    )


# ------------------------------------------------------------------------------------------------------------- API


def answered(reading: FormulaReading) -> dict:
    """A reading as JSON; what cannot be read is an error of the request."""
    if reading.error:
        raise gr.Error(reading.error, print_exception=False)
    return {
        "text": reading.text,
        "score": reading.score,
        "doubtful": reading.doubtful,
        "mathml": mathml(reading.text),
        "n_best": [{"text": candidate.text, "score": candidate.score} for candidate in reading.n_best],
    }


# gradio shows these docstrings to callers and agents; of a parameter it takes one line.


def read_ink(strokes: str) -> dict:
    """Read a handwritten formula from pen strokes, as LaTeX.

    Args:
        strokes: JSON, {"strokes": [[[x, y], ...], ...]}: the points of each movement of the pen, y down, any unit

    Returns:
        text (LaTeX), score (probability that it is right), doubtful (score under 0.5), mathml, n_best (five readings)
    """
    if not isinstance(strokes, str):
        raise gr.Error("your strokes: not a string; send the JSON text of the strokes.", print_exception=False)
    return answered(read_strokes(strokes))


def read_file(file: str | None) -> dict:
    """Read a handwritten formula from an image (PNG, JPEG, WebP, TIFF, GIF, BMP), InkML or JSON strokes, as LaTeX.

    Args:
        file: the image or ink file.

    Returns:
        text (LaTeX), score (probability that it is right), doubtful (score under 0.5), mathml, n_best (five readings)
    """
    if not file:
        raise gr.Error("There is no file. Upload an image, InkML, or strokes as JSON.", print_exception=False)
    return answered(read_upload(file))


# ------------------------------------------------------------------------------------------------------------ app

PLAIN = {"apply_default_css": False, "js_on_load": None, "padding": False}  # of HTML that has its own style

with gr.Blocks(title="Handwritten formulas to LaTeX", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as app:
    gr.HTML(
        "<h1>Handwritten formulas to LaTeX</h1><p>Draw, and it is read stroke by stroke. Or upload a photograph, "
        "an image, or digital ink.</p>",
        elem_classes="title",
        **PLAIN,
    )
    with gr.Row(equal_height=False, elem_classes="columns"):
        with gr.Column(min_width=320), gr.Tabs():
            with gr.Tab("Draw") as draw_tab:
                drawing = pad()
            with gr.Tab("Upload") as upload_tab:
                upload = gr.File(label="Image, InkML or JSON strokes", file_types=["image", *INK_FILES], height=220)
        with gr.Column(min_width=320):
            answer = gr.HTML(view.WAITING, **PLAIN | {"js_on_load": (HERE / "copy.js").read_text(encoding="utf-8")})
            readings = gr.HTML(**PLAIN)
    looked = gr.HTML(**PLAIN)

    outputs = [answer, readings, looked]
    of_page = {"outputs": outputs, "api_visibility": "private", "show_progress": "hidden", **ONE_AT_A_TIME}
    drawing.change(show_drawing, drawing, trigger_mode="always_last", **of_page)
    drawing.submit(show_drawing_on_demand, drawing, trigger_mode="once", **of_page)
    upload.upload(show_upload, upload, trigger_mode="always_last", **of_page)
    upload.clear(show_nothing, **of_page)
    # What is shown is always that of the tab in front.
    draw_tab.select(show_drawing, drawing, trigger_mode="always_last", **of_page)
    upload_tab.select(show_upload, upload, trigger_mode="always_last", **of_page)

    gr.api(read_ink, api_name="read_ink", **ONE_AT_A_TIME)
    with gr.Row(visible=False):
        # Through components: they see to it that a file is one that was uploaded, and no path of this machine.
        asked, given = gr.File(label="file"), gr.JSON(label="reading")
        gr.Button().click(read_file, asked, given, api_name="read_file", **ONE_AT_A_TIME)

SYSTEM_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # nothing is fetched

if __name__ == "__main__":
    app.queue(max_size=MOST_WAITING).launch(
        theme=gr.themes.Default(primary_hue="orange", neutral_hue="stone", **SYSTEM_FONTS),
        css_paths=HERE / "style.css",
        max_file_size="20mb",
        ssr_mode=False,
        mcp_server=find_spec("mcp") is not None,  # the Hub installs gradio[mcp]
    )
