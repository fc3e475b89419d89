"""Polygons of annotations: what is refused, reading order, edges, bands around bent words, overlap."""

import numpy as np
import pytest

from epigraph.polygons import (
    PolygonError,
    check_polygon,
    edge_curves,
    extent,
    instance_polygon,
    iou,
    min_area_quad,
    reading_order,
    resample,
    ribbon,
    signed_area,
)

QUAD = np.array([(10, 10), (90, 20), (90, 50), (10, 40)], float)


def arc(center=(150, 150), inner=80, outer=110, start=-150, end=-30, points=10):
    """A curve of 2 x points points whose text runs along the top of a circle, to the right."""
    angle = np.radians(np.linspace(start, end, points))
    way = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.concatenate([center + outer * way, (center + inner * way)[::-1]])


@pytest.mark.parametrize(
    "polygon, reason",
    [
        ([(0, 0), (10, 0), (10, 10)], "3 points"),
        ([], "0 points"),
        (np.zeros((2000, 2)), "2000 points"),
        ([0, 0, 10, 0, 10, 10, 0], "shape"),
        (np.zeros((4, 3)), "shape"),
        ([(0, 0), (10, 0), (10,), (0, 10)], "no list of points"),
        ("abc", "no list of points"),
        (None, "no list of points|shape"),
        ([(0, 0), (10, 0), (np.nan, 10), (0, 10)], "not finite"),
        ([(0, 0), (np.inf, 0), (10, 10), (0, 10)], "not finite"),
        ([(0, 0), (1e9, 0), (10, 10), (0, 10)], "limit"),
        ([(0, 0), (10, 10), (10, 0), (0, 10)], "self-intersecting"),
        ([(0, 0), (10, 0), (20, 0), (30, 0)], "self-intersecting or flat"),
        ([(0, 0), (0.1, 0), (0.1, 0.1), (0, 0.1)], "area"),
        ([(200, 0), (210, 0), (210, 10), (200, 10)], "outside the image of 128 x 64"),
    ],
)
def test_broken_polygons_are_refused_by_name(polygon, reason):
    with pytest.raises(PolygonError, match=f"polygon 7.*({reason})"):
        check_polygon(polygon, (64, 128), "polygon 7")


def test_flat_lists_and_parts_outside_the_image_are_fine():
    quad = check_polygon([-5, 4, 20, 4, 20, 12, -5, 12], (64, 128))
    assert quad.tolist() == [[-5, 4], [20, 4], [20, 12], [-5, 12]]


def test_reading_order_keeps_the_first_point_and_turns_clockwise():
    assert (reading_order(QUAD) == QUAD).all()
    assert (reading_order(QUAD[[0, 3, 2, 1]]) == QUAD).all()
    upside_down = np.roll(QUAD, 2, axis=0)
    assert (reading_order(upside_down) == upside_down).all(), "an annotator may well mean that"


@pytest.mark.parametrize("start", range(4))
def test_upright_reading_order_finds_the_top_left_corner(start):
    assert (reading_order(np.roll(QUAD, start, axis=0), upright=True) == QUAD).all()


def test_upright_curves_read_to_the_right():
    curve = arc()
    assert (reading_order(np.roll(curve, 10, axis=0), upright=True) == curve).all()


def test_edges_run_in_reading_direction_and_extent_measures_along_them():
    top, bottom = edge_curves(QUAD)
    assert top.tolist() == [[10, 10], [90, 20]] and bottom.tolist() == [[10, 40], [90, 50]]
    assert extent(QUAD) == pytest.approx((np.hypot(80, 10), 30))
    width, height = extent(arc(points=40))
    assert width == pytest.approx(np.radians(120) * 95, rel=0.01) and height == pytest.approx(30, rel=0.01)


def test_resampling_is_by_arc_length():
    corner = np.array([(0, 0), (1, 0), (10, 0), (10, 10)], float)
    points = resample(corner, 5)
    assert points == pytest.approx(np.array([(0, 0), (5, 0), (10, 0), (10, 5), (10, 10)]))
    assert resample(corner, np.array([0.25])) == pytest.approx(np.array([(5, 0)]))


def test_five_points_around_a_box_become_its_rectangle():
    quad = instance_polygon(np.insert(QUAD, 1, (50, 15.0), axis=0))
    assert len(quad) == 4 and iou(quad, QUAD) > 0.8
    assert quad[0, 0] < 50 and quad[0, 1] < 25 and signed_area(quad) > 0


def test_the_smallest_rectangle_reads_to_the_right():
    turned = np.array([(0, 50), (50, 20), (62, 40), (12, 70)], float)
    quad = min_area_quad(np.roll(turned, 2, axis=0))
    assert quad == pytest.approx(turned)


@pytest.mark.parametrize("start, end, inner", [(-150, -30, 80), (-170, -10, 85), (-80, 40, 70)])
@pytest.mark.parametrize("roll", [0, 4, 11])
def test_a_band_is_found_in_points_without_any_convention(start, end, inner, roll):
    """An outline with extra points on its short ends, from any point, in either direction."""
    curve = arc(inner=inner, start=start, end=end)
    ends = [0.5 * (curve[9] + curve[10]), 0.5 * (curve[0] + curve[-1])]
    outline = np.concatenate([curve[:10], ends[:1], curve[10:], ends[1:], [0.5 * (ends[1] + curve[0])]])
    found = ribbon(np.roll(outline, roll, axis=0)[::-1], points=12)
    assert iou(found, curve) > 0.9
    top, bottom = edge_curves(found)
    outside, inside = np.linalg.norm(top - 150, axis=1), np.linalg.norm(bottom - 150, axis=1)
    assert (outside > inside + 0.7 * (110 - inner)).all(), "the top edge is the outer one"
    assert top[0, 0] < top[-1, 0]
    assert instance_polygon(outline).shape == (16, 2), "23 points: mostly air around an arc"


def test_halves_that_cannot_be_edges_become_a_band():
    curve = arc(start=-170, end=-10)
    shifted = np.roll(curve, 5, axis=0)  # starts in the middle of its top edge
    assert iou(instance_polygon(shifted), curve) > 0.9
    assert (instance_polygon(curve) == curve).all()


def test_a_concave_quad_becomes_convex():
    arrow = np.array([(0, 0), (100, 0), (100, 40), (60, 12)], float)
    quad = instance_polygon(arrow)
    assert len(quad) == 4 or iou(quad, arrow) > 0.5
    assert np.isfinite(quad).all()


def test_iou():
    square = np.array([(0, 0), (2, 0), (2, 2), (0, 2)], float)
    assert iou(square, square) == 1
    assert iou(square, square + (1, 0)) == pytest.approx(1 / 3)
    assert iou(square, square + 5) == 0


@pytest.mark.data
def test_real_annotations_give_two_edges(data_dir):
    import pyarrow.parquet

    columns = ["polygons", "width", "height"]
    rows = pyarrow.parquet.read_table(data_dir / "scenes.parquet", columns=columns).to_pylist()
    total, refused = 0, 0
    for row in rows[::2]:
        for polygon in row["polygons"]:
            total += 1
            try:
                points = check_polygon(polygon, (row["height"], row["width"]))
            except PolygonError:
                refused += 1
                continue
            edges = edge_curves(instance_polygon(points))
            assert len(edges[0]) == len(edges[1]) >= 2
    assert total > 1000 and refused < 0.005 * total
