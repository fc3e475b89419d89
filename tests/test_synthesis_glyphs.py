"""Glyph targets: plain words fill their polygons, in any geometry and script, and broken annotations are counted."""

import cv2
import numpy as np
import pytest
import shapely

from epigraph.data.synthesis.fonts import BUILTIN, SynthesisError, open_face
from epigraph.data.synthesis.glyph_targets import draw_glyphs, glyph_target, plain_face
from epigraph.polygons import PolygonError, iou, ribbon

UPRIGHT = np.array([(20, 30), (180, 30), (180, 80), (20, 80)], float)
SHAPES = {
    "upright": UPRIGHT,
    "rotated": np.array([(30, 120), (150, 20), (182, 58), (62, 158)], float),
    "upside down": UPRIGHT[[2, 3, 0, 1]],
    "perspective": np.array([(20, 20), (180, 60), (180, 100), (20, 140)], float),
    "small": np.array([(20, 30), (62, 32), (61, 44), (19, 42)], float),
    "squeezed": np.array([(20, 30), (60, 30), (60, 150), (20, 150)], float),
}


def arc(center, inner, outer, start, end, points):
    angle = np.radians(np.linspace(start, end, points))
    way = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.concatenate([center + outer * way, (center + inner * way)[::-1]])


def drawn(polygon, text, size=(200, 200), **options):
    canvas = np.zeros(size, np.uint8)
    draw_glyphs(canvas, polygon, text, **options)
    return canvas


def components(canvas):
    count, _, stats, middles = cv2.connectedComponentsWithStats((canvas > 96).astype(np.uint8))
    kept = [k for k in range(1, count) if stats[k, cv2.CC_STAT_AREA] > 3]
    return stats[kept], middles[kept]


def inside(polygon, size=(200, 200)):
    """Share of every pixel that a polygon covers."""
    zoom = 8
    canvas = np.zeros((size[0] * zoom, size[1] * zoom), np.uint8)
    cv2.fillPoly(canvas, [np.round(np.asarray(polygon) * zoom - 0.5).astype(np.int32)], 255)
    return cv2.resize(canvas, size[::-1], interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("polygon", SHAPES.values(), ids=SHAPES)
def test_the_ink_of_a_quad_fills_it(polygon):
    """H has ink in all four corners, so that the hull of the word is the polygon."""
    canvas = drawn(polygon, "HEH", vertical=False)
    ys, xs = np.nonzero(canvas > 127)
    pixels = np.stack([xs, ys], axis=1)[:, None] + np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    hull = shapely.MultiPoint(pixels.reshape(-1, 2)).convex_hull
    assert iou(np.array(hull.exterior.coords), polygon) > 0.9
    assert len(np.unique(canvas)) > 10, "edges are smooth"


@pytest.mark.parametrize(
    "polygon",
    [arc((100, 120), 60, 90, -160, -20, n) for n in (4, 7, 14)] + [arc((100, 60), 90, 60, 150, 30, 8)],
    ids=["8 points", "14 points", "28 points", "smile"],
)
def test_the_ink_of_a_curve_fills_it(polygon):
    canvas = drawn(polygon, "EHEHEHEHEHEHEH")
    word = cv2.morphologyEx((canvas > 100).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    expected = inside(polygon) > 127
    assert (expected & (word > 0)).sum() / (expected | (word > 0)).sum() > 0.9
    assert (canvas * (inside(polygon) == 0)).sum() < 0.01 * canvas.sum(), "no ink beside it"


def test_strips_of_a_curve_show_no_seams():
    straight = UPRIGHT[[0, 1, 2, 3]]
    edges = np.linspace(0, 1, 9)[:, None]
    curve = np.concatenate([straight[0] + edges * (160, 0), (straight[3] + edges * (160, 0))[::-1]])
    one, other = drawn(straight, "Seamless"), drawn(curve, "Seamless")
    assert np.abs(one.astype(int) - other).mean() < 0.01 * one.mean() + 1
    assert np.abs(one.astype(int) - other).max() < 128


def test_the_first_point_of_a_polygon_turns_the_word():
    upright = drawn(SHAPES["upright"], "Lamp", (110, 200))
    turned = drawn(SHAPES["upside down"], "Lamp", (110, 200))
    assert np.abs(upright[::-1, ::-1].astype(int) - turned).mean() < 1
    quarter = np.array([(30, 180), (30, 20), (80, 20), (80, 180)], float)
    up = drawn(quarter, "Lamp", (200, 110), vertical=False)
    assert np.abs(np.rot90(upright).astype(int) - up).mean() < 1, "reads upwards"


def test_curved_words_read_from_the_first_point():
    top = drawn(arc((100, 120), 60, 90, -160, -20, 8), "L........")
    _, middles = components(top)
    assert top[:, :60].sum() > 0.5 * top.sum() and (middles[:, 0] > 60).sum() >= 6


def test_tall_boxes_hold_columns():
    tall = np.array([(80, 10), (115, 10), (115, 190), (80, 190)], float)
    stats, middles = components(drawn(tall, "HXZH"))
    assert len(stats) == 4 and np.ptp(middles[:, 0]) < 3 and (np.diff(np.sort(middles[:, 1])) > 30).all()
    wider = np.array([(50, 10), (150, 10), (150, 190), (50, 190)], float)
    _, middles = components(drawn(wider, "HXZH", vertical=False))
    assert len(middles) == 4 and np.ptp(middles[:, 1]) < 3, "letters beside one another"
    _, middles = components(drawn(UPRIGHT, "HXZH", vertical=True))
    assert np.ptp(middles[:, 0]) < 3, "said so"
    _, middles = components(drawn(tall, "H"))
    assert len(middles) == 1
    _, middles = components(drawn(np.array([(10, 10), (70, 10), (70, 110), (10, 110)], float), "ll"))
    assert np.ptp(middles[:, 1]) < 3, "two narrow letters fit a box that is only a little high"


def test_what_lies_outside_the_canvas_is_cut_off():
    whole = drawn(UPRIGHT + (40, 40), "Outside", (200, 300))
    part = drawn(UPRIGHT + (40, 40) - (100, 60), "Outside", (60, 100))
    assert np.abs(whole[60:120, 100:200].astype(int) - part).max() <= 2
    assert not drawn(UPRIGHT + 500, "Outside").any()


def test_instances_take_words_out_one_by_one():
    polygons = [UPRIGHT, UPRIGHT + (0, 55), UPRIGHT + (0, 110)]
    texts = ["first", "second", "third"]
    every = glyph_target((200, 200), polygons, texts)
    assert every.skipped == [] and set(np.unique(every.instances)) == {0, 1, 2, 3}
    assert ((every.image > 0) == (every.instances > 0)).all()
    without = np.where(every.instances == 2, 0, every.image)
    assert (without == glyph_target((200, 200), [polygons[0], polygons[2]], ["first", "third"]).image).all()
    again = glyph_target((200, 200), polygons, texts)
    assert (again.image == every.image).all() and (again.instances == every.instances).all()


def test_broken_words_are_counted_skips_or_one_error():
    square = [(0, 0), (40, 0), (40, 20), (0, 20)]
    words = {
        "fine": square,
        "###": square,
        "": square,
        "ignored": square,
        "three points": square[:3],
        "crossed": [square[k] for k in (0, 2, 1, 3)],
        "outside": np.add(square, 300),
        "not a number": [(0, 0), (40, np.nan), (40, 20), (0, 20)],
        "\N{PILE OF POO}": square,
        "tab\tbed": square,
        "x" * 201: square,
        "龘": square,
    }
    ignore = [text == "ignored" for text in words]
    target = glyph_target((64, 64), list(words.values()), list(words), ignore, font=open_face(BUILTIN))
    reasons = dict(target.skipped)
    assert sorted(reasons) == list(range(1, 12))
    for index, part in {
        1: "not to be",
        2: "not to be",
        3: "not to be",
        4: "3 points",
        5: "self",
        6: "outside",
    }.items():
        assert part in reasons[index]
    for index, part in {7: "finite", 8: "PILE OF POO", 9: "0009", 10: "201", 11: "U\\+9F98|U+9F98"}.items():
        assert any(piece in reasons[index] for piece in part.split("|"))
    with pytest.raises(PolygonError, match="polygon 4 has 3 points"):
        glyph_target((64, 64), list(words.values()), list(words), ignore, strict=True)


@pytest.mark.parametrize(
    "size, count, texts, reason",
    [
        ((0, 64), 1, 1, "0 x 64"),
        ((64, -1), 1, 1, "cannot be drawn"),
        ((64, 10**6), 1, 1, "cannot be drawn"),
        ((64.5, 64), 1, 1, "canvas of 64.5 x 64 pixels cannot be drawn"),
        (("64", 64), 1, 1, "cannot be drawn"),
        (None, 1, 1, "canvas of None pixels cannot be drawn"),
        ((64, 64), 2, 1, "2 polygons and 1 texts"),
        ((64, 64), 65536, 65536, "65536 words"),
    ],
)
def test_impossible_targets_are_refused(size, count, texts, reason):
    with pytest.raises(SynthesisError, match=reason):
        glyph_target(size, [UPRIGHT] * count, ["word"] * texts)


def test_a_thousand_polygons_and_a_huge_one():
    rng = np.random.default_rng(0)
    polygons = list(UPRIGHT * 0.1 + rng.random((1000, 1, 2)) * 180)
    target = glyph_target((200, 200), polygons, ["word"] * 1000)
    assert target.skipped == [] and len(np.unique(target.instances)) > 500
    huge = glyph_target((200, 200), [UPRIGHT * 300 - 20000], ["word"])
    assert huge.skipped == [] and huge.image.shape == (200, 200)


def test_texts_with_odd_numbers_of_points_are_drawn():
    outline = np.insert(arc((100, 120), 60, 90, -160, -20, 8), 8, (185, 100), axis=0)
    target = glyph_target((200, 200), [outline], ["EHEHEHEHEHEHEH"])
    assert target.skipped == []
    band = inside(ribbon(outline))
    assert (target.image * (band > 0)).sum() > 0.98 * target.image.sum()


def test_latin_is_drawn_by_the_font_that_is_always_there():
    assert plain_face("Cafe 24").path == BUILTIN
    with pytest.raises(SynthesisError, match="no installed font draws .*U\\+E000"):
        plain_face("\ue000")


@pytest.mark.parametrize(
    "text, package",
    [
        ("Привет", "fonts-noto-core"),
        ("مرحبا", "fonts-noto-core"),
        ("नमस्ते", "fonts-noto-core"),
        ("酒店", "fonts-wqy-microhei"),
    ],
)
def test_other_scripts_are_drawn_where_a_font_covers_them(text, package):
    try:
        plain_face(text)
    except SynthesisError:
        pytest.skip(f"no installed font draws {text}; Debian's {package} does")
    canvas = drawn(UPRIGHT, text)
    ys, xs = np.nonzero(canvas > 96)
    box = xs.min(), xs.max(), ys.min(), ys.max()
    assert np.abs(np.subtract(box, (20, 179, 30, 79))).max() <= 1, "the ink fills the polygon"
    if text == "مرحبا":
        assert len(components(drawn(UPRIGHT, "سسس"))[0]) == 1, "letters join"
        assert len(components(drawn(UPRIGHT, "ccc"))[0]) == 3


@pytest.mark.data
def test_real_annotations_of_every_kind(data_dir):
    import pyarrow.parquet

    columns = ["polygons", "texts", "width", "height"]
    table = pyarrow.parquet.read_table(data_dir / "scenes.parquet", columns=columns)
    words = 0
    for row in table.to_pylist()[::9]:
        size = row["height"], row["width"]
        texts = [text or "Curved" for text in row["texts"]]
        target = glyph_target(size, row["polygons"], texts)
        reasons = {index: reason for index, reason in target.skipped if texts[index] != "###"}
        assert all("outside" in reason for reason in reasons.values()), reasons
        for index, polygon in enumerate(row["polygons"]):
            ink = np.where(target.instances == index + 1, target.image, 0)
            if texts[index] == "###" or index in reasons or ink.sum() == 0:
                continue
            words += 1
            around = cv2.dilate(inside_box(polygon, size), np.ones((3, 3), np.uint8))
            assert (ink * (around > 0)).sum() > 0.9 * ink.sum(), (polygon, texts[index])
    assert words > 50


def inside_box(polygon, size):
    """The hull of a polygon: what a rectangle or a band made of it may take beyond its edge stays near."""
    canvas = np.zeros(size, np.uint8)
    points = np.asarray(polygon).reshape(-1, 1, 2)
    cv2.fillPoly(canvas, [np.round(cv2.boxPoints(cv2.minAreaRect(points.astype(np.float32)))).astype(np.int32)], 255)
    return canvas
