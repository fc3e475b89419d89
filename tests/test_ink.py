"""Ink: files in, pictures out, and what the augmentation may and may not change."""

import io
import json
import os
import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from epigraph.data.ink import (
    Ink,
    InkAugmentation,
    InkError,
    SymbolBank,
    as_strokes,
    augment,
    ink_size,
    jitter,
    read_ink,
    read_inkml,
    read_json,
    render,
    swap_symbols,
    symbol_unit,
)
from epigraph.data.latex import is_valid, tokenize

PLUS = [np.array([[0, 50], [100, 50]], np.float32), np.array([[50, 0], [50, 100]], np.float32)]
INKML = """<?xml version="1.0"?>
<ink xmlns="http://www.w3.org/2003/InkML">
<traceFormat><channel name="X" type="decimal"/><channel name="Y" type="decimal"/></traceFormat>
<annotation type="truth">$1+1$</annotation>
<trace id="0">1 0, 1.5 10, 1 20</trace>
<trace id="1">5 10, 15 10</trace>
<trace id="2">10 5, 10 15</trace>
<trace id="3">20 0, 20 20</trace>
<traceGroup xml:id="a"><annotation type="truth">Segmentation</annotation>
 <traceGroup xml:id="b"><annotation type="truth">1</annotation><traceView traceDataRef="0"/></traceGroup>
 <traceGroup xml:id="c"><annotation type="truth">+</annotation>
  <traceView traceDataRef="1"/><traceView traceDataRef="#2"/></traceGroup>
 <traceGroup xml:id="d"><annotation type="truth">1</annotation><traceView traceDataRef="3"/></traceGroup>
</traceGroup></ink>"""


def ink_xml(*traces: str, head: str = "") -> bytes:
    return f"<ink>{head}{''.join(f'<trace>{trace}</trace>' for trace in traces)}</ink>".encode()


# ------------------------------------------------------------------------------------------------ reading


def test_inkml_gives_strokes_truth_and_segmentation():
    ink = read_inkml(INKML.encode(), name="sum.inkml")
    assert isinstance(ink, Ink)
    assert ink.name == "sum.inkml" and ink.label == "$1+1$"
    assert [len(stroke) for stroke in ink.strokes] == [3, 2, 2, 2]
    assert ink.strokes[0].dtype == np.float32 and ink.strokes[0][1].tolist() == [1.5, 10.0]
    assert ink.symbols == [("1", [0]), ("+", [1, 2]), ("1", [3])]


def test_inkml_with_a_prefix_and_without_namespace_reads_the_same():
    plain = read_inkml(INKML.replace(' xmlns="http://www.w3.org/2003/InkML"', "").encode())
    prefixed = INKML.replace("xmlns=", "xmlns:i=")
    for tag in ("ink", "traceFormat", "channel", "annotation", "traceGroup", "traceView", "trace"):
        prefixed = prefixed.replace(f"<{tag} ", f"<i:{tag} ").replace(f"<{tag}>", f"<i:{tag}>")
        prefixed = prefixed.replace(f"</{tag}>", f"</i:{tag}>")
    assert "<i:trace id" in prefixed
    for ink in (plain, read_inkml(prefixed.encode())):
        assert ink.symbols == [("1", [0]), ("+", [1, 2]), ("1", [3])] and ink.label == "$1+1$"


def test_inkml_channels_single_points_and_missing_truth():
    head = "<traceFormat><channel name='T'/><channel name='X'/><channel name='Y'/></traceFormat>"
    ink = read_inkml(ink_xml("7 1 2, 8 3 4", "9 5 6", "", head=head))
    assert [stroke.tolist() for stroke in ink.strokes] == [[[1, 2], [3, 4]], [[5, 6]]]
    assert ink.label is None and ink.symbols == []
    assert read_inkml(ink_xml("1 2 100 0.5, 3 4 101 0.5")).strokes[0].tolist() == [[1, 2], [3, 4]]


def test_inkml_difference_coding():
    # The example of the InkML specification, section 3.2.1: explicit, first and second differences.
    coded = read_inkml(ink_xml("""1125 18432,'23'43,"7"-8,3-5,7 -3""")).strokes[0]
    assert coded.tolist() == [[1125, 18432], [1148, 18475], [1178, 18510], [1211, 18540], [1251, 18567]]


@pytest.mark.parametrize(
    "trace",
    [
        "1 0, 1.5 10, -2 20",
        "  1 0 ,\n1.5\t10,\r\n -2   20 ,\n",
        "1.0e0 0, +15e-1 1E+1, -2. 20",
        "#1 0, 1.5 #a, -#2 #14",
        "1 0, !1.5 !10, -2 20",
        "1 0, '.5'10, -3.5 *, -0 10",
    ],
)
def test_inkml_writes_numbers_in_many_ways(trace):
    expected = [[1, 0], [1.5, 10], [-2, 20]]
    if "*" in trace:  # no change on the y axis for one point
        expected = [[1, 0], [1.5, 10], [-2, 10], [-2, 20]]
    assert read_inkml(ink_xml(trace)).strokes[0].tolist() == expected


def test_inkml_traces_that_continue_others_or_hang_in_the_air():
    ink = read_inkml(
        b"""<ink><trace id="a" continuation="begin">0 0, 2 2</trace><trace id="air" type="penUp">2 2, 9 9</trace>
        <trace id="b">5 5</trace><trace id="c" continuation="middle" priorRef="#a">'1'0</trace>
        <trace continuation="end" priorRef="c">1 1</trace>
        <traceGroup><annotation type="truth">x</annotation><traceView traceDataRef="#c"/>
        <traceView traceDataRef="#a"/></traceGroup></ink>"""
    )
    assert [stroke.tolist() for stroke in ink.strokes] == [[[0, 0], [2, 2], [3, 2], [4, 3]], [[5, 5]]]
    assert ink.symbols == [("x", [0])]
    with pytest.raises(InkError, match="no stroke"):
        read_inkml(b'<ink><trace type="penUp">1 1, 2 2</trace></ink>')


def test_inkml_formats_belong_to_contexts():
    """As office programs write it: ink sources in definitions, contexts that name them, traces that name contexts."""
    ink = read_inkml(
        b"""<ink xmlns="http://www.w3.org/2003/InkML"><definitions>
        <traceFormat xml:id="plain"><channel name="X"/><channel name="Y" orientation="-ve"/></traceFormat>
        <context xml:id="c0"><inkSource xml:id="pen"><traceFormat><channel name="F"/><channel name="Y"/>
          <channel name="X"/><intermittentChannels><channel name="T"/></intermittentChannels></traceFormat>
          <channelProperties><channelProperty channel="X" name="resolution" value="1"/></channelProperties>
        </inkSource></context>
        <context xml:id="c1" traceFormatRef="#plain"/><context xml:id="c2" inkSourceRef="#pen"/>
        <context xml:id="c3" contextRef="#c2"/><context xml:id="round" contextRef="#round"/>
        <brush xml:id="b"><brushProperty name="width" value="2"/></brush></definitions>
        <trace contextRef="#c0" brushRef="#b">9 2 1, 9 4 3 7</trace><trace contextRef="#c1">1 -2</trace>
        <traceGroup contextRef="#c3"><traceGroup><trace>9 2 1</trace><trace contextRef="#c1">1 -2</trace></traceGroup>
        </traceGroup><trace contextRef="#round">1 -2</trace><trace contextRef="#lost">1 -2</trace>
        <trace>1 -2</trace></ink>"""
    )
    assert ink.strokes[0].tolist() == [[1, 2], [3, 4]]
    assert [stroke.tolist() for stroke in ink.strokes[1:]] == [[[1, 2]]] * 6


def test_a_hundred_thousand_nested_groups_take_no_time_worth_speaking_of():
    depth = 100_000
    content = b"<ink>" + b"<traceGroup>" * depth + b"<trace>1 2, 3 4</trace>" * 500 + b"</traceGroup>" * depth
    assert len(read_inkml(content + b"</ink>").strokes) == 500


BAD_INKML = {
    "empty": (b"", "is empty"),
    "blank": (b" \n", "is empty"),
    "malformed": (b"<ink><trace>1 2", "not well-formed"),
    "other": (b"<svg></svg>", "root element is <svg>"),
    "bytes": (b"\xff\xfe\x00\x01garbage", "not well-formed"),
    "encoding": (b'<?xml version="1.0" encoding="no-such"?><ink/>', "not well-formed"),
    "strokeless": (b"<ink></ink>", "no stroke"),
    "words": (ink_xml("one two"), "where x and y were expected"),
    "one value": (ink_xml("1, 2"), "where x and y were expected"),
    "unknown value": (ink_xml("1 2, ? 4"), "where x and y were expected"),
    "nothing to repeat": (ink_xml("* 2, 3 4"), "where x and y were expected"),
    "hexadecimal without end": (ink_xml("#" + "f" * 5000 + " 1"), "where x and y were expected"),
    "nan": (ink_xml("nan 1, 2 2"), "where x and y were expected"),
    "infinite": (ink_xml("1e999 1, 2 2"), "not finite"),
    "huge": (ink_xml("1e9 1, 2 2"), "larger than"),
    "points": (ink_xml(", ".join(["1 2"] * 100_000)), "100,000 points"),
    "strokes": (ink_xml(*["1 2"] * 6000), "6,000 strokes"),
    "size": (b"<ink>" + b" " * (11 * 2**20) + b"</ink>", "larger than 10 MB"),
    "external": (
        b'<!DOCTYPE ink [<!ENTITY secret SYSTEM "file:///etc/hostname">]><ink><trace>&secret;</trace></ink>',
        "entities, which are refused",
    ),
    "expansion": (
        b'<!DOCTYPE ink [<!ENTITY a "1 2,"><!ENTITY b "&a;&a;&a;">]><ink><trace>&b;</trace></ink>',
        "entities, which are refused",
    ),
}


@pytest.mark.parametrize("case", BAD_INKML)
def test_bad_inkml_is_one_error_that_names_the_file(case, tmp_path):
    content, reason = BAD_INKML[case]
    path = tmp_path / "broken.inkml"
    path.write_bytes(content)
    with pytest.raises(InkError, match=reason) as caught:
        read_ink(path)
    assert "broken.inkml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        [[[0, 1], [2, 3]], [[4, 5]]],
        [[0, 1, 2, 3], [4, 5]],
        {"strokes": [[0, 1, 2, 3], [[4, 5]]], "text": "x"},
    ],
)
def test_json_in_every_form(data, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(data))
    ink = read_ink(path)
    assert [stroke.tolist() for stroke in ink.strokes] == [[[0, 1], [2, 3]], [[4, 5]]]
    assert ink.label == ("x" if isinstance(data, dict) else None)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "is empty"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"3", "expected a list of strokes"),
        (b"{}", "expected a list of strokes"),
        (b"[]", "no stroke"),
        (b"[[]]", "no stroke"),
        (b"[[1, 2, 3]]", "not a list of x, y pairs"),
        (b"[[[1, 2], [3]]]", "not a number"),
        (b'[["a", "b"]]', "not a number"),
        (b"[[NaN, 1]]", "not finite"),
        (b"[[1e400, 1]]", "not finite"),
        (b'{"strokes": [[1, 2]], "text": 3}', "'text' is not a string"),
        (json.dumps([[1, 2] * 60_000]).encode(), "60,000 points"),
    ],
)
def test_bad_json_is_one_error_that_names_the_input(content, reason):
    with pytest.raises(InkError, match=reason) as caught:
        read_json(content, name="broken.json")
    assert "broken.json" in str(caught.value)


def test_unknown_suffix_and_missing_file(tmp_path):
    with pytest.raises(InkError, match="from .inkml and .json files"):
        read_ink(tmp_path / "a.png")
    with pytest.raises(InkError, match="nowhere.inkml: cannot be read"):
        read_ink(tmp_path / "nowhere.inkml")


@pytest.mark.data
def test_every_sub_collection_of_crohme_reads():
    files = sorted((Path(os.environ["EPIGRAPH_DATA"]) / "inkml_samples").glob("*.inkml"))
    assert len(files) == 13
    for path in files:
        if path.name.startswith("empty_"):
            with pytest.raises(InkError, match="is empty"):
                read_ink(path)
            continue
        ink = read_ink(path)
        assert ink.label and ink.symbols
        assert sorted(index for _, indices in ink.symbols for index in indices) == list(range(len(ink.strokes)))


# ---------------------------------------------------------------------------------------------- rendering


def test_render_scales_by_the_mean_height_of_the_strokes():
    image = render(PLUS, symbol_height=28, line_width=3, margin=12)
    assert image.mode == "L"
    assert abs(image.width - (28 + 3 + 24)) <= 1 and abs(image.height - (28 + 3 + 24)) <= 1
    pixels = np.asarray(image)
    assert pixels[:11].max() == 0 and pixels[:, -11:].max() == 0
    assert pixels.max() == 255 and 0 < ((pixels > 0) & (pixels < 255)).sum()
    # The unit of the device does not matter.
    assert np.array_equal(pixels, np.asarray(render([stroke * 1024 for stroke in PLUS])))


def test_dots_and_bars_do_not_count_in_the_scale():
    bar_and_dot = [np.array([[0, 120], [900, 121]], np.float32), np.array([[50, 60], [50, 61]], np.float32)]
    assert symbol_unit([PLUS[1], *bar_and_dot]) == 100
    assert symbol_unit([PLUS[1], PLUS[1] / 2, PLUS[1] / 20]) == 75
    assert symbol_unit([PLUS[0]]) == 50
    minus = [np.array([[0, 0], [50, 2], [100, 1]], np.float32)]
    assert symbol_unit(minus) == 50 and render(minus).width < 100


def test_render_line_width_is_in_pixels():
    line = [np.array([[0, 0], [0, 100]], np.float32)]
    for width in (1.5, 3.0, 6.0):
        row = np.asarray(render(line, symbol_height=100, line_width=width), dtype=float)[60] / 255
        assert row.sum() == pytest.approx(width, abs=0.3)


def test_a_sharp_turn_has_a_round_joint_and_a_point_is_a_dot():
    corner = [np.array([[0, 100], [50, 0], [100, 100]], np.float32)]
    tip = np.asarray(render(corner, symbol_height=60, line_width=8, margin=4))
    assert tip[5:8, tip.shape[1] // 2].min() > 200
    dot = np.asarray(render([[5.0, 5.0]], line_width=8, margin=4), dtype=float) / 255
    assert dot.sum() == pytest.approx(np.pi * 16, rel=0.15)


@pytest.mark.parametrize(
    "strokes",
    [[[3, 3]], [[3, 3, 3, 3]], [[1e6, 1e6]], [[0, 0, 100, 0]], [[0, 0, 0, 1e-30]], [[0, 0], [1e7, 1e-3]]],
)
def test_degenerate_ink_still_gives_a_small_picture(strokes):
    image = render(strokes)
    assert ink_size(strokes) == image.size[::-1]
    assert max(image.size) <= 4096 and np.asarray(image).max() == 255


def test_render_bounds_its_size():
    wide = [np.array([[0, 0], [0, 1]], np.float32), np.array([[1e6, 0], [1e6, 1]], np.float32)]
    assert render(wide, max_side=500).width <= 500 and ink_size(wide, max_side=500)[1] <= 500
    assert render(PLUS, symbol_height=9000, max_side=300).size <= (300, 300)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e8])
def test_render_refuses_coordinates_that_make_no_picture(value):
    with pytest.raises(InkError, match="coordinate"):
        render([[0.0, 0.0, value, 1.0]])
    with pytest.raises(InkError, match="no stroke"):
        render([])


@pytest.mark.data
def test_render_agrees_with_the_bitmaps_of_the_field():
    """Same ids: sizes within 5 %, mean brightness within 15 % (the bitmaps are not anti-aliased, 3.4 px wide)."""
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = Path(os.environ["EPIGRAPH_DATA"])
    columns = ["id", "strokes"]
    ink = parquet.read_table(folder / "crohme_ink.parquet", columns=columns, filters=[("split", "=", "test_2014")])
    bitmaps = parquet.read_table(folder / "crohme_bitmaps_2014.parquet", columns=["id", "image"]).to_pylist()
    strokes = {row["id"]: row["strokes"] for row in ink.to_pylist()}
    worst, ratios = [], []
    for row in bitmaps[::8]:
        bitmap = Image.open(io.BytesIO(row["image"])).convert("L")
        image = render(strokes[row["id"]])
        worst.append(max(abs(image.width / bitmap.width - 1), abs(image.height / bitmap.height - 1)))
        ratios.append(np.asarray(image, dtype=float).sum() / np.asarray(bitmap, dtype=float).sum())
    assert np.quantile(worst, 0.95) < 0.05 and np.median(worst) < 0.02
    assert 0.85 < np.median(ratios) < 1.0


# ------------------------------------------------------------------------------------------- augmentation


def test_augment_keeps_structure_is_seeded_and_bounded():
    strokes = [*PLUS, np.array([[160, 10]], np.float32)]
    first = augment(strokes, np.random.default_rng(1))
    again = augment(strokes, np.random.default_rng(1))
    other = augment(strokes, np.random.default_rng(2))
    assert [len(stroke) for stroke in first] == [2, 2, 1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    for seed in range(50):
        varied = np.concatenate(augment(strokes, np.random.default_rng(seed)))
        assert np.isfinite(varied).all()
        assert np.abs(varied - np.concatenate(strokes)).max() < 0.7 * symbol_unit(strokes)


def test_zero_strengths_change_nothing():
    still = {"rotation": 0, "shear": 0, "stretch": 0, "stroke_shift": 0, "stroke_rotation": 0, "stroke_scale": 0}
    unchanged = augment(PLUS, np.random.default_rng(0), elastic=0, **still)
    for before, after in zip(PLUS, unchanged, strict=True):
        np.testing.assert_allclose(after, before, atol=1e-3)


def test_rotation_turns_the_whole_ink_rigidly():
    still = {"shear": 0, "stretch": 0, "stroke_shift": 0, "stroke_rotation": 0, "stroke_scale": 0, "elastic": 0}
    turned = augment(PLUS, np.random.default_rng(3), rotation=30, **still)
    across, down = turned[0][1] - turned[0][0], turned[1][1] - turned[1][0]
    assert np.hypot(*across) == pytest.approx(100, rel=1e-4) and across @ down == pytest.approx(0, abs=0.1)
    assert 0.5 < abs(np.degrees(np.arctan2(across[1], across[0]))) <= 30


def test_jitter_moves_groups_as_one_and_spares_long_bars():
    bar = np.array([[0, 120], [2000, 120]], np.float32)
    moved = jitter([*PLUS, bar], [[0, 1], [2]], np.random.default_rng(0), shift=0.0, rotation=10.0, scale=0.0)
    assert moved[0].mean(0) == pytest.approx([50, 50], abs=1e-3) and moved[1].mean(0) == pytest.approx(
        [50, 50], abs=1e-3
    )
    assert (moved[0][1] - moved[0][0]) @ (moved[1][1] - moved[1][0]) == pytest.approx(0, abs=0.5)
    assert np.abs(moved[2] - bar).max() < 0.2 * symbol_unit(PLUS) and not np.array_equal(moved[2], bar)


def test_the_augmentation_returns_what_render_takes():
    rng = np.random.default_rng(0)
    augmentation = InkAugmentation(thickness=(0.5, 2.0))
    heights, widths = [], []
    for _ in range(30):
        strokes, height, width = augmentation(PLUS, rng, symbol_height=20.0, line_width=2.0)
        heights.append(height)
        widths.append(width)
    assert render(strokes, height, width).mode == "L"
    assert 14 <= min(heights) < 17 and 24 < max(heights) <= 28
    assert 1 <= min(widths) < 2 < max(widths) <= 4


# --------------------------------------------------------------------------------------------- symbol swap

DENSE = np.linspace(0, 100, 20, dtype=np.float32)
OTHER_PLUS = [np.stack([50 + 0 * DENSE, DENSE], 1), np.stack([DENSE, 50 + 0 * DENSE], 1), PLUS[0][:1] + 50]
ROWS = [
    {"strokes": [stroke * 3 for stroke in OTHER_PLUS], "symbols": [{"label": "+", "strokes": [0, 1, 2]}]},
    {"strokes": [[0, 0, 300, 2], [0, 50, 0, 150]], "symbols": [("-", [0]), ("1", [1]), ("+", [7])]},
]


def box(strokes):
    points = np.concatenate(strokes)
    return np.concatenate([points.min(0), points.max(0)])


def test_swap_fits_other_ink_into_the_box_and_keeps_the_rest():
    bank = SymbolBank(ROWS)
    assert len(bank) == 3 and set(bank.labels) == {"+", "-", "1"}
    aside = np.array([[200, 0], [200, 100]], np.float32)
    symbols = [("+", [0, 1]), ("y", [2])]
    swapped = swap_symbols([*PLUS, aside], symbols, bank, np.random.default_rng(0), probability=1.0)
    assert [len(stroke) for stroke in swapped] == [20, 20, 1, 2]
    np.testing.assert_allclose(box(swapped[:3]), box(PLUS), atol=1e-3)
    assert np.array_equal(swapped[3], aside)
    unchanged = swap_symbols([*PLUS, aside], symbols, bank, np.random.default_rng(0), probability=0.0)
    assert [len(stroke) for stroke in unchanged] == [2, 2, 2]


def test_swap_stands_where_the_first_stroke_stood_even_if_strokes_interleave():
    between = np.array([[300, 0], [300, 100]], np.float32)
    swapped = swap_symbols(
        [PLUS[0], between, PLUS[1]], [("+", [2, 0])], SymbolBank(ROWS), np.random.default_rng(0), 1.0
    )
    assert [len(stroke) for stroke in swapped] == [20, 20, 1, 2]
    assert np.array_equal(swapped[3], between)


def test_swap_stretches_bars_to_length_without_making_them_thick():
    fraction_bar = np.array([[0, 50], [2000, 55]], np.float32)
    digit = np.array([[900, 0], [900, 200]], np.float32)
    minus = np.array([[0, 0], [5, 1], [10, 0]], np.float32)
    bank = SymbolBank([{"strokes": [minus, [20, 0, 20, 20]], "symbols": [("-", [0])]}])
    swapped = swap_symbols([fraction_bar, digit], [("-", [0])], bank, np.random.default_rng(0), 1.0)
    left, top, right, bottom = box(swapped[:1])
    assert len(swapped[0]) == 3
    assert (left, right) == pytest.approx((0, 2000), abs=1) and 40 < top < bottom < 65


def test_swap_refuses_distortion():
    lying = [stroke * np.array([6, 1], np.float32) for stroke in PLUS]
    swapped = swap_symbols(lying, [("+", [0, 1])], SymbolBank(ROWS), np.random.default_rng(0), 1.0)
    assert swapped[0] is lying[0] and swapped[1] is lying[1]


def test_swap_gives_a_dot_its_own_size():
    rows = [{"strokes": [[0, 0], [10, 0, 10, 10]], "symbols": [(".", [0]), ("1", [1])]}]
    dot = [np.array([[70, 70], [70.5, 70.5]], np.float32), PLUS[1]]
    swapped = swap_symbols(dot, [(".", [0])], SymbolBank(rows), np.random.default_rng(0), 1.0)
    assert swapped[0].tolist() == [[70.25, 70.25]]


def test_the_bank_pickles_and_limits_its_samples():
    bank = SymbolBank(ROWS * 5, limit=2)
    assert len(bank) == 6
    copy = pickle.loads(pickle.dumps(bank))
    assert [stroke.tolist() for stroke in copy.strokes(1)] == [stroke.tolist() for stroke in bank.strokes(1)]
    assert len(SymbolBank([])) == 0
    assert swap_symbols(PLUS, [("+", [0, 1])], SymbolBank([]), np.random.default_rng(0), 1.0)[0] is PLUS[0]


def test_augmentation_swaps_only_with_a_bank_and_a_segmentation():
    rng = np.random.default_rng(0)
    augmentation = InkAugmentation(swap=1.0)
    symbols = [{"label": "+", "strokes": [0, 1]}]
    assert len(augmentation(PLUS, rng, symbols, SymbolBank(ROWS))[0]) == 3
    assert len(augmentation(PLUS, rng, symbols)[0]) == 2
    assert len(augmentation(PLUS, rng, bank=SymbolBank(ROWS))[0]) == 2
    assert len(InkAugmentation(swap=0.0)(PLUS, rng, symbols, SymbolBank(ROWS))[0]) == 2


def test_as_strokes_takes_what_the_schema_stores():
    assert [stroke.shape for stroke in as_strokes([[0, 1, 2, 3], [], [[4, 5]]])] == [(2, 2), (1, 2)]


# ------------------------------------------------------------------------------------------- the demo ink

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples" / "handwritten-math").glob("*.json"))


def test_the_demo_ink_reads_renders_and_states_its_truth():
    assert len(EXAMPLES) >= 10
    for path in EXAMPLES:
        ink = read_ink(path)
        assert is_valid(ink.label) and " ".join(tokenize(ink.label)) == ink.label
        image = render(ink.strokes)
        assert image.height > 40 and 0.03 < np.asarray(image).mean() / 255 < 0.3


def test_the_demo_ink_comes_from_its_script(tmp_path):
    runpy.run_path(str(ROOT / "scripts" / "draw_examples.py"))["main"](str(tmp_path))
    drawn = sorted(tmp_path.glob("*.json"))
    assert [path.name for path in drawn] == [path.name for path in EXAMPLES]
    for path, committed in zip(drawn, EXAMPLES, strict=True):
        new, old = read_ink(path), read_ink(committed)
        assert new.label == old.label
        assert [len(stroke) for stroke in new.strokes] == [len(stroke) for stroke in old.strokes]
