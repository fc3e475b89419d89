"""Reading: every kind of input by one road, bad input by name, checkpoints complete or refused."""

import io
import json
import math
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from drawings import BAR, PLUS, STEPS, TEXTS, WAVE
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

import epigraph
from epigraph import inputs, reading, reading_formulas
from epigraph.data.ink import Ink, render
from epigraph.models.modeling_comer import CoMERForConditionalGeneration

FAST = {"num_beams": 2, "max_length": 10}
INKML = '<ink xmlns="http://www.w3.org/2003/InkML"><trace id="0">0 20, 40 20</trace><trace>20 0, 20 40</trace></ink>'


@pytest.fixture(scope="module")
def loaded(reader):
    return reading.load(reader)


@pytest.fixture
def read(loaded):
    model, processor = loaded
    return lambda inputs, **settings: epigraph.read(inputs, model, processor=processor, **{**FAST, **settings})


@pytest.fixture
def drawing():
    return render(WAVE)


def saved(image, path, **options):
    image.save(path, **options)
    return str(path)


def png_header(width, height):
    """A PNG that claims a size, and whose pixels nobody should come to decode."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    end = b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0" + end
    )


# --------------------------------------------------------------------------------------------------- good input


def test_one_formula_reads_the_same_in_every_form(read, tmp_path):
    (tmp_path / "plus.inkml").write_text(INKML)
    (tmp_path / "plus.json").write_text(json.dumps({"strokes": PLUS, "text": "+"}))
    image = render(PLUS)
    array = np.asarray(image)
    forms = [
        str(tmp_path / "plus.inkml"),
        tmp_path / "plus.json",
        INKML.encode(),
        json.dumps(PLUS).encode(),
        INKML.encode("utf-16"),
        json.dumps(PLUS).encode("utf-16"),
        Ink([np.array(stroke, dtype=np.float32) for stroke in PLUS]),
        PLUS,
        [np.array(stroke, dtype=np.float32) for stroke in PLUS],
        [[0, 20, 40, 20], [20, 0, 20, 40]],
        image,
        array,
        np.repeat(array[..., None], 3, axis=2),
        array[None],
        torch.from_numpy(array.copy()).float() / 255,
        saved(image, tmp_path / "plus.png"),
        saved(image, tmp_path / "plus.bmp"),
        (tmp_path / "plus.png").read_bytes(),
    ]
    results = read(forms)
    assert len(results) == len(forms)
    assert {result.error for result in results} == {None}
    assert {result.text for result in results} == {"+"}
    assert read(PLUS).text == "+", "a list of strokes is one input"
    names = [*map(str, forms[:2]), "input 3", "input 4", "input 5", "input 6", "ink", "input 8"]
    assert [result.name for result in results[:8]] == names


DOTTED = [*STEPS, [(100, 12.5)], [(130, 40), (130, 40), (134, 46)]]  # steps, a dot, and a pen that hesitates


def inkml(strokes, point="{x:g} {y:g}", head="", tag="", namespace="xmlns", group=False):
    """The strokes as InkML; `tag` is a namespace prefix."""
    traces = ""
    for number, stroke in enumerate(strokes):
        text = ",\n".join(point.format(x=x, y=y, t=12 * place) for place, (x, y) in enumerate(stroke))
        trace = f'<{tag}trace xml:id="t{number}" brushRef="#none">\n {text} </{tag}trace>'
        traces += f"<{tag}traceGroup><{tag}traceGroup>{trace}</{tag}traceGroup></{tag}traceGroup>" if group else trace
    return f'<{tag}ink {namespace}="http://www.w3.org/2003/InkML">{head}{traces}</{tag}ink>'


def channels(names):
    inside = "".join(f"<channel name='{name}'/>" for name in names)
    return f"<traceFormat>{inside}</traceFormat>"


def differences(strokes):
    """First points as they are, all others by what has changed, as section 3.2.1 of the specification has it."""
    traces = ""
    for stroke in strokes:
        (x, y), *_ = stroke
        steps = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(stroke, stroke[1:])]
        coded = [
            f"{x:g} {y:g}",
            *(f"'{dx:g}'{dy:g}" for dx, dy in steps[:1]),
            *(f"{dx:g} {dy:g}" for dx, dy in steps[1:]),
        ]
        traces += f"<trace>{','.join(coded)}</trace>"
    return f"<ink>{traces}</ink>"


def test_one_ink_gives_one_answer_in_every_form(loaded, tmp_path):
    flat = [[value for point in stroke for value in point] for stroke in DOTTED]
    upside_down = [[(x, -y) for x, y in stroke] for stroke in DOTTED]
    turned = '<traceFormat><channel name="X"/><channel name="Y" orientation="-ve"/></traceFormat>'
    texts = {
        "nested.json": json.dumps(DOTTED),
        "flat.json": json.dumps(flat, indent=1),
        "object.json": json.dumps({"text": "?", "strokes": DOTTED, "more": {}}),
        "plain.inkml": inkml(DOTTED),
        "prefixed.inkml": inkml(DOTTED, tag="i:", namespace="xmlns:i"),
        "bare.inkml": inkml(DOTTED).replace(' xmlns="http://www.w3.org/2003/InkML"', ""),
        "grouped.inkml": inkml(DOTTED, group=True),
        "time.inkml": inkml(DOTTED, "{x:.3f} {y:.3f} {t} 0.5", channels("XYTF")),
        "columns.inkml": inkml(DOTTED, "{t} {y:e} {x:e}", channels("TYX")),
        "differences.inkml": differences(DOTTED),
        "upwards.inkml": inkml(upside_down, head=turned),
    }
    forms = []
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        forms += [tmp_path / name, text.encode()]
    arrays = [np.array(stroke, dtype=np.float64) for stroke in DOTTED]
    forms += [DOTTED, flat, arrays, Ink(arrays), Ink([array.astype(np.float32) for array in arrays])]
    forms += [[stroke * 0.25 + 3000 for stroke in arrays], [np.repeat(stroke, 3, axis=0) for stroke in arrays]]

    model, processor = loaded
    expected = epigraph.read(DOTTED, model, processor=processor, **FAST)
    picture = np.asarray(inputs.to_image(DOTTED, "ink"))
    assert expected.error is None and expected.text and picture.max() == 255
    for form in forms:
        assert np.array_equal(inputs.to_image(form, "ink"), picture), form
    results = epigraph.read(forms, model, processor=processor, batch_size=1, **FAST)
    assert {(result.error, result.text, result.score) for result in results} == {(None, expected.text, expected.score)}


def test_a_dot_is_drawn_and_read():
    without, dotted = (np.asarray(render([*STEPS, *more]), dtype=int) for more in ([], [[(100, 12.5)]]))
    changed = np.argwhere(np.abs(dotted - without) > 100)
    assert len(changed) >= 4 and np.ptp(changed, axis=0).max() <= 4, "a point as thick as the pen"


def test_neither_size_nor_place_of_ink_matters(read):
    for strokes, text in zip(TEXTS.values(), TEXTS):
        for factor, shift in ((0.013, 5.0), (3.7, -1000.0), (40.0, 20000.0)):
            assert read([np.array(stroke) * factor + shift for stroke in strokes]).text == text


def test_further_candidates_are_in_order_of_their_scores(read):
    for drawing in (WAVE, PLUS, STEPS, BAR):
        result = read(drawing, n_best=8, num_beams=8)
        scores = [candidate.score for candidate in result.n_best]
        assert len(scores) > 2 and scores[1:] == sorted(scores[1:], reverse=True)
        assert result.n_best[0].text == read(drawing, num_beams=8).text, "the search chooses the best"


def test_results_are_complete_and_come_back_in_order(read):
    drawings = [WAVE, PLUS, STEPS, BAR]
    assert [read(drawing).text for drawing in TEXTS.values()] == list(TEXTS)
    alone = [read(drawing, n_best=2) for drawing in drawings]
    runs = [read(drawings, n_best=n_best, batch_size=size) for n_best, size in ((2, 2), (2, 8), (1, 8))]
    for together in runs:
        assert [result.text for result in together] == [result.text for result in alone]
        for result, other in zip(together, alone):
            assert result.score == pytest.approx(other.score, abs=1e-4), "whatever the batch and n_best"
            assert result.token_scores == pytest.approx(other.token_scores, abs=1e-3)
    for result in alone:
        best, second = result.n_best
        assert best.text == result.text != second.text and best.score == result.score
        assert 1 >= best.score > second.score >= 0 and best.score + second.score <= 1
        for candidate, left in ((best, 1), (second, 1 - best.score)):
            mean = (candidate.forward_score + candidate.reverse_score) / 2
            assert candidate.log_probability == pytest.approx(mean * (len(candidate.text.split()) + 1), abs=1e-4)
            assert candidate.score == pytest.approx(left * math.exp(candidate.log_probability)), "not calibrated"
        assert len(result.token_scores) == len(result.text.split()) and max(result.token_scores) <= 0
        found = sum(result.token_scores) / (len(result.token_scores) + 1)
        assert best.forward_score <= found, "the stop token's share can only lower it"


def test_one_direction_has_no_reverse_score(read):
    result = read(PLUS, direction="l2r")
    assert result.n_best[0].reverse_score is None and result.text == "+"
    assert result.score == pytest.approx(math.exp(2 * result.n_best[0].forward_score)), "one token and the stop"


def test_scores_are_whole_probabilities_whatever_the_length_penalty(read):
    plain = read(STEPS)
    for penalty in (0.0, 0.5, 2.0):
        assert read(STEPS, length_penalty=penalty).score == pytest.approx(plain.score, abs=1e-4)


def test_doubtful_readings_are_marked(read):
    sure, unsure = sorted(read([PLUS, STEPS, WAVE, BAR]), key=lambda result: -result.score)[::3]
    assert not sure.doubtful and not unsure.doubtful, "nothing was asked for"
    between = (sure.score + unsure.score) / 2
    marked = {result.text: result.doubtful for result in read([PLUS, STEPS, WAVE, BAR], min_score=between)}
    assert marked[unsure.text] is True and marked[sure.text] is False
    assert not read(PLUS, min_score=0).doubtful
    unreadable = read("gone.png", min_score=1.0)
    assert unreadable.error and unreadable.score is None and unreadable.doubtful is False


@pytest.mark.parametrize("wrong", [-0.1, 1.5, 90, float("nan")])
def test_min_score_is_a_probability(read, wrong):
    with pytest.raises(ValueError, match="min_score is a probability"):
        read(PLUS, min_score=wrong)


def test_windows_keep_memory_bounded_and_order(loaded, monkeypatch):
    monkeypatch.setattr(reading, "WINDOW", 1)
    taken = []

    def stream():
        for number, item in enumerate([STEPS, PLUS, WAVE, PLUS, STEPS]):
            taken.append(number)
            yield item

    results = reading.read_all(stream(), *loaded, batch_size=2, **FAST)
    first = next(results)
    assert taken == [0, 1], "no more is taken from the stream than what is read together"
    assert [first.text, *(result.text for result in results)] == ["a ^ { 2 }", "+", r"\sin x", "+", "a ^ { 2 }"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "CMYK"])
@pytest.mark.parametrize("dark_on_light", [False, True])
def test_pixel_modes_and_polarity_do_not_matter(read, drawing, tmp_path, mode, dark_on_light):
    image = drawing.point(lambda value: 255 - value) if dark_on_light else drawing
    if mode.startswith("I"):
        array = np.asarray(image)
        image = Image.fromarray(array.astype(np.uint16 if mode == "I;16" else np.int32) * 257)
    elif mode in ("LA", "RGBA") and dark_on_light:  # ink on transparent ground, as drawing programs save it
        image = Image.merge("LA", (Image.new("L", drawing.size, 0), drawing)).convert(mode)
    else:
        image = image.convert("RGB").convert(mode)
    path = tmp_path / ("drawing.tif" if mode in ("CMYK", "I") else "drawing.png")
    result = read(saved(image, path))
    assert result.error is None and result.text == r"\sin x"


def test_rotation_flag_of_photographs_is_honoured(read, drawing, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    path = saved(drawing.transpose(Image.Transpose.ROTATE_90), tmp_path / "photo.png", exif=exif)
    assert np.array_equal(inputs.to_image(path, path), drawing)
    assert read(path).text == r"\sin x"


def test_large_photographs_are_reduced_before_they_become_floats(loaded, monkeypatch):
    processor = loaded[1]
    large = render(WAVE, symbol_height=2000, line_width=60, max_side=9000)
    expected = reading_formulas.prepare(large.reduce(2), processor, None, "small")[0]
    taken, call = [], type(processor).__call__

    def recording(self, images, **settings):
        taken.extend(images)
        return call(self, images, **settings)

    monkeypatch.setattr(type(processor), "__call__", recording)
    assert max(large.size) > reading_formulas.MAX_SIDE
    assert torch.equal(reading_formulas.prepare(large, processor, None, "large")[0], expected)
    assert max(taken[0].size) <= reading_formulas.MAX_SIDE


def test_empty_list_is_an_empty_list(read):
    assert read([]) == []


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float32])
def test_dtypes(tiny_comer, dtype):
    model, _ = reading.load(tiny_comer, dtype=dtype)
    assert model.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32) and not model.training
    result = epigraph.read(PLUS, tiny_comer, dtype=dtype, **FAST)
    assert result.text and 0 < result.score < 1


def test_half_precision_weights_are_read_in_float32_by_default(tiny_comer, tmp_path):
    CoMERForConditionalGeneration.from_pretrained(tiny_comer).half().save_pretrained(tmp_path / "half")
    AutoProcessor.from_pretrained(tiny_comer).save_pretrained(tmp_path / "half")
    assert reading.load(tmp_path / "half")[0].dtype == torch.float32


def test_reading_leaves_a_model_in_training_mode_as_it_was(loaded):
    model, processor = loaded
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    try:
        results = epigraph.read([PLUS, STEPS], model, processor=processor, **FAST)
        assert model.training and [result.text for result in results] == ["+", "a ^ { 2 }"]
        assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    finally:
        model.eval()


# ---------------------------------------------------------------------------------------------------- bad input


def truncated(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "truncated.png"
    Image.fromarray(rng.integers(0, 255, (60, 90), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def write(name, content):
    def make(tmp_path):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def picture(name, size, colour=255, **options):
    def make(tmp_path):
        return saved(Image.new("L", size, colour), tmp_path / name, **options)

    return make


ENTITY = '<!DOCTYPE ink [<!ENTITY secret SYSTEM "file:///etc/hostname">]>'
NAN = np.full((40, 60), np.nan, dtype=np.float32)
POINTS = ", ".join(f"{i % 300} {i % 70}" for i in range(100_000))
FRAMES = [Image.new("L", (40, 30), shade) for shade in (0, 80)]
BAD = {
    "not an image": (write("note.png", "Dear diary, today I wrote an x."), "not an image"),
    "an image by its suffix only": (write("empty.jpg", b""), "not an image"),
    "truncated": (truncated, "damaged"),
    "one pixel": (picture("dot.png", (1, 1)), "blank"),
    "far too long": (picture("line.png", (20000, 10)), "20000 x 10"),
    "decompression bomb": (write("bomb.png", png_header(30_000, 30_000)), "64,000,000"),
    "large, below Pillow's limit": (write("bomb.png", png_header(9_000, 9_000)), "64,000,000"),
    "all white": (picture("white.png", (80, 40)), "blank"),
    "animated": (picture("film.gif", (40, 30), 0, save_all=True, append_images=FRAMES), "frames"),
    "NaN array": (lambda _: NAN, "NaN"),
    "NaN tensor": (lambda _: torch.from_numpy(NAN), "NaN"),
    "array of no image's shape": (lambda _: np.zeros((2, 3, 4, 5)), "(2, 3, 4, 5)"),
    "malformed InkML": (write("torn.inkml", INKML[:60]), "XML"),
    "empty InkML": (write("empty.inkml", ""), "empty"),
    "InkML without strokes": (write("bare.inkml", "<ink></ink>"), "no stroke"),
    "InkML with external entities": (write("trap.inkml", ENTITY + "<ink><trace>&secret;</trace></ink>"), "entities"),
    "InkML of 100k points": (write("endless.inkml", f"<ink><trace>{POINTS}</trace></ink>"), "100,000 points"),
    "strokes with NaN": (lambda _: [[(0.0, float("nan")), (1.0, 1.0)]], "not finite"),
    "missing file": (lambda tmp_path: tmp_path / "gone.png", "no such file"),
    "missing ink": (lambda tmp_path: tmp_path / "gone.inkml", "cannot be read"),
    "a folder": (lambda tmp_path: (tmp_path / "folder.png").mkdir() or tmp_path / "folder.png", "cannot be opened"),
    "unknown suffix": (write("thesis.docx", "x"), ".docx"),
    "no input at all": (lambda _: None, "NoneType"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_the_others_are_read(read, tmp_path, case):
    make, reason = BAD[case]
    bad = make(tmp_path)
    results = read([PLUS, bad, WAVE])
    assert [result.error is None for result in results] == [True, False, True]
    assert (results[0].text, results[2].text) == ("+", r"\sin x")
    result = results[1]
    named = bad if isinstance(bad, str) or hasattr(bad, "suffix") else "input 2"
    assert result.name == str(named) and result.error.startswith(f"{named}: ") and reason in result.error
    assert "\n" not in result.error and result.error.endswith((".", ")"))
    assert (result.text, result.score, result.n_best, result.token_scores) == ("", None, [], [])


def test_bombs_are_not_decoded(read, tmp_path, monkeypatch):
    path = write("bomb.png", png_header(9_000, 9_000))(tmp_path)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("the image was decoded"))
    assert "81,000,000" in read(path).error


def test_ink_task_refuses_images(read, drawing):
    results = read([drawing, PLUS], task="ink")
    assert "ink" in results[0].error and results[1].error is None


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"task": "word"}, "word"),
        ({"pool": ["a"]}, "pool"),
        ({"batch_size": 0}, "batch_size"),
        ({"n_best": 5}, "num_beams"),
        ({"beam": 5}, "beam"),
        ({"device": "cpu"}, "device"),
    ],
)
def test_wrong_settings_are_refused(read, settings, message):
    with pytest.raises(ValueError, match=message):
        read(PLUS, **settings)


# -------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture
def folder(tiny_comer, tmp_path):
    return shutil.copytree(tiny_comer, tmp_path / "damaged-hme")


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def refusal(folder, **settings):
    with pytest.raises(ValueError) as caught:
        epigraph.read(PLUS, folder, **settings)
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message
    return message


def test_missing_and_extra_weights_are_refused(folder):
    change_weights(folder, lambda weights: weights.pop("lm_head.bias"))
    assert "1 missing ['lm_head.bias'], 0 unknown" in refusal(folder)
    change_weights(
        folder, lambda weights: weights.update({"lm_head.bias": torch.zeros(113), "adapter": torch.zeros(2)})
    )
    assert "0 missing [], 1 unknown ['adapter']" in refusal(folder)


def test_weights_of_another_shape_are_refused(folder):
    change_weights(folder, lambda weights: weights.update({"lm_head.bias": torch.zeros(7)}))
    refusal(folder)


def test_damaged_weights_and_other_models_are_refused(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "weights" in refusal(folder)
    (folder / "model.safetensors").unlink()
    assert "weights" in refusal(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "bert" in refusal(folder)
    (folder / "config.json").write_text("{")
    assert "config.json" in refusal(folder)
    (folder / "config.json").unlink()
    assert "config.json" in refusal(folder)


def test_pickled_weights_are_not_loaded(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert "weights" in refusal(folder)


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/at/all", "checkpoints/none/such"])
def test_missing_folders_are_refused(name):
    with pytest.raises(ValueError, match="no such folder"):
        epigraph.read(PLUS, name)


def test_a_model_made_in_memory_needs_its_processor(loaded):
    model = CoMERForConditionalGeneration(loaded[0].config)
    model.name_or_path = ""
    with pytest.raises(ValueError, match="processor"):
        epigraph.read(PLUS, model)


def test_default_checkpoint_is_found_here_or_named_on_the_hub(tiny_comer, tmp_path, monkeypatch):
    name = reading.DEFAULT_CHECKPOINTS["maths"]
    shutil.copytree(tiny_comer, tmp_path / "checkpoints" / name)
    monkeypatch.chdir(tmp_path)
    assert epigraph.read(PLUS, **FAST).text == epigraph.read(PLUS, tiny_comer, **FAST).text
    monkeypatch.setattr(reading, "__file__", str(tmp_path / "a" / "b" / "reading.py"))
    shutil.rmtree(tmp_path / "checkpoints")
    assert reading.default_checkpoint("maths") == f"{reading.HUB_ORGANISATION}/{name}"


def test_models_come_from_the_hub_too(tiny_comer, hub_env, run_python):
    code = (
        "import sys, epigraph\n"
        "from huggingface_hub import HfApi\n"
        "HfApi().create_repo('somebody/tiny-hme')\n"
        f"HfApi().upload_folder(repo_id='somebody/tiny-hme', folder_path={str(tiny_comer)!r})\n"
        f"settings = {FAST!r}\n"
        f"here, there = (epigraph.read({PLUS!r}, model, **settings) for model in "
        f"({str(tiny_comer)!r}, 'somebody/tiny-hme'))\n"
        "assert here == there and here.text\n"
        "try:\n    epigraph.read('x.png', 'somebody/nothing')\n"
        "except ValueError as error:\n    print(error)\n"
    )
    last = run_python(code, env=hub_env).stdout.strip().splitlines()[-1]
    assert last.startswith("somebody/nothing: no such folder, and not to be had from the Hub")


def test_eight_bits_kept_as_integers_are_read(read, drawing):
    assert read(drawing.convert("I")).text == r"\sin x"


def test_bytes_of_every_image_format_are_read(read, drawing):
    for kind in ("PNG", "BMP", "GIF", "TIFF"):
        buffer = io.BytesIO()
        drawing.save(buffer, format=kind)
        assert read(buffer.getvalue()).text == r"\sin x", kind
