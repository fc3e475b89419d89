"""Changes to images for measuring: what they claim, the same for the same seed; and evaluation on them."""

from typing import get_args

import numpy as np
import pytest
from datasets import Dataset
from drawings import WAVE
from PIL import Image, ImageOps

from epigraph import evaluation
from epigraph.data.ink import render
from epigraph.data.variants import Variant, vary


@pytest.fixture(scope="module")
def drawing():
    return render(WAVE)


@pytest.mark.parametrize("variant", get_args(Variant))
def test_a_variant_follows_from_its_name_and_seed(drawing, variant):
    first, again, other = (np.asarray(vary(drawing, variant, seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    alike = first.shape == other.shape and np.array_equal(first, other)
    assert alike == (variant in ("inverted", "doubled", "halved"))


def test_simple_variants_change_what_they_say(drawing):
    grey = np.asarray(drawing)
    assert np.array_equal(np.asarray(vary(drawing, "inverted")), 255 - grey)
    for variant, factor in (("doubled", 2), ("halved", 0.5)):
        changed = vary(drawing, variant)
        assert changed.size == (round(drawing.width * factor), round(drawing.height * factor))
        assert np.asarray(changed).mean() == pytest.approx(grey.mean(), rel=0.06)
    page = vary(ImageOps.invert(drawing), "page", 3)
    assert page.size == (3 * drawing.width, 3 * drawing.height) and page.getpixel((0, 0)) == 255
    left, top, right, bottom = ImageOps.invert(page).getbbox()
    cut = drawing.getbbox()
    assert (right - left, bottom - top) == (cut[2] - cut[0], cut[3] - cut[1])


def test_photographs_are_dark_on_light_whatever_was_given(drawing):
    for variant in ("photo", "lined", "squared"):
        of_light, of_dark = (np.asarray(vary(image, variant, 4)) for image in (drawing, ImageOps.invert(drawing)))
        assert np.array_equal(of_light, of_dark) and of_light.shape[2] == 3
        grey = of_light.mean(2)
        assert np.median(grey) > 90 and grey.min() < 0.7 * np.median(grey)
        assert len(np.unique(of_light)) > 100  # light and noise, not two greys


def test_long_images_stay_of_a_size_that_cameras_give():
    assert max(vary(Image.new("L", (4000, 60)), "photo", 0).size) <= 3000
    with pytest.raises(ValueError, match="variant must be one of inverted, .*, not 'upside_down'"):
        vary(Image.new("L", (9, 9)), "upside_down")


def test_evaluation_reads_the_changed_images(drawing, tmp_path):
    """Of images and of ink; what cannot be opened goes on as it is, to be that row's error."""
    file = tmp_path / "wave.png"
    drawing.save(file)
    content = file.read_bytes()
    rows = {"id": ["a", "b"], "text": ["x", "x"]}
    stored = [{"bytes": content, "path": None}, {"bytes": content[:50], "path": None}]
    bitmaps = Dataset.from_dict({**rows, "image": stored})
    first, damaged = evaluation._inputs(bitmaps, None, "doubled")
    assert first.size == (2 * drawing.width, 2 * drawing.height) and damaged == content[:50]
    strokes = [[float(value) for point in stroke for value in point] for stroke in WAVE]
    ink = Dataset.from_dict({**rows, "strokes": [strokes] * 2})
    assert [image.size for image in evaluation._inputs(ink, None, "page")] == [
        (3 * drawing.width, 3 * drawing.height)
    ] * 2
    assert isinstance(next(iter(evaluation._inputs(ink, None))), list)
    with pytest.raises(ValueError, match="task 'ink' reads strokes"):
        evaluation._inputs(ink, "ink", "page")
