"""A word in a picture becomes text, and every correction an example for the words that look like it.

    python app.py

The model is EPIGRAPH_MODEL (a folder or a name on the Hub), by default epigraph's own E2STR.
"""

import base64
import os
import shutil
import tempfile
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import gradio as gr
import view
import visit as visits
from visit import Visit

import epigraph
from epigraph.inputs import IMAGE_FORMATS
from epigraph.reading import load

HERE = Path(__file__).parent
EXAMPLES = {name: sorted((HERE / "examples").glob(f"{name}_*.png")) for name in ("ordinary", "rounded", "discs")}
# One at a time, in the order of asking, since reading uses all cores. Who finds so many waiting is told so.
ONE_AT_A_TIME = {"concurrency_id": "read", "concurrency_limit": 1}
MOST_WAITING = 100
MOST_VISITS = 1000  # that are kept; the one that was longest idle makes room
MOST_EXAMPLES = 8  # for a word
HOUR = 3600  # seconds, after which uploads are deleted
MODEL, PROCESSOR = load(os.environ.get("EPIGRAPH_MODEL"), "word")
ENCODE = epigraph.encoder(MODEL, PROCESSOR)
OUTBOX = tempfile.TemporaryDirectory(prefix="epigraph-pools-")  # of pools that programs asked for


def new_visit() -> Visit:
    return Visit(MODEL, PROCESSOR, ENCODE)


# ------------------------------------------------------------------------------------------------------------ page


def shown(visit: Visit, message: str = "", wrong: bool = False) -> tuple:
    """What every event gives: the state, what was done, the words, the answer and the pool."""
    return visit, view.said(message, wrong), view.words(visit), view.answer(visit), view.pool(visit)


def open_files(paths: list[Path]) -> tuple[list, list[str]]:
    """Names and pictures of files, and what is wrong with the others."""
    pictures, wrong = [], []
    for path in paths:
        try:
            pictures.append((path.name, visits.picture_of(path, path.name)))
        except ValueError as error:
            wrong.append(f"{error} Upload images ({', '.join(IMAGE_FORMATS)}) of single words.")
    return pictures, wrong


def show_files(visit: Visit | None, files: list[str] | None) -> tuple:
    """Read what was uploaded or pasted; the files themselves are not kept."""
    visit, paths = visit or new_visit(), [Path(file) for file in files or []]
    pictures, wrong = open_files(paths[: visits.MOST_WORDS])
    for path in paths:
        path.unlink(missing_ok=True)
    if len(paths) > visits.MOST_WORDS:
        wrong.append(f"Only the first {visits.MOST_WORDS} of {len(paths)} files were read; that many are shown.")
    if pictures:
        visit.read(pictures)
    more = f" And {len(wrong) - 1} more cannot be read." if len(wrong) > 1 else ""
    return None, *shown(visit, f"{wrong[0]}{more}" if wrong else _outcome(visit, len(pictures)), bool(wrong))


def _outcome(visit: Visit, count: int) -> str:
    if count != 1:
        return f"{count} words were read."
    reading = visit.chosen.reading
    kind = "doubtful" if view.doubtful(reading) else "probably right"
    return f"It says {reading.text or 'nothing'}, {kind}: {view.percent(reading.score)}."


def show_pool(visit: Visit | None, file: str | None) -> tuple:
    """Add the words of an uploaded pool."""
    visit = visit or new_visit()
    if not file:
        return shown(visit)
    try:
        added = visit.add(visits.unpacked(file, Path(file).name))
    except ValueError as error:
        return shown(visit, str(error), wrong=True)
    finally:
        Path(file).unlink(missing_ok=True)
    came = "One word came" if added == 1 else f"{added} words came"
    return shown(visit, f"{came} into your pool. {changes(visit)}")


def show_number(visit: Visit | None, k: int) -> tuple:
    """Read with another number of examples."""
    visit = visit or new_visit()
    visit.k = min(max(int(k or 0), 0), MOST_EXAMPLES)
    return shown(visit, changes(visit) if visit.words else "")


def changes(visit: Visit) -> str:
    """Read all words anew; what that changed, in a sentence."""
    changed = visit.read_anew()
    if not visit.words:
        return ""
    first = [f"{word.before.text or 'nothing'} → {word.reading.text or 'nothing'}" for word in changed[:3]]
    count = f"{len(visit.words)} words were" if len(visit.words) > 1 else "One word was"
    if not changed:
        return f"{count} read anew; none changed."
    return f"{count} read anew; {len(changed)} changed: {', '.join(first)}{' …' if len(changed) > 3 else '.'}"


# What buttons of the page do (`data-act`), by their value and the number of the word that they belong to; each gives
# a sentence, or raises a ValueError that says what is wrong.


def choose(visit: Visit, value: str, word: str = "") -> str:
    found = [known for known in visit.words if str(known.number) == value]
    if not found:
        raise ValueError("That word is not shown any more; upload it again.")
    visit.chosen = found[0]
    return ""


def teach(visit: Visit, value: str, word: str) -> str:
    choose(visit, word)
    if not value.strip():
        raise ValueError("Write what the picture says first.")
    if not visit.teach(visit.chosen, value):
        return f"Your pool has this picture as {value.strip()} already."
    return f"{value.strip()} is in your pool now. {changes(visit)}"


def remove(visit: Visit, value: str, word: str) -> str:
    try:
        visit.remove(value)
    except KeyError:  # pressed twice
        return ""
    return f"Removed. {changes(visit)}"


def undo(visit: Visit, value: str, word: str) -> str:
    visit.undo()
    return f"Taken back. {changes(visit)}"


def clear(visit: Visit, value: str, word: str) -> str:
    visit.clear()
    return f"Your pool is empty. {changes(visit)}"


def example(visit: Visit, value: str, word: str) -> str:
    pictures, _ = open_files(EXAMPLES.get(value, []))
    visit.read([(path.stem, picture) for path, (_, picture) in zip(EXAMPLES.get(value, []), pictures)])
    return f"{len(pictures)} words were read. Correct one, and see what becomes of the others."


def paste(visit: Visit, value: str, word: str) -> str:
    if value == "empty":
        raise ValueError("There is no picture in the clipboard. Copy one first.")
    raise ValueError("The browser does not let this page look into the clipboard. Press Ctrl+V, or upload a file.")


ACTS = {act.__name__: act for act in (choose, teach, remove, undo, clear, example, paste)}


def show_act(visit: Visit | None, pressed: gr.EventData) -> tuple:
    """Do what a button says; desk.js tells which."""
    visit = visit or new_visit()
    try:
        act, value, word = ACTS[pressed.act], str(pressed.value), str(pressed.word)
    except (AttributeError, KeyError, TypeError):
        return shown(visit, "This page does not know that button; reload it.", wrong=True)
    try:
        return shown(visit, act(visit, value, word))
    except ValueError as error:
        return shown(visit, str(error), wrong=True)


def save_pool(visit: Visit | None) -> str:
    """The pool as base64 of a zip archive, which saver.js makes a file of."""
    return base64.b64encode(visits.packed(visit.folder)).decode() if visit and len(visit.pool) else ""


# ------------------------------------------------------------------------------------------------------------- API


def opened(visit: Visit, file: str | None, pool: str | None):
    """The picture of a file; the words of a pool come into the visit's. What is wrong is an error of the request."""
    if not file:
        raise gr.Error("There is no file. Upload an image of a word.", print_exception=False)
    try:
        if pool:
            visit.add(visits.unpacked(pool, Path(pool).name))
        return visits.picture_of(file, Path(file).name)
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from None


# gradio shows these docstrings to callers and agents; of a parameter it takes one line.


def read_file(file: str | None, pool: str | None, k: int) -> dict:
    """Read the word in an image (PNG, JPEG, WebP, TIFF, GIF, BMP), with labelled examples that look like it.

    Args:
        file: the image of one word.
        pool: a zip archive with examples, as this page saves it and add_to_pool gives it; none is needed.
        k: how many examples the word is read with, 0 to 8.

    Returns:
        text, score (probability that it is right), doubtful, char_scores, n_best, plain_text and plain_score (without
        examples), examples (text, similarity and source of each)
    """
    if k is None or not 0 <= k <= MOST_EXAMPLES:
        raise gr.Error(f"k must be a whole number, 0 to {MOST_EXAMPLES}.", print_exception=False)
    with closing(new_visit()) as visit:
        picture = opened(visit, file, pool)
        visit.k = int(k)
        visit.read([(Path(file).name, picture)])
        reading = visit.chosen.reading
    keys = ("text", "score", "char_scores", "plain_text", "plain_score")
    return {key: getattr(reading, key) for key in keys} | {
        "doubtful": view.doubtful(reading),
        "n_best": [{"text": other.text, "score": other.score} for other in reading.n_best],
        "examples": [
            {"text": used.text, "similarity": used.similarity, "source": used.source} for used in reading.examples
        ],
    }


def add_to_pool(file: str | None, text: str, pool: str | None) -> str:
    """Put an image of a word into a pool of examples, with what it says; a wrong text of the same image is replaced.

    Args:
        file: the image of one word.
        text: what it says.
        pool: a zip archive with the examples so far; a new pool is begun where there is none.

    Returns:
        the pool as a zip archive, for read_file and for the command epigraph pool
    """
    with closing(new_visit()) as visit:
        picture = opened(visit, file, pool)
        try:
            visit.add([(visits.encoded(picture), text or "", "corrected")])
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None
        content = visits.packed(visit.folder)
    # One request is answered at a time, and its file copied: those before are not needed any more.
    shutil.rmtree(OUTBOX.name, ignore_errors=True)
    Path(OUTBOX.name).mkdir()
    path = Path(OUTBOX.name) / "pool.zip"
    path.write_bytes(content)
    return str(path)


# ------------------------------------------------------------------------------------------------------------ app

PLAIN = {"apply_default_css": False, "js_on_load": None, "padding": False}  # of HTML that has its own style


def script(name: str) -> dict:
    """As `PLAIN`, for HTML with a script of its own."""
    return PLAIN | {"js_on_load": (HERE / name).read_text(encoding="utf-8")}


with gr.Blocks(title="Word reader that learns", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as app:
    gr.HTML(
        "<h1>Words in pictures, learned from corrections</h1><p>E2STR reads a word with examples beside it. Correct "
        "one, and it is an example for the words that look like it, at once and without training.</p>",
        elem_classes="title",
        **PLAIN,
    )
    state = gr.State(time_to_live=2 * HOUR, delete_callback=lambda visit: visit and visit.close())
    with gr.Row(equal_height=False, elem_classes="columns"):
        with gr.Column(elem_classes="in"):
            files = gr.File(
                label="Pictures of words",
                file_types=["image"],
                file_count="multiple",
                height=132,
                elem_classes="pictures",
            )
            gr.HTML(view.sources(EXAMPLES), **PLAIN)
            number = gr.Slider(0, MOST_EXAMPLES, 2, step=1, label="Examples for each word")
        with gr.Column(elem_classes="out"):
            words = gr.HTML(**PLAIN)
            answer = gr.HTML(view.NO_WORD, **script("fields.js"))
        with gr.Column(elem_classes="kept"):
            pool = gr.HTML(view.pool(None), **PLAIN)
    pool_file = gr.UploadButton("Add from a file", file_types=[".zip"], elem_classes="pool-file")
    message = gr.HTML(view.said(""), elem_classes="message", **script("message.js"))
    desk = gr.HTML("", html_template="", **script("desk.js"))
    saver = gr.HTML("", html_template="", **script("saver.js"))

    of_page = {"api_visibility": "private", **ONE_AT_A_TIME}
    outputs = [state, message, words, answer, pool]
    quiet = {"show_progress": "hidden", **of_page}
    files.upload(show_files, [state, files], [files, *outputs], trigger_mode="multiple", **quiet)
    desk.act(show_act, state, outputs, trigger_mode="multiple", **quiet)
    desk.save(save_pool, state, saver, trigger_mode="once", **quiet)
    number.change(show_number, [state, number], outputs, trigger_mode="always_last", **quiet)
    pool_file.upload(show_pool, [state, pool_file], outputs, show_progress_on=message, **of_page)

    with gr.Row(visible=False):
        # Through components: they see to it that a file is one that was uploaded, and no path of this machine.
        wanted, text = gr.File(label="file"), gr.Textbox(label="text")
        examples, k = gr.File(label="pool"), gr.Number(2, label="k", precision=0)
        reading, archive = gr.JSON(label="reading"), gr.File(label="pool")
        gr.Button().click(read_file, [wanted, examples, k], reading, api_name="read_file", **ONE_AT_A_TIME)
        gr.Button().click(add_to_pool, [wanted, text, examples], archive, api_name="add_to_pool", **ONE_AT_A_TIME)

SYSTEM_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # nothing is fetched

if __name__ == "__main__":
    app.queue(max_size=MOST_WAITING).launch(
        theme=gr.themes.Default(primary_hue="orange", neutral_hue="stone", **SYSTEM_FONTS),
        css_paths=HERE / "style.css",
        max_file_size="20mb",
        ssr_mode=False,
        mcp_server=find_spec("mcp") is not None,  # the Hub installs gradio[mcp]
        state_session_capacity=MOST_VISITS,
    )
