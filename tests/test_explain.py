"""Where the model looked: from its cells to the picture as it was given."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from drawings import PLUS, STEPS, WAVE
from PIL import Image, ImageOps
from typer.testing import CliRunner

import epigraph
from epigraph import reading, reading_formulas, report
from epigraph.data.ink import read_ink, render
from epigraph.models.processing import comer_processor
from epigraph_cli import app

ROOT = Path(__file__).resolve().parent.parent
FAST = {"num_beams": 2, "max_length": 10, "explain": True}
PATCH = (230, 170)  # x, y of the middle of the ink in `drawing`


def drawing(width=400, height=300) -> Image.Image:
    """Black ink on white around `PATCH`, 120 x 60 pixels with distinct corners."""
    pixels = np.full((height, width), 255, np.uint8)
    x, y = PATCH
    pixels[y - 30 : y + 30, x - 60 : x - 56] = 0
    pixels[y + 26 : y + 30, x - 60 : x + 60] = 0
    return Image.fromarray(pixels)


def cell_maps(batch, *points):
    """One map for each point (x, y) of pixel_values: all its weight in the cell of that point."""
    height, width = (-(-side // 16) for side in batch["pixel_values"].shape[2:])
    maps = torch.zeros(1, len(points), height, width)
    for index, (x, y) in enumerate(points):
        maps[0, index, int(y // 16), int(x // 16)] = 1
    return maps


def centre(heat):
    """x, y of the centre of mass, in pixels of the map."""
    heat = heat.astype(np.float64)
    rows, columns = np.indices(heat.shape) + 0.5
    return (columns * heat).sum() / heat.sum(), (rows * heat).sum() / heat.sum()


@pytest.mark.parametrize("change", ["none", "inverted", "halved", "doubled", "page"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scale": 0.6, "crop_margin": 4},
        {"scale": 2.0, "crop_margin": 9},
        {"symbol_height": 28.0, "crop_margin": 4},
    ],
)
def test_a_cell_lies_over_the_same_ink_whatever_was_done_to_it(change, settings):
    image = drawing()
    shift, factor = 0, 1
    if change == "inverted":
        image = Image.fromarray(255 - np.asarray(image))
    elif change in ("halved", "doubled"):
        factor = 0.5 if change == "halved" else 2
        image = image.resize([int(side * factor) for side in image.size])
    elif change == "page":
        page = Image.new("L", (900, 700), 255)
        page.paste(image, (300, 300))
        image, shift = page, 300
    processor = comer_processor(**settings)
    # Beside a larger image, so that there is padding.
    batch = processor(images=[image, Image.effect_noise((1100, 500), 90)], return_geometry=True)
    left, top, scale_x, scale_y = batch["geometry"][0].tolist()
    wanted = [(x + shift) * factor for x in PATCH]
    point = ((wanted[0] - left) * scale_x, (wanted[1] - top) * scale_y)
    pixels = batch["pixel_values"][0, 0]
    assert pixels[:, int(point[0]) :].any(), "the point is beside the ink"
    size = (image.height, image.width)
    (found,) = processor.post_process_attention(cell_maps(batch, point), batch["geometry"][:1], [size], max_side=None)
    assert found.shape == (1, *size) and found.dtype == np.float32
    assert found.sum() == pytest.approx(1, abs=1e-4) and found.min() >= 0
    cell = 16 / scale_x
    assert np.abs(np.subtract(centre(found[0]), wanted)).max() <= cell / 2 + 0.51
    rows, columns = np.nonzero(found[0])
    # A triangle two cells wide, or less at an edge.
    assert np.ptp(columns) + 1 <= 32 / scale_x + 2 and np.ptp(rows) + 1 <= 32 / scale_y + 2


def test_every_map_keeps_its_sum_and_even_weight_stays_even():
    processor = comer_processor()
    image = drawing(width=320, height=160)  # whole cells
    batch = processor(images=[image], return_geometry=True)
    even = torch.full((1, 3, 10, 20), 1 / 200).cumsum(1)
    (found,) = processor.post_process_attention(even, batch["geometry"], [(160, 320)])
    assert found.sum((1, 2)) == pytest.approx([1, 2, 3], rel=1e-5)
    np.testing.assert_allclose(found[0], 1 / (160 * 320), rtol=1e-4)
    corners = cell_maps(batch, (0, 0), (319, 159))
    (found,) = processor.post_process_attention(corners, batch["geometry"], [(160, 320)])
    assert found.sum((1, 2)) == pytest.approx([1, 1], rel=1e-5)
    for heat, corner in ((found[0], (0, 0)), (found[1], (-1, -1))):
        assert heat[corner] == heat.max(), "outermost cells are level up to the edge"
    mixed = torch.rand(1, 4, 10, 20)
    both = processor.post_process_attention(
        torch.stack([mixed, mixed.cumsum(1)])[:, 0], batch["geometry"], [(160, 320)]
    )
    np.testing.assert_allclose(both[0].cumsum(0), both[1], rtol=1e-4)


def test_cells_of_the_margin_and_beyond_show_at_the_edge():
    processor = comer_processor(crop_margin=70)  # more than four cells of margin, where there is nothing to see
    image = Image.fromarray(np.pad(np.zeros((20, 40), np.uint8), 2, constant_values=255))
    batch = processor(images=[image], return_geometry=True)
    assert batch["geometry"][0, :2].tolist() == pytest.approx([-69, -69], abs=2)
    corners = cell_maps(batch, (1, 1), (batch["pixel_values"].shape[3] - 1, 1))
    (found,) = processor.post_process_attention(corners, batch["geometry"], [(24, 44)])
    assert found.sum((1, 2)) == pytest.approx([1, 1]) and found[0, 0, 0] == 1 and found[1, 0, -1] == 1


def test_photographs_get_smaller_maps():
    processor = comer_processor(crop_margin=4)
    image = drawing(width=3000, height=2000)
    batch = processor(images=[image], return_geometry=True)
    left, top, scale_x, scale_y = batch["geometry"][0].tolist()
    maps = cell_maps(batch, *[((x - left) * scale_x, (y - top) * scale_y) for x, y in [PATCH]])
    (found,) = processor.post_process_attention(maps, batch["geometry"], [(2000, 3000)])
    assert found.shape == (1, 683, 1024)
    (tiny,) = processor.post_process_attention(maps, batch["geometry"], [(2000, 3000)], max_side=30)
    assert tiny.shape == (1, 20, 30) and tiny.sum() == pytest.approx(1, rel=1e-5)
    assert tiny[0].argmax() == (PATCH[1] // 100) * 30 + PATCH[0] // 100, "less than a pixel, and not lost"


def test_rows_of_several_readings_and_sizes():
    processor = comer_processor()
    images = [drawing(), drawing(width=300)]
    batch = processor(images=images, return_geometry=True)
    maps = torch.rand(6, 5, *(-(-side // 16) for side in batch["pixel_values"].shape[2:]))
    found = processor.post_process_attention(maps, batch["geometry"], [(300, 400), (300, 300)])
    assert [heat.shape for heat in found] == [(5, 300, 400)] * 3 + [(5, 300, 300)] * 3
    alone = processor.post_process_attention(maps[4:5], batch["geometry"][1:], [(300, 300)])
    np.testing.assert_array_equal(alone[0], found[4])
    with pytest.raises(ValueError, match="6 rows of maps, 2 geometries and 1 image sizes"):
        processor.post_process_attention(maps, batch["geometry"], [(300, 400)])
    with pytest.raises(ValueError, match="5 rows"):
        processor.post_process_attention(maps[:5], batch["geometry"], [(300, 400), (300, 300)])
    with pytest.raises(ValueError, match="max_side"):
        processor.post_process_attention(maps, batch["geometry"], [(300, 400), (300, 300)], max_side=0)


# ----------------------------------------------------------------------------------------------------------- read()


@pytest.fixture(scope="module")
def loaded(reader):
    return reading.load(reader)


@pytest.fixture
def read(loaded):
    model, processor = loaded
    return lambda inputs, **settings: epigraph.read(inputs, model, processor=processor, **{**FAST, **settings})


@pytest.mark.parametrize("settings", [{}, {"n_best": 2}, {"direction": "r2l"}, {"search": "official"}])
def test_read_explains_every_token(read, loaded, settings):
    model, processor = loaded
    drawings = [PLUS, np.asarray(render(WAVE)), render(STEPS), b"no formula"]
    results = read(drawings, **settings)
    for result in results[:3]:
        tokens = len(result.text.split())
        assert result.attentions.shape == result.coverages.shape == (tokens, *result.attentions.shape[1:])
        assert result.attentions.dtype == np.float32
        height, width = result.attentions.shape[1:]
        assert max(height, width) <= reading_formulas.MAP_SIDE
        assert height / width == pytest.approx(result.image.height / result.image.width, rel=0.05)
        assert result.attentions.sum((1, 2)) == pytest.approx(1, abs=1e-3)
        np.testing.assert_allclose(result.coverages, result.attentions.cumsum(0), atol=1e-5)
    assert results[3].error and results[3].attentions is results[3].coverages is results[3].image is None
    assert [asdict(result) for result in results] == [
        asdict(result) for result in read(drawings, explain=False, **settings)
    ]
    assert "image" not in asdict(results[0]) and json.dumps(asdict(results[0]))

    # The same as by hand, through generate and the processor.
    inputs = processor(images=[render(WAVE)], return_geometry=True)
    geometry = inputs.pop("geometry")
    settings = {name: value for name, value in settings.items() if name != "n_best"}
    output = model.generate(
        **inputs, num_beams=2, max_length=10, return_dict_in_generate=True, output_attentions=True, **settings
    )
    size = (results[1].image.height, results[1].image.width)
    (maps,) = processor.post_process_attention(
        output.cross_attentions, geometry, [size], max_side=reading_formulas.MAP_SIDE
    )
    np.testing.assert_allclose(results[1].attentions, maps[: len(results[1].text.split())], atol=1e-6)


def test_the_same_picture_in_every_form_has_the_same_maps(read, tmp_path):
    upright = ImageOps.invert(render(WAVE))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photo.png", exif=exif)
    pixels = np.asarray(upright)
    forms = [
        tmp_path / "photo.png",
        pixels,
        pixels[None],
        pixels[..., None] / 255.0,
        np.repeat(pixels[..., None], 3, axis=2),
        torch.from_numpy(pixels.copy()),
        pixels.astype(np.uint16) * 257,
        upright.convert("RGBA"),
    ]
    expected = read(upright)
    for result in read(forms):
        assert np.array_equal(result.image.convert("L"), upright)
        np.testing.assert_allclose(result.attentions, expected.attentions, atol=1e-5)


def test_ink_is_shown_as_strokes_on_paper_under_the_maps_of_its_drawing(read):
    ink, drawn = read(WAVE), read(render(WAVE))
    assert ink.text == drawn.text == r"\sin x"
    width, height = drawn.image.size
    assert 0 <= ink.image.width - 3 * width < 3 and 0 <= ink.image.height - 3 * height < 3
    coarse = np.asarray(ink.image.reduce(3), np.float32)[:height, :width]
    given = np.asarray(drawn.image, np.float32)
    assert np.abs(255 - coarse - given).mean() < 3, "the same strokes, finer, and dark on light"
    for one, other in zip(ink.attentions, drawn.attentions):
        finer = np.divide(centre(one), one.shape[::-1])
        assert finer == pytest.approx(np.divide(centre(other), other.shape[::-1]), abs=0.01)


def test_large_photographs_are_reduced_and_the_maps_with_them(read, monkeypatch):
    monkeypatch.setattr(reading_formulas, "MAX_SIDE", 500)
    monkeypatch.setattr(reading_formulas, "PICTURE_SIDE", 110)
    large = render(WAVE, symbol_height=220, line_width=24, margin=90)
    assert 500 < max(large.size) <= 1000
    result, expected = read(large), read(large.reduce(2))
    assert abs(result.image.width - large.width / 8) <= 1 and result.image.width <= 110, "by 2, then by 4"
    assert result.text == expected.text
    for one, other in zip(result.attentions, expected.attentions):
        assert np.divide(centre(one), one.shape[::-1]) == pytest.approx(
            np.divide(centre(other), other.shape[::-1]), abs=0.02
        )


def test_explaining_a_stream_holds_one_batch(loaded):
    taken = []

    def stream():
        for index in range(9):
            taken.append(index)
            yield PLUS

    results = reading.read_all(stream(), *loaded, batch_size=2, **FAST)
    for count in range(9):
        assert next(results).attentions is not None
        assert len(taken) <= count + 2


@pytest.fixture(scope="module")
def euler(tmp_path_factory):
    """The shipped model's view of e^{i pi} + 1 = 0 as ink, and small on a large page that its camera saw turned."""
    source = ROOT / "examples" / "handwritten-math" / "euler.json"
    page = Image.new("RGB", (1800, 1300), (250, 248, 240))
    drawn = render(read_ink(source).strokes, symbol_height=60, line_width=5, margin=0)
    page.paste((30, 30, 90), (1000, 900), drawn)
    exif = Image.Exif()
    exif[0x0112] = 8  # turn a quarter anticlockwise to see it upright
    path = tmp_path_factory.mktemp("euler") / "photo.png"
    page.transpose(Image.Transpose.ROTATE_270).save(path, exif=exif)
    box = (1000, 900, 1000 + drawn.width, 900 + drawn.height)
    return *epigraph.read([source, path], ROOT / "checkpoints" / "comer-hme", explain=True), box


def test_the_shipped_model_looks_at_the_symbol_that_it_writes(euler):
    result = euler[0]
    third = result.attentions.shape[2] // 3
    assert result.attentions[0, :, :third].sum() > 0.5, "the first symbol stands at the left"
    assert result.attentions[-1, :, -third:].sum() > 0.5, "and the last at the right"
    ends = [centre(result.attentions[token])[0] for token in (0, -1)]
    assert ends[1] - ends[0] > third
    before, after = result.coverages[len(result.coverages) // 2], result.coverages[-1]
    assert before[:, :third].sum() / before.sum() > after[:, :third].sum() / after.sum(), "coverage spreads rightwards"


def test_in_a_turned_photograph_it_looks_at_the_writing(euler):
    _, result, (left, top, right, bottom) = euler
    assert result.image.size == (900, 650)
    factor = result.attentions.shape[2] / 1800
    assert factor == 256 / 1800
    around = 60  # pixels of the photograph, about a cell
    rows = slice(int((top - around) * factor), math.ceil((bottom + around) * factor))
    columns = slice(int((left - around) * factor), math.ceil((right + around) * factor))
    within = result.attentions[:, rows, columns].sum((1, 2))
    assert within.min() > 0.99, "nothing else was seen"
    third = (columns.stop - columns.start) // 3
    assert result.attentions[0, rows, columns][:, :third].sum() > 0.5
    assert result.attentions[-1, rows, columns][:, -third:].sum() > 0.5


# ----------------------------------------------------------------------------------------------- pictures and pages


@pytest.mark.parametrize("color", [report.ATTENTION, report.COVERAGE])
def test_overlay_colours_the_ground_and_leaves_the_ink(color):
    paper = Image.fromarray(np.full((60, 120), 255, np.uint8))
    paper.paste(0, (50, 10, 70, 50))
    heat = np.zeros((6, 12), np.float32)
    heat[:, 4:8] = 0.5
    for image in (paper, ImageOps.invert(paper), paper.convert("RGB"), paper.convert("RGBA"), paper.convert("LA")):
        laid = report.overlay(image, heat, color)
        assert laid.mode == "RGB" and laid.size == image.size
        assert laid.getpixel((60, 30)) == image.convert("RGB").getpixel((60, 30)), "ink"
        assert laid.getpixel((2, 2)) == image.convert("RGB").getpixel((2, 2)), "ground without weight"
        assert laid.getpixel((60, 4)) == pytest.approx(color, abs=15)
    faint = report.overlay(paper, heat, color, peak=1.0)
    plain = [(255 + channel) / 2 for channel in color]
    assert faint.getpixel((60, 4)) == pytest.approx(plain, abs=15)
    assert report.overlay(paper, 0 * heat).tobytes() == paper.convert("RGB").tobytes(), "nothing to show"


def test_transparent_pictures_lie_on_white():
    clear = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    clear.paste((200, 0, 0, 255), (10, 5, 20, 15))
    opaque = report.opaque(clear)
    assert opaque.getpixel((0, 0)) == (255, 255, 255) and opaque.getpixel((15, 10)) == (200, 0, 0)


def test_mathml():
    assert report.mathml(r"\frac { a } { < }").startswith("<math") and "<mo><</mo>" not in report.mathml("<")
    assert report.mathml(" ") is None and report.mathml("a ^ b ^ c") is None


@pytest.fixture
def files(tmp_path):
    """A drawing, a damaged file whose name is no HTML, and ink."""
    ImageOps.invert(render(WAVE)).save(tmp_path / "wave.png")
    (tmp_path / "a<b>.png").write_bytes(b"no image")
    (tmp_path / "plus.json").write_text(json.dumps(PLUS))
    return [str(tmp_path / name) for name in ("wave.png", "a<b>.png", "plus.json")]


def command(*arguments):
    return CliRunner().invoke(app, ["read", *map(str, arguments)])


def test_the_command_writes_a_page_beside_its_output(files, reader, tmp_path):
    page = tmp_path / "out.html"
    page.write_text("old")
    plain = command(*files, "--model", reader, "--json", "--n-best", 2, "--min-score", 1)
    done = command(*files, "--model", reader, "--json", "--n-best", 2, "--min-score", 1, "--explain", page)
    assert done.exit_code == plain.exit_code == 1
    numbers = [[json.loads(line) for line in run.stdout.splitlines()] for run in (plain, done)]
    assert [row["text"] for row in numbers[0]] == [row["text"] for row in numbers[1]] == [r"\sin x", "", "+"]
    assert [row.keys() for row in numbers[0]] == [row.keys() for row in numbers[1]]
    assert "out.html" in done.stderr
    text = page.read_text()
    assert text.count("<article") == 3 and text.count("<figure") == 2 and "2 of 3 inputs read by reader-hme" in text
    assert "a&lt;b&gt;.png: " in text and "<b>.png" not in text
    assert text.count("? doubtful") == 2 and text.count("2 best readings") == 2
    assert text.count('class="heat attention"') == text.count('class="heat coverage"') == 3
    assert "<script" not in text and "http://" not in text.replace("http://www.w3.org/1998/Math/MathML", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a<b>.png", "out.html", "plus.json", "wave.png"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("plus.json", "ends in .html"),
        ("nowhere/out.html", "cannot be written there"),
        ("folder.html", "cannot be written there"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_before_reading(files, reader, tmp_path, monkeypatch, name, message):
    (tmp_path / "folder.html").mkdir()
    monkeypatch.setattr(report, "load", lambda *_: pytest.fail("the model was loaded"))
    before = sorted(tmp_path.iterdir()), (tmp_path / "plus.json").read_text()
    done = command(*files, "--model", reader, "--explain", tmp_path / name)
    assert done.exit_code == 1 and isinstance(done.exception, ValueError)
    assert message in str(done.exception) and name in str(done.exception)
    assert (sorted(tmp_path.iterdir()), (tmp_path / "plus.json").read_text()) == before


def test_what_was_there_stays_until_the_page_is_complete(tmp_path):
    page = tmp_path / "out.html"
    page.write_text("old")
    with pytest.raises(KeyboardInterrupt), report.new_page(page) as file:
        file.write("half")
        raise KeyboardInterrupt
    assert page.read_text() == "old" and list(tmp_path.iterdir()) == [page]


def test_pages_stay_small(read):
    photo = Image.effect_noise((2000, 1500), 60).convert("RGB")
    photo.paste(ImageOps.invert(render(WAVE, symbol_height=300, line_width=30)), (200, 300))
    result = read(photo, max_length=40)
    assert result.error is None and max(result.image.size) <= reading_formulas.PICTURE_SIDE
    tokens = len(result.text.split())
    assert len(report.page([report.Example(result)], "model")) < 600_000 + 4_000 * tokens


@pytest.mark.parametrize("ink, ground", [("white", 0), ("black", 255)])
def test_ink_on_nothing_is_seen(ink, ground):
    picture = Image.new("RGBA", (40, 20), (255, 255, 255, 0))
    picture.paste(Image.new("RGBA", (20, 4), ink), (10, 8))
    seen = np.asarray(report.opaque(picture).convert("L"))
    assert seen[0, 0] == ground and seen[10, 15] == 255 - ground
    assert report.opaque(Image.new("RGBA", (4, 4), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
