"""Polarity, size and photographs: whatever the page, the light and the resolution, the model sees one image."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawings import PLUS, WAVE
from PIL import Image, ImageOps

from epigraph.data.ink import render
from epigraph.data.variants import vary
from epigraph.models.image_cleaning import clean_ink, dark_on_light, parts, pen_width, written_height
from epigraph.models.image_processing import TextImageProcessor


def formula():
    """A fraction, a root, dots and a lone bar, with enough strokes to have a size; strokes (points, 2)."""
    turn = np.linspace(0, 2 * np.pi, 24)
    ring = np.stack([np.cos(turn), np.sin(turn)], 1)
    return [
        np.array([[0, 10], [6, 36]]), np.array([[8, 8], [-2, 38]]),  # x
        np.array([[22, 18], [36, 18]]), np.array([[22, 27], [36, 27]]),  # =
        ring * [9, 12] + [64, -6], np.array([[86, -18], [86, 10]]), np.array([[76, -4], [96, -4]]),  # o +
        np.array([[48, 22], [140, 24]]),
        ring * [8, 11] + [70, 44], np.array([[90, 30], [110, 58]]), np.array([[108, 30], [88, 58]]),
        np.array([[122, 55]]), np.array([[130, 54.0]]),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def drawing():
    return render(formula())


@pytest.fixture
def images():
    return TextImageProcessor(clean=True, symbol_height=28.0, crop_margin=4, scale=0.6)


def tensor(image):
    return torch.from_numpy(np.asarray(image.convert("L"), np.float32) / 255)


def read(images, picture, **settings):
    return images(picture, return_tensors="pt", **settings)["pixel_values"][0, 0]


def assert_alike(found, expected, overlap=0.95):
    """Of one size to 8 %, with as much ink to 20 %; and where the ink is, to a sixth of a symbol."""
    for axis in (0, 1):
        assert found.shape[axis] == pytest.approx(expected.shape[axis], rel=0.08, abs=2)
    assert found.mean() == pytest.approx(float(expected.mean()), rel=0.2)
    size = [round(side / 3) for side in expected.shape]
    one, other = (F.interpolate(i[None, None], size, mode="area").flatten() for i in (found, expected))
    assert F.cosine_similarity(one, other, dim=0) > overlap


# --------------------------------------------------------------------------------------------------- polarity


def chalk(drawing):
    """A blackboard that grows lighter to one side, on a pale wall."""
    ink = np.asarray(ImageOps.expand(drawing.resize((500, 330)), 60)) / 255
    wall = np.full((700, 900), 190.0)
    wall[100 : 100 + ink.shape[0], 140 : 140 + ink.shape[1]] = np.linspace(45, 90, ink.shape[1]) + 115 * ink
    return Image.fromarray(wall.astype(np.uint8))


def on_table(drawing):
    """A sheet on a dark table that fills most of the picture."""
    ink = np.asarray(ImageOps.expand(drawing.resize((500, 330)), 60)) / 255
    table = np.full((1000, 1300), 40.0)
    table[200 : 200 + ink.shape[0], 300 : 300 + ink.shape[1]] = 225 * (1 - 0.75 * ink)
    return Image.fromarray(table.astype(np.uint8))


def test_which_part_is_the_ink(drawing):
    cut = drawing.crop(drawing.getbbox())
    for light in (drawing, cut, cut.crop((9, 9, cut.width - 9, cut.height - 9)), chalk(drawing)):
        assert not dark_on_light(tensor(light)) or light.size == (900, 700)
        assert dark_on_light(tensor(ImageOps.invert(light))) or light.size == (900, 700)
    assert not dark_on_light(tensor(chalk(drawing)))
    assert dark_on_light(tensor(on_table(drawing)))
    assert dark_on_light(tensor(vary(drawing, "photo", 5)))


def test_inverted_or_on_a_larger_page_nothing_changes(images, drawing):
    expected = read(images, drawing)
    for variant in ("inverted", "page"):
        assert torch.equal(read(images, vary(drawing, variant, 2)), expected)
    cut = drawing.crop(drawing.getbbox())
    assert torch.equal(read(images, cut), read(images, ImageOps.invert(cut)))


@pytest.mark.parametrize("grey", [0, 255])
def test_transparent_ground_takes_the_ink_as_it_is(images, drawing, grey):
    picture = Image.merge("RGBA", [Image.new("L", drawing.size, grey)] * 3 + [drawing])
    assert_alike(read(images, picture), read(images, drawing), 0.99)


def test_transparent_corners_of_a_window_are_page(images, drawing):
    window = ImageOps.invert(ImageOps.expand(drawing, 30)).convert("RGBA")
    alpha = Image.new("L", window.size, 255)
    alpha.paste(0, (0, 0, 20, 20))
    window.putalpha(alpha)
    assert_alike(read(images, window), read(images, drawing), 0.99)


# --------------------------------------------------------------------------------------------------- size


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.4, 2, 6])
def test_any_size_becomes_the_same(images, drawing, factor):
    size = [round(side * factor) for side in drawing.size]
    changed = drawing.resize(size, Image.Resampling.BICUBIC)
    assert_alike(read(images, changed), read(images, drawing))
    unscaled = read(images, changed, symbol_height=None)
    assert unscaled.shape[1] < 0.85 * read(images, drawing).shape[1] or factor > 0.7


def test_the_size_of_the_writing_is_that_it_was_drawn_at(drawing):
    for factor in (0.5, 1, 3):
        image = drawing.resize([round(side * factor) for side in drawing.size], Image.Resampling.BICUBIC)
        assert written_height(tensor(image)) == pytest.approx(28 * factor, rel=0.12)
    for width in (2, 5):
        image = tensor(render(formula(), line_width=width))
        assert pen_width(image) == pytest.approx(width, rel=0.15)
        assert written_height(image) == pytest.approx(28, rel=0.2)


def test_bars_and_dots_alone_have_a_size_too(images):
    for box in ((12, 12, 60, 15), (12, 12, 16, 16)):
        picture = Image.new("L", (box[2] + 12, box[3] + 12))
        picture.paste(255, box)
        found = read(images, picture)
        assert 16 <= found.shape[0] <= 40 and found.max() > 0.9
    assert read(images, drawing_of_height(8)).max() > 0.5


def drawing_of_height(height):
    image = render(WAVE)
    return image.resize((round(image.width * height / image.height), height), Image.Resampling.BICUBIC)


def test_geometry_holds_through_all_of_it(images, drawing):
    """The ink's box in the image, brought into the model's pixels, is that of the ink there."""
    large = vary(drawing.resize((drawing.width * 4, drawing.height * 4)), "page", 1)
    assert large.width * large.height > 2**21
    for picture in (large, ImageOps.invert(large), on_table(drawing)):
        grey = np.asarray(picture)
        dark = grey < 100 if picture.size == (1300, 1000) else grey > 127 if grey[0, 0] == 0 else grey < 127
        if picture.size == (1300, 1000):
            dark[:205], dark[-355:], dark[:, :305], dark[:, -385:] = False, False, False, False
        rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
        batch = images(picture, return_tensors="pt", return_geometry=True)
        left, top, scale_x, scale_y = batch["geometry"][0].tolist()
        ink = batch["pixel_values"][0, 0] > 0.4
        found_rows, found_columns = ink.any(1).nonzero().flatten(), ink.any(0).nonzero().flatten()
        assert (rows[0] - top) * scale_y == pytest.approx(int(found_rows[0]), abs=1.5)
        assert (rows[-1] + 1 - top) * scale_y == pytest.approx(int(found_rows[-1]) + 1, abs=1.5)
        assert (columns[0] - left) * scale_x == pytest.approx(int(found_columns[0]), abs=1.5)
        assert (columns[-1] + 1 - left) * scale_x == pytest.approx(int(found_columns[-1]) + 1, abs=1.5)


# --------------------------------------------------------------------------------------------------- photographs


def test_full_black_and_white_pass_unchanged(drawing):
    for picture in (drawing, drawing.point(lambda value: 255 * (value > 127)), render(PLUS)):
        assert torch.equal(clean_ink(tensor(picture)), tensor(picture))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("variant", ["photo", "lined", "squared"])
def test_a_photograph_becomes_the_drawing(images, drawing, variant, seed):
    """Were a rule, a shadow's edge or the table left, the cut to the ink would be of another size."""
    picture = vary(drawing, variant, seed)
    assert_alike(read(images, picture), read(images, drawing), 0.8)
    with pytest.raises(AssertionError):
        assert_alike(read(images, picture, clean=False), read(images, drawing), 0.8)


def test_boards_tables_and_pencils(images, drawing):
    noise = np.random.default_rng(0).standard_normal((400, 500)) * 3
    pale = 220 - 45 * np.asarray(drawing.resize((500, 400)), float) / 255 + noise
    expected = read(images, drawing)
    for picture in (chalk(drawing), on_table(drawing)):
        found = read(images, picture)
        assert abs(found.shape[1] / found.shape[0] - 500 / 330 * expected.shape[0] / expected.shape[0]) < 0.3
        assert (found < 0.1).float().mean() > 0.7
    found = read(images, Image.fromarray(pale.astype(np.uint8)))
    assert found.max() > 0.95 and (found < 0.05).float().mean() > 0.7


def test_pale_rules_go_and_bars_stay(images, drawing):
    """Of a tablet's ruled page; a fraction bar as wide as the image is ink all the same."""
    page = np.full((drawing.height + 40, drawing.width + 60), 255.0)
    page[7::20] = 190
    page[:, 9::20] = 200
    ink = np.asarray(ImageOps.expand(drawing, (30, 20))) / 255
    ruled = Image.fromarray((page * (1 - ink) + 20 * ink).astype(np.uint8))
    assert_alike(read(images, ruled), read(images, drawing))
    bar = np.zeros((60, 200), np.uint8)
    bar[29:32] = 255
    bar[8:20, 90:93] = bar[40:52, 90:93] = 255
    assert torch.equal(clean_ink(tensor(Image.fromarray(bar))), tensor(Image.fromarray(bar)))


def test_specks_go_and_dots_stay(drawing):
    grey = np.asarray(drawing.resize((drawing.width * 3, drawing.height * 3))).copy()
    clean = clean_ink(torch.from_numpy(grey / np.float32(255)))
    places = np.random.default_rng(1).integers(0, (30, grey.shape[1]), (60, 2))  # above the ink
    grey[tuple(places.T)] = 255
    found = clean_ink(torch.from_numpy(grey / np.float32(255)))
    assert not found[:30].any() and (found - clean).abs().max() < 0.11  # soft edges
    assert len(parts(clean > 0.5)[0]) == len(parts(tensor(drawing) > 0.5)[0])


def test_parts_are_what_touches():
    mask = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 1], [1, 1, 0, 0]]).bool()
    boxes, areas, labels = parts(mask)
    found = sorted(zip(map(tuple, boxes.tolist()), areas.tolist()))
    assert found == [((0, 0, 2, 3), 3), ((0, 4, 2, 5), 2), ((3, 0, 4, 4), 4)]
    assert (labels >= 0).tolist() == mask.tolist() and labels[0, 0] == labels[2, 0] != labels[0, 3]
    assert len(parts(torch.zeros(3, 4).bool())[0]) == 0
    spiral = torch.from_numpy(np.kron(np.indices((40, 40)).sum(0) % 2, np.ones((1, 1)))).bool()
    assert len(parts(spiral)[0]) == 1  # a chequerboard holds together at its corners


@pytest.mark.parametrize("size, noise", [((400, 600), 1.5), ((800, 1000), 4)])
def test_a_photograph_of_an_empty_sheet_is_blank(images, size, noise):
    sheet = 200 + np.random.default_rng(0).normal(0, noise, size)
    with pytest.raises(ValueError, match="blank"):
        images(images=[Image.fromarray(sheet.astype(np.uint8))])
    faint = sheet.copy()
    for row, column in ((200, 100), (200, 200)):
        faint[row : row + 60, column : column + 6] -= 10 * noise
    assert images(images=[Image.fromarray(faint.astype(np.uint8))])["pixel_values"].max() > 0.5
