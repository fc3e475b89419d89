"""Where characters land: homographies, warps, baselines, the room that words have."""

import cv2
import numpy as np
import pytest
from synthesis_styles import ARC, COLUMN, CORNERS, GEOMETRY, WAVE, inside, make_style

from epigraph.data.synthesis.fonts import BUILTIN, SynthesisError
from epigraph.data.synthesis.layout import face_metrics, lay_out, map_points, quad_homographies, warp_cells

TEXT = "fjAVToWgil"  # pairs that overhang each other in most fonts


def area(polygon: np.ndarray) -> float:
    return cv2.contourArea(polygon.astype(np.float32))


def test_homographies_map_boxes_onto_quads():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 60, (50, 2))
    quads = np.array([[0, 0], [9, 0], [9, 9], [0, 9]]) + rng.uniform(-2, 2, (50, 4, 2))
    for (height, width), quad, matrix in zip(sizes, quads, quad_homographies(sizes, quads)):
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
        np.testing.assert_allclose(map_points(matrix, corners), quad, atol=1e-9)


def test_an_upright_quad_of_the_bitmaps_size_copies_it():
    bitmap = np.random.default_rng(0).integers(0, 256, (12, 7), np.uint8)
    canvas, owners = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    quad = np.array([[4, 5], [11, 5], [11, 17], [4, 17]])
    warp_cells(canvas, [bitmap], quad[None], owners)
    np.testing.assert_array_equal(canvas[5:17, 4:11], bitmap)
    assert canvas.sum() == bitmap.sum()
    np.testing.assert_array_equal(owners > 0, canvas > 0)


@pytest.mark.parametrize("factor", [0.2, 0.37, 0.8, 1.6])
def test_warping_keeps_the_share_of_ink(factor):
    bitmap = np.zeros((60, 40), np.uint8)
    bitmap[::2] = 255  # stripes that sampling single pixels would turn into all or nothing
    corners = np.array([[0, 0], [40, 0], [40, 60], [0, 60]]) * factor + 8.3
    canvas = np.zeros((120, 90), np.uint8)
    warp_cells(canvas, [bitmap], corners[None])
    assert canvas.sum() / (bitmap.sum() * factor**2) == pytest.approx(1, abs=0.04)


def test_what_lies_outside_the_canvas_is_cut_off():
    bitmap = np.full((10, 10), 255, np.uint8)
    quads = np.array([[[-5, -5], [5, -5], [5, 5], [-5, 5]], [[90, 90], [99, 90], [99, 99], [90, 99]]])
    canvas = np.zeros((20, 20), np.uint8)
    warp_cells(canvas, [bitmap, bitmap], quads)
    assert canvas[:5, :5].min() == 255 and canvas[7:].max() == 0 and canvas[:, 7:].max() == 0


@pytest.mark.parametrize("name", GEOMETRY)
def test_quads_hold_the_ink_of_their_character_and_none_of_another(name):
    style = make_style(**GEOMETRY[name])
    layout = lay_out(style, TEXT)
    assert len(layout.char_quads) == len(TEXT)
    for index, quad in enumerate(layout.char_quads):
        within = inside(quad, style.size)
        for other in range(len(TEXT)):
            alone = np.zeros(style.size, np.uint8)
            warp_cells(alone, [layout.bitmaps[other]], layout.quads[other : other + 1])
            share = alone[within].sum(dtype=float) / alone.sum(dtype=float)
            assert share >= 0.99 if other == index else share == 0, (TEXT[index], TEXT[other], share)


@pytest.mark.parametrize("name", GEOMETRY)
def test_the_polygon_holds_the_word(name):
    style = make_style(**GEOMETRY[name])
    layout = lay_out(style, TEXT)
    mask = np.zeros(style.size, np.uint8)
    warp_cells(mask, layout.bitmaps, layout.quads)
    hull = np.zeros(style.size, np.uint8)
    cv2.fillPoly(hull, [np.round(layout.polygon * 16 - 8).astype(np.int32)], 255, shift=4)
    assert mask[cv2.dilate(hull, np.ones((3, 3))) > 0].sum() >= 0.99 * mask.sum()
    low, high = layout.polygon.min(0), layout.polygon.max(0)
    assert (low >= -0.5).all() and (high <= np.array(style.size[::-1]) + 0.5).all()
    if name == "straight":
        y, x = np.nonzero(mask)
        np.testing.assert_allclose([*low, *high], [x.min(), y.min(), x.max() + 1, y.max() + 1], atol=1.01)


def test_spacing_and_stretch_widen_and_long_words_are_squeezed():
    def width(text="hmnu", **values):
        return np.ptp(lay_out(make_style(**values), text).polygon[:, 0])

    em = 0.42 * 64 / face_metrics(BUILTIN, 0).cap
    assert width(spacing=0.2) - width() == pytest.approx(3 * 0.2 * em, rel=0.02)
    assert width(max_stretch=1.5) == pytest.approx(1.5 * width(), rel=0.03)
    assert width(max_stretch=9.0) == pytest.approx(256 - 2 * 0.04 * 64, rel=0.01)
    assert width("extraordinary words") == pytest.approx(256 - 2 * 0.04 * 64, rel=0.01)


def test_words_in_one_style_share_size_and_baseline():
    style = make_style()
    first, second = lay_out(style, "Hat"), lay_out(style, "H")
    assert first.cap == second.cap
    np.testing.assert_allclose(first.char_quads[0][:, 1], second.char_quads[0][:, 1], atol=1e-4)


def test_alignment_moves_a_word_from_edge_to_edge():
    left, right = (lay_out(make_style(align=align), "at").polygon[:, 0] for align in (0.0, 1.0))
    assert left.min() == pytest.approx(0.04 * 64, abs=0.01) and right.max() == pytest.approx(256 - 0.04 * 64, abs=0.01)


def test_baselines_bend_as_they_say():
    word = "nnnnnnn"
    arch = lay_out(make_style(baseline=ARC, max_stretch=3.0), word)
    bottoms = arch.char_quads[:, 2:, 1].mean(1)
    assert bottoms.argmin() == 3 and bottoms[0] - bottoms[3] > 0.15 * 64
    wave = lay_out(make_style(baseline=WAVE, max_stretch=3.0), word).char_quads[:, 2:, 1].mean(1)
    assert np.sign(np.diff(wave)).tolist() not in ([1.0] * 6, [-1.0] * 6)
    column = lay_out(make_style(**GEOMETRY["column"]), word).char_quads
    assert (np.diff(column[:, 0, 1]) > 0).all() and np.ptp(column.mean(1)[:, 0]) < 1
    assert column[0, 0, 0] < column[0, 1, 0] and column[0, 0, 1] == pytest.approx(column[0, 1, 1])


def test_a_homography_moves_every_point():
    flat, seen = (lay_out(make_style(corners=corners), "homography") for corners in (None, CORNERS))
    size = np.array([[64, 256]])
    matrix = quad_homographies(size, np.array([CORNERS]) * (256, 64))[0]
    np.testing.assert_allclose(map_points(matrix, flat.polygon), seen.polygon, atol=1e-3)


def test_words_too_large_are_moved_then_made_smaller():
    style = make_style(font_size=0.9, baseline_y=0.2)
    layout = lay_out(style, "gypsy")
    assert layout.polygon[:, 1].min() >= 0 and layout.polygon[:, 1].max() <= 64
    assert 20 < layout.cap < 0.9 * 64


@pytest.mark.parametrize(
    ("text", "values", "words"),
    [
        ("x" * 200, {}, r"200 characters does not fit 64 x 256 pixels: 1\.\d pixels for each"),
        ("x" * 200, {"baseline": COLUMN, "size": (256, 64)}, "does not fit"),
        ("word", {"font_size": 0.04}, "cap height"),
        ("", {}, "empty"),
        ("\u6f22", {}, "no glyph"),
        ("word", {"corners": ((0.0, 0.0), (1.0, 0.0), (0.5, 0.1), (0.0, 1.0))}, "convex"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(text, values, words):
    with pytest.raises(SynthesisError, match=words):
        lay_out(make_style(**values), text)


def test_a_face_is_measured():
    metrics = face_metrics(BUILTIN, 0)
    assert 0.65 < metrics.cap < 0.75 and metrics.top >= metrics.cap and 0.15 < metrics.bottom < 0.3
