"""Where the model looked: from its cells to the picture as it was given."""

import numpy as np
import pytest
import torch
from PIL import Image

from epigraph.models.processing import comer_processor

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
@pytest.mark.parametrize("settings", [{}, {"scale": 0.6, "crop_margin": 4}, {"scale": 2.0, "crop_margin": 9}])
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
    assert np.ptp(columns) + 1 <= 2 * cell + 2 and np.ptp(rows) + 1 <= 2 * cell + 2


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
