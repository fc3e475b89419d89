"""An image becomes pixels, of which PixelViT reads all or a few: see which ones, what for, and where each looks.

    python app.py

The model is EPIGRAPH_MODEL (a folder or a name on the Hub), by default epigraph's own pixelvit-tiny.
"""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import gradio as gr
import numpy as np
import view
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from epigraph.models import PixelViTForImageClassification, PixelViTImageProcessor
from epigraph.reading import HUB_ORGANISATION, checkpoint_folder

HERE = Path(__file__).parent
EXAMPLES = {
    path.stem.partition("_")[2].replace("_", " ").capitalize(): path
    for path in sorted((HERE / "examples").glob("*.png"))
}
# One picture at a time, in the order of asking, since reading uses all cores. Who finds so many waiting is told so.
ONE_AT_A_TIME = {"concurrency_id": "read", "concurrency_limit": 1}
MOST_WAITING = 100
HOUR = 3600  # seconds, after which uploads are deleted
SELECTIONS = ["all", "ink", "edge", "saliency", "grid", "random"]
WHICH = "Ink is unlike the background, edges unlike their neighbours, salient pixels unlike the average."
WAITING = "Choose an example, or upload a picture."


def load(name: str | None):
    """The model, with attention that can be looked into, and its image processor; of the default if `name` is None."""
    beside = HERE.parents[1] / "checkpoints" / "pixelvit-tiny" if len(HERE.parents) > 1 else HERE
    if name is None:
        name = str(beside) if (beside / "config.json").is_file() else f"{HUB_ORGANISATION}/pixelvit-tiny"
    folder = checkpoint_folder(name)
    settings = {"attn_implementation": "eager", "use_safetensors": True, "trust_remote_code": False}
    model = AutoModelForImageClassification.from_pretrained(folder, **settings).eval()
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    if not isinstance(model, PixelViTForImageClassification) or not isinstance(processor, PixelViTImageProcessor):
        raise ValueError(f"{name}: this page shows PixelViT models for image classification; name one of these.")
    return model, processor


MODEL, PROCESSOR = load(os.environ.get("EPIGRAPH_MODEL"))
SIZE = (PROCESSOR.size["height"], PROCESSOR.size["width"])
PIXELS = SIZE[0] * SIZE[1]
START = (MODEL.config.pixel_selection, MODEL.config.num_selected_pixels or PIXELS // 4)
if START[0] not in SELECTIONS:  # random_fixed; a model that is not trained draws its random pixels once, too
    START = ("random", START[1])


def pixels_of(path: str | Path) -> np.ndarray:
    """A file as the model sees it before rescaling: (channels, height, width) uint8.

    Raises:
        ValueError: it cannot be read; one sentence that names the file.
    """
    try:
        values = PROCESSOR(Path(path), pixel_ids=True)["pixel_values"]
    except ValueError as error:
        reason = str(error).partition(" cannot be read: ")[2] or str(error)
        raise ValueError(f"{Path(path).name}: {reason} Upload a PNG, JPEG, WebP, TIFF, GIF or BMP.") from None
    return values[0].numpy().astype(np.uint8)


def has_light_background(pixels: np.ndarray) -> bool:
    """Whether most of the border of (channels, height, width) is bright; the examples are bright things on black."""
    border = (pixels[:, 0], pixels[:, -1], pixels[:, 1:-1, 0], pixels[:, 1:-1, -1])
    return bool(np.median(np.concatenate(border, axis=1)) > 127)


def look_at(path: str | Path, selection: str, count: int, invert: bool, asked: view.Place | None = None) -> view.Look:
    """Read a file; the arguments are those of `view.look_at`.

    Raises:
        ValueError: the file cannot be read, or has not so many pixels.
    """
    pixels = pixels_of(path)
    if invert:
        pixels = 255 - pixels
    values = PROCESSOR(pixels, do_resize=False, input_data_format="channels_first", return_tensors="pt")
    picture = np.moveaxis(pixels, 0, -1)
    return view.look_at(MODEL, values["pixel_values"], picture, selection, count, asked)


# ------------------------------------------------------------------------------------------------------------ page


def show(example: str, upload: str | None, selection: str, count: int, invert: bool, asked: str) -> tuple[str, str]:
    """The page's answer and pictures; an upload comes before an example."""
    path = upload or EXAMPLES.get(example)
    if path is None:
        return view.said(WAITING), ""
    try:
        look = look_at(path, selection, int(count), invert, place_of(asked))
    except ValueError as error:
        return view.said(str(error), wrong=True), ""
    return view.answer(look, MODEL.config, selection), view.pictures(look)


def show_example(example: str, selection: str, count: int, asked: str):
    """Of an example that was chosen; what was uploaded goes."""
    return None, False, *show(example, None, selection, count, False, asked)


def show_upload(upload: str, selection: str, count: int, asked: str):
    """Of an upload, inverted where its background is light; no example is chosen any more."""
    try:
        invert = has_light_background(pixels_of(upload))
    except ValueError:
        invert = False
    return "", invert, *show("", upload, selection, count, invert, asked)


def show_selection(example: str, upload: str | None, selection: str, count: int, invert: bool, asked: str):
    """Of another way to choose pixels; how many has no meaning for all of them."""
    return gr.Slider(interactive=selection != "all"), *show(example, upload, selection, count, invert, asked)


def place_of(asked: str) -> view.Place | None:
    """Row and column of "row,column", as chooser.js writes it; None for the whole image."""
    found = re.fullmatch(r"(\d{1,5}),(\d{1,5})", asked or "", re.ASCII)
    return tuple(min(int(value), last - 1) for value, last in zip(found.groups(), SIZE)) if found else None


# ------------------------------------------------------------------------------------------------------------- API


def answered(file: str | None, *settings) -> view.Look:
    """What cannot be read is an error of the request."""
    if not file:
        raise gr.Error("There is no file. Upload an image.", print_exception=False)
    try:
        return look_at(file, *settings)
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from None


# gradio shows these docstrings to callers and agents; of a parameter it takes one line.


def read_file(file: str | None, selection: str, count: int, invert: bool) -> dict:
    """Say what is in an image (PNG, JPEG, WebP, TIFF, GIF, BMP), from all of its pixels or from some of them.

    Args:
        file: the image file.
        selection: how pixels are chosen: all, ink, edge, saliency, grid or random.
        count: how many pixels are read, unless all are.
        invert: whether to exchange dark and bright first.

    Returns:
        classes (label and score of each, the most probable first), pixels_read, pixels
    """
    look = answered(file, selection, int(count or 0), invert)
    classes = [{"label": name, "score": score} for name, score in look.classes]
    return {"classes": classes, "pixels_read": len(look.coordinates), "pixels": PIXELS}


def read_attention(
    file: str | None, selection: str, count: int, invert: bool, row: int, column: int, layer: int, head: int
) -> dict:
    """Say where one pixel of an image looks while the image is classified.

    Args:
        file: the image file.
        selection: how pixels are chosen: all, ink, edge, saliency, grid or random.
        count: how many pixels are read, unless all are.
        invert: whether to exchange dark and bright first.
        row: of the pixel, from 0 at the top; -1 for the whole image.
        column: of the pixel, from 0 at the left; -1 for the whole image.
        layer: from 1; 0 for the average over layers.
        head: from 1; 0 for the average over heads.

    Returns:
        row and column (of the nearest pixel that was read), to_image_token, attention (rows of shares, null = unread)
    """
    layers, heads = MODEL.config.num_hidden_layers, MODEL.config.num_attention_heads
    numbers = [-2 if value is None else int(value) for value in (row, column, layer, head)]
    limits = {"row": (-1, SIZE[0] - 1), "column": (-1, SIZE[1] - 1), "layer": (0, layers), "head": (0, heads)}
    for (name, (low, high)), value in zip(limits.items(), numbers):
        if not low <= value <= high:
            raise gr.Error(f"{name} must be a whole number, {low} to {high}.", print_exception=False)
    asked = None if -1 in numbers[:2] else tuple(numbers[:2])
    look = answered(file, selection, int(count or 0), invert, asked)
    shares = np.full(SIZE, np.nan)
    shares[tuple(look.coordinates.T)] = view.averaged(look.attention, *numbers[2:])
    row, column = look.place or (-1, -1)
    token = None if look.to_token is None else float(view.averaged(look.to_token, *numbers[2:]))
    attention = [[None if np.isnan(share) else round(float(share), 6) for share in line] for line in shares]
    return {"row": row, "column": column, "to_image_token": token, "attention": attention}


# ------------------------------------------------------------------------------------------------------------ app

PLAIN = {"apply_default_css": False, "js_on_load": None, "padding": False}  # of HTML that has its own style


def script(name: str) -> dict:
    """As `PLAIN`, for HTML with a script of its own."""
    return PLAIN | {"js_on_load": (HERE / name).read_text(encoding="utf-8")}


def example_chooser() -> gr.HTML:
    """The examples as radio buttons; its value is the name of the one chosen, empty while an upload is shown."""
    entries = [{"name": name, "uri": view.data_uri(Image.open(path))} for name, path in EXAMPLES.items()]
    template = (
        "<fieldset class=examples><legend>Examples</legend>{{#each entries}}<label title='{{name}}'>"
        "<input type=radio name=example value='{{name}}'><img src='{{uri}}' alt=''><span>{{name}}</span></label>"
        "{{/each}}</fieldset>"
    )
    return gr.HTML(next(iter(EXAMPLES)), html_template=template, entries=entries, **script("examples.js"))


with gr.Blocks(title="PixelViT: pixels as tokens", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as app:
    gr.HTML(
        "<h1>Pixels as tokens</h1><p>PixelViT reads an image pixel by pixel, all of them or a chosen few. See which "
        "it read, what it takes the picture for, and where each pixel looks.</p>",
        elem_classes="title",
        **PLAIN,
    )
    with gr.Row(equal_height=False, elem_classes="columns"):
        with gr.Column(min_width=320):
            example = example_chooser()
            upload = gr.File(label="Or a picture of your own", file_types=["image"], height=132)
        with gr.Column(min_width=320):
            selection = gr.Radio(
                [(name.capitalize(), name) for name in SELECTIONS],
                value=START[0],
                label="Which pixels are read",
                info=WHICH,
            )
            count = gr.Slider(1, PIXELS, START[1], step=1, label="How many", interactive=START[0] != "all")
            invert = gr.Checkbox(False, label="Exchange dark and bright, for a picture with a light background")
            first = show(next(iter(EXAMPLES), ""), None, *START, False, "")
            answer = gr.HTML(first[0], **PLAIN)
    gr.HTML("<h2>Which pixels were read, and where one looks</h2>", elem_classes="title", **PLAIN)
    last_row, last_column = SIZE[0] - 1, SIZE[1] - 1
    template = (HERE / "chooser.html").read_text(encoding="utf-8")
    asked = gr.HTML("", html_template=template, last_row=last_row, last_column=last_column, **script("chooser.js"))
    pictures = gr.HTML(first[1], **PLAIN)

    settings = [example, upload, selection, count, invert, asked]
    of_page = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "always_last", **ONE_AT_A_TIME}
    shown = [answer, pictures]
    example.choose(show_example, [example, selection, count, asked], [upload, invert, *shown], **of_page)
    upload.upload(show_upload, [upload, selection, count, asked], [example, invert, *shown], **of_page)
    upload.clear(show, settings, shown, **of_page)
    selection.input(show_selection, settings, [count, *shown], **of_page)
    count.input(show, settings, shown, **of_page)
    invert.input(show, settings, shown, **of_page)
    asked.change(show, settings, shown, **of_page)

    with gr.Row(visible=False):
        # Through components: they see to it that a file is one that was uploaded, and no path of this machine.
        wanted = [
            gr.File(label="file"),
            gr.Radio(SELECTIONS, value=START[0], label="selection"),
            gr.Number(START[1], label="count", precision=0),
            gr.Checkbox(False, label="invert"),
        ]
        given = gr.JSON(label="reading")
        gr.Button().click(read_file, wanted, given, api_name="read_file", **ONE_AT_A_TIME)
        wanted += [
            gr.Number(value, label=name, precision=0)
            for name, value in (("row", -1), ("column", -1), ("layer", 0), ("head", 0))
        ]
        gr.Button().click(read_attention, wanted, given, api_name="read_attention", **ONE_AT_A_TIME)

SYSTEM_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # nothing is fetched

if __name__ == "__main__":
    app.queue(max_size=MOST_WAITING).launch(
        theme=gr.themes.Default(primary_hue="orange", neutral_hue="stone", **SYSTEM_FONTS),
        css_paths=HERE / "style.css",
        max_file_size="20mb",
        ssr_mode=False,
        mcp_server=find_spec("mcp") is not None,  # the Hub installs gradio[mcp]
    )
