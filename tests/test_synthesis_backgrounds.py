"""Backgrounds are pure functions of a record; folders of images are read with all that goes wrong in them."""

import json
import logging
import struct
import zlib
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cv2", reason="synthesis needs the extra `train`")

from epigraph.data.synthesis import backgrounds
from epigraph.data.synthesis.backgrounds import (
    KINDS,
    TEXTURES,
    Background,
    BackgroundPool,
    paint,
    sample_background,
)
from epigraph.data.synthesis.fonts import SynthesisError

SIZES = [(32, 128), (64, 256), (256, 48), (512, 512)]


@pytest.fixture(autouse=True)
def no_images_in_memory():
    backgrounds._images.clear()


def _of_kind(kind, seed=0, **changes):
    return replace(sample_background(np.random.default_rng(seed), kinds={kind: 1.0}), **changes)


# ---- painted ----


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_pure_and_fits_any_size(kind):
    for seed, size in enumerate([*SIZES, (1, 1), (2, 900), (900, 3), (1000, 1000)]):
        background = _of_kind(kind, seed, light=0.7, grain=2.0)
        image = paint(background, size)
        assert image.shape == (*size, 3) and image.dtype == np.uint8
        assert np.array_equal(image, paint(background, size))


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_record_decide(kind):
    first = _of_kind(kind, 1, light=0.5, grain=1.0)
    assert not np.array_equal(paint(first, (64, 256)), paint(replace(first, seed=first.seed + 1), (64, 256)))


def test_record_survives_json():
    for seed in range(50):
        background = sample_background(np.random.default_rng(seed))
        stored = json.loads(json.dumps(asdict(background)))
        stored["colors"] = tuple(tuple(color) for color in stored["colors"])
        stored["box"] = tuple(stored["box"])
        assert Background(**stored) == background
        assert sample_background(np.random.default_rng(seed)) == background


def test_shares_of_kinds():
    rng = np.random.default_rng(0)
    drawn = [sample_background(rng).kind for _ in range(6000)]
    for kind, share in KINDS.items():
        assert drawn.count(kind) / len(drawn) == pytest.approx(share / sum(KINDS.values()), abs=0.02)
    assert 0.4 < np.mean([kind in TEXTURES for kind in drawn]) < 0.7
    assert {sample_background(rng, kinds={"wood": 2, "brick": 0}).kind for _ in range(50)} == {"wood"}


def test_without_light_and_grain_a_plain_wall_is_one_colour():
    background = Background("plain", 0, ((10, 200, 30),))
    assert (paint(background, (32, 128)) == (10, 200, 30)).all()
    grained = paint(replace(background, colors=((120, 130, 140),), grain=5.0), (256, 256)).astype(float)
    assert grained.std(axis=(0, 1)) == pytest.approx(np.full(3, 5.0), rel=0.15)
    assert grained.mean(axis=(0, 1)) == pytest.approx([120, 130, 140], abs=1)


@pytest.mark.parametrize("kind", sorted(TEXTURES - {"file"}))
def test_contrast_and_colour_of_textures(kind):
    """Contrast 0 leaves one colour of palette-painted kinds; more of it never makes the picture flatter."""
    background = replace(_of_kind(kind, 3), light=0.0, grain=0.0)
    flat, full = (paint(replace(background, contrast=contrast), (64, 256)) for contrast in (0.0, 1.0))
    if kind not in ("blurred", "street"):
        assert (flat == flat[0, 0]).all()
    assert full.reshape(-1, 3).std(axis=0).max() > 1


def test_textures_around_a_colour():
    rng = np.random.default_rng(0)
    for _ in range(60):
        background = sample_background(rng, kinds={"wood": 1, "stone": 1, "fabric": 1}, color=(30, 60, 200))
        mean = paint(replace(background, light=0.0, grain=0.0), (64, 64)).mean(axis=(0, 1))
        assert mean.argmax() == 2 and mean[2] - mean[0] > 40


def test_size_of_bricks_follows_the_scale():
    def joints(scale):
        image = paint(_of_kind("tiles", 5, scale=scale, light=0.0, grain=0.0, contrast=1.0), (256, 256))
        grey = image.astype(float).mean(axis=2).mean(axis=1)
        return np.sum(np.abs(np.diff(grey)) > 6)

    assert joints(0.06) > 2 * joints(0.3)


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (-1, 5), (8193, 10)])
def test_sizes_out_of_bounds(size):
    with pytest.raises(SynthesisError, match="cannot be painted"):
        paint(_of_kind("plain"), size)


def test_unknown_kinds():
    with pytest.raises(SynthesisError, match="marble"):
        paint(Background("marble", 0, ((0, 0, 0),)), (8, 8))
    for kinds in ({"marble": 1}, {}, {"wood": 0}, {"wood": -1, "brick": 2}):
        with pytest.raises(SynthesisError, match="'marble' does not exist|shares above 0"):
            sample_background(np.random.default_rng(0), kinds=kinds)


# ---- folders ----


def _scene(width=90, height=60):
    """Left half red, right half green, top row of the left half blue."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2] = (250, 0, 0)
    image[:, width // 2 :] = (0, 250, 0)
    return image


def _whole(path, size=(60, 90)):
    return paint(Background("file", 0, (), path=str(path)), size)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    Image.fromarray(_scene()).save(tmp_path / "in" / "good.png")
    return tmp_path / "in"


def test_pool_counts_what_is_of_no_use(folder, caplog, monkeypatch):
    good = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8))
    good.save(folder / "sub" / "photo.jpg")
    (folder / "half.jpg").write_bytes((folder / "sub" / "photo.jpg").read_bytes()[:1500])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.webp").write_bytes(b"")
    (folder / "notes.txt").write_text("not looked at")
    Image.fromarray(_scene(90, 8)).save(folder / "thin.png")
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
        for tag, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    )
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    with caplog.at_level(logging.WARNING, logger=backgrounds.__name__):
        pool = BackgroundPool([folder])
    assert [path.rsplit("/")[-1] for path in pool.paths] == ["good.png", "photo.jpg"] and len(pool) == 2
    assert pool.rejected == {"unreadable": 3, "too large": 1, "too small": 1}
    assert "5 of 7 background images are left out" in caplog.text and "bomb.png" in caplog.text
    monkeypatch.setattr(backgrounds, "MAX_FILE_BYTES", 100)
    with pytest.raises(SynthesisError, match="5 too large"):
        BackgroundPool([folder])


def test_pool_of_nothing(tmp_path):
    with pytest.raises(SynthesisError, match="does not exist"):
        BackgroundPool([tmp_path / "nowhere"])
    with pytest.raises(SynthesisError, match="no background image"):
        BackgroundPool([tmp_path])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(folder, mode):
    source = Image.fromarray(_scene())
    if mode == "I;16":
        image = Image.fromarray(np.full((60, 90), 51_400, np.uint16))
    else:
        image = source.quantize(4) if mode == "P" else source.convert(mode)
    suffix = "tif" if mode == "CMYK" else "png"
    image.save(folder / f"mode.{suffix}")
    painted = _whole(folder / f"mode.{suffix}")
    if mode == "I;16":
        assert (painted == 200).all()
    elif mode in ("L", "LA", "1"):
        assert np.array_equal(painted[..., 0], painted[..., 2])
        assert abs(int(painted[30, 10, 0]) - int(np.asarray(image.convert("L"))[30, 10])) <= 1 or mode == "1"
    else:
        assert np.abs(painted.astype(int) - _scene()).max() <= 3


def test_transparent_pixels_are_white(folder):
    pixels = np.dstack([_scene(), np.zeros((60, 90), np.uint8)])
    pixels[:, 60:, 3] = 255
    Image.fromarray(pixels, "RGBA").save(folder / "clear.png")
    painted = _whole(folder / "clear.png")
    assert (painted[:, :55] == 255).all() and (painted[:, 65:] == (0, 250, 0)).all()


def test_photograph_stands_upright(folder):
    image = Image.fromarray(_scene())
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the left half of the stored pixels is the upper half of the picture
    image.save(folder / "turned.jpg", exif=exif, quality=95, subsampling=0)
    painted = _whole(folder / "turned.jpg", (90, 60))
    assert painted[10, 30].argmax() == 0 and painted[80, 30].argmax() == 1
    assert painted[40, 5].argmax() == painted[40, 55].argmax() == 0


def test_crop_keeps_proportions_and_place(folder):
    record = Background("file", 0, (), path=str(folder / "good.png"))
    left = paint(replace(record, box=(0.0, 0.0, 0.5, 1.0)), (20, 20))
    assert (left == (250, 0, 0)).all()
    right = paint(replace(record, box=(0.5, 0.0, 1.0, 1.0)), (20, 20))
    assert (right == (0, 250, 0)).all()
    wide = paint(record, (16, 128))  # a strip from the middle; both halves are in it, neither is squeezed
    assert (wide[:, :60] == (250, 0, 0)).all() and (wide[:, 68:] == (0, 250, 0)).all()
    with pytest.raises(SynthesisError, match="is empty"):
        paint(replace(record, box=(0.5, 0.0, 0.5, 1.0)), (20, 20))


def test_extreme_shapes_of_image_and_canvas(folder):
    Image.fromarray(_scene(2000, 17)).save(folder / "long.png")
    for size in ((512, 8), (8, 512), (1, 1), (64, 256)):
        assert _whole(folder / "long.png", size).shape == (*size, 3)


def test_sampling_from_a_pool(folder):
    pool = BackgroundPool([folder])
    rng = np.random.default_rng(0)
    drawn = [sample_background(rng, pool, share=0.5) for _ in range(1000)]
    files = [background for background in drawn if background.kind == "file"]
    assert len(files) / 1000 == pytest.approx(0.5, abs=0.06)
    assert len({background.box for background in files}) > 400
    for background in files[:100]:
        left, top, right, bottom = background.box
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
        assert paint(background, (32, 128)).shape == (32, 128, 3)


def test_image_that_went_away_is_named(folder):
    with pytest.raises(SynthesisError, match="gone.png is unreadable"):
        _whole(folder / "gone.png")


def test_images_in_memory_are_bounded_and_reduced(folder, monkeypatch):
    Image.fromarray(_scene(3000, 1500)).save(folder / "large.png")
    assert backgrounds._image(str(folder / "large.png")).shape == (512, 1024, 3)
    monkeypatch.setattr(backgrounds, "CACHE_BYTES", 20_000)
    for number in range(5):
        Image.fromarray(_scene()).save(folder / f"{number}.png")
        _whole(folder / f"{number}.png")
    assert list(backgrounds._images) == [str(folder / "4.png")]
