"""Images and labels to tensors and back: parity with the official preprocessing, and every kind of image."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from epigraph.models.image_processing import TextImageProcessor
from epigraph.models.processing import comer_processor
from epigraph.models.tokenization import CROHME_SYMBOLS, latex_tokenizer

FIXTURES = Path(__file__).parent / "fixtures" / "comer"
OFFICIAL = {"polarity": "light_on_dark", "antialias": False}


@pytest.fixture(scope="module")
def processor():
    return comer_processor()


@pytest.fixture
def images():
    return TextImageProcessor()


def drawing(width=90, height=40):
    """White ink on black, "L"."""
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).line([(8, 8), (30, 30), (30, 8), (width - 12, 20)], fill=255, width=3)
    return image


def read(images, picture, **kwargs):
    """(height, width) of one picture."""
    return images(picture, return_tensors="pt", **kwargs)["pixel_values"][0, 0]


# --------------------------------------------------------------------------------------------- parity


def assert_resized_as_official(tensors, listed):
    assert len(listed) >= 2
    for entry in listed:
        picture, expected = tensors[f"scale.{entry['i']}.in"], tensors[f"scale.{entry['i']}.out"]
        assert list(expected.shape) == entry["out_hw"]
        found = read(TextImageProcessor(**OFFICIAL), picture.numpy())
        assert found.shape == expected.shape
        assert (found * 255 - expected).abs().max() <= 1


def assert_scaled_as_official(tensors, factors):
    for index, factor in factors.items():
        picture, expected = tensors[f"aug.{index}.in"], tensors[f"aug.{index}.out"]
        free = {"min_size": {"height": 1, "width": 1}, "max_size": {"height": 10**4, "width": 10**4}}
        found = read(TextImageProcessor(**OFFICIAL, **free), picture.numpy(), scale=factor)
        assert found.shape == expected.shape
        assert (found * 255 - expected).abs().max() <= 1


def test_preprocessing_is_the_official_one():
    tensors = load_file(FIXTURES / "preprocess.safetensors")
    listed = json.loads((FIXTURES / "preprocess.json").read_text())
    small = [entry for entry in listed["scale_to_limit"] if f"scale.{entry['i']}.in" in tensors]
    assert_resized_as_official(tensors, small)
    assert_scaled_as_official(tensors, dict(enumerate(listed["aug_factors"])))


@pytest.mark.goldens
def test_preprocessing_is_the_official_one_for_all_goldens(goldens_dir):
    tensors = load_file(goldens_dir / "comer" / "preprocess.safetensors")
    listed = json.loads((goldens_dir / "comer" / "preprocess.json").read_text())
    assert_resized_as_official(tensors, listed["scale_to_limit"])
    assert_scaled_as_official(tensors, dict(enumerate(listed["aug_factors"])))


def test_symbols_have_the_official_numbers(processor):
    vocabulary = json.loads((FIXTURES / "preprocess.json").read_text())["vocab"]
    assert len(vocabulary) == 113
    assert processor.tokenizer.get_vocab() == vocabulary


# --------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(("height", "width"), [(10, 900), (10, 641), (170, 10), (1, 65)])
def test_too_long_for_a_formula(images, height, width):
    picture = np.zeros((height, width), np.uint8)
    picture[0, 0] = 255
    with pytest.raises(
        ValueError, match=rf"Image 1 cannot be read: an image of {width} x {height} pixels is too long"
    ):
        images([drawing(), picture])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((40, 90), (40, 90)),
        ((10, 640), (16, 1024)),
        ((160, 10), (256, 16)),
        ((3, 4), (16, 21)),
        ((512, 512), (256, 256)),
        ((300, 4800), (64, 1024)),
    ],
)
def test_limits_keep_the_ratio(images, size, expected):
    picture = np.zeros(size, np.uint8)
    picture[: size[0] // 2 + 1] = 255
    for antialias in (False, True):
        found = read(images, picture, antialias=antialias, polarity="light_on_dark")
        assert tuple(found.shape) == expected
        assert 0 <= found.min() and found.max() <= 1
        assert abs(found.mean() - picture.mean() / 255) < 0.06


def test_scale_comes_before_the_limits(images):
    assert read(images, drawing(200, 100), scale=0.5).shape == (50, 100)
    assert read(images, drawing(200, 100), scale=0.1).shape == (16, 32)
    assert read(images, drawing(200, 100), scale=10.0).shape == (256, 512)


def test_mask_is_what_is_image(images):
    sizes = [(40, 90), (64, 50), (33, 77)]
    batch = images([drawing(width, height) for height, width in sizes], return_tensors="pt")
    assert batch["pixel_values"].shape == (3, 1, 64, 90) and batch["pixel_mask"].shape == (3, 64, 90)
    assert batch["pixel_values"].dtype == torch.float32 and batch["pixel_mask"].dtype == torch.int64
    for index, (height, width) in enumerate(sizes):
        expected = torch.zeros(64, 90, dtype=torch.long)
        expected[:height, :width] = 1
        assert torch.equal(batch["pixel_mask"][index], expected)
        assert not batch["pixel_values"][index, 0][expected == 0].any()
        alone = read(images, drawing(width, height))
        assert torch.equal(batch["pixel_values"][index, 0, :height, :width], alone)


# --------------------------------------------------------------------------------------------- kinds of images


def test_ink_is_white_whatever_the_page(images):
    light = drawing()
    dark = Image.eval(light, lambda value: 255 - value)
    expected = read(images, light)
    assert expected.mean() < 0.3 and torch.equal(read(images, dark), expected)
    assert torch.equal(read(images, dark, polarity="dark_on_light"), expected)
    assert torch.equal(read(images, light, polarity="dark_on_light"), 1 - expected)
    with pytest.raises(ValueError, match="polarity must be auto, .* not 'black'"):
        images(light, polarity="black")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "I", "I;16", "F"])
def test_every_mode_of_image(images, mode):
    picture = drawing()
    expected = read(images, picture)
    if mode in ("I", "I;16"):
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257).convert(mode)
    elif mode == "PA":
        picture = picture.convert("P").convert("PA")
    else:
        picture = picture.convert(mode)
    assert picture.mode == mode
    torch.testing.assert_close(read(images, picture), expected, atol=2 / 255, rtol=0)


def test_palette_gives_colours_not_their_numbers(images):
    """Index 0 is the white page here, index 1 the black ink."""
    picture = Image.new("P", (90, 40))
    picture.putpalette([255, 255, 255, 0, 0, 0])
    ImageDraw.Draw(picture).line([(8, 8), (30, 30), (30, 8), (78, 20)], fill=1, width=3)
    assert torch.equal(read(images, picture), read(images, drawing()))


def test_transparent_pixels_are_page(images):
    """Black ink on nothing, as signature pads export it: the colour under transparency is black too."""
    ink = drawing()
    for mode in ("RGBA", "LA"):
        picture = Image.new(mode, ink.size)
        picture.putalpha(ink)
        torch.testing.assert_close(read(images, picture), read(images, ink), atol=1 / 255, rtol=0)
    palette = Image.new("P", ink.size)
    palette.putpalette([0, 0, 0] * 2)
    palette.paste(1, mask=ink)
    palette.info["transparency"] = 0
    torch.testing.assert_close(read(images, palette), read(images, ink), atol=1 / 255, rtol=0)


@pytest.mark.parametrize(
    "convert",
    [
        lambda grey: grey > 127,
        lambda grey: (grey > 127).astype(np.int64),
        lambda grey: grey.astype(np.int32),
        lambda grey: grey.astype(np.int64),
        lambda grey: grey.astype(np.uint16) * 257,
        lambda grey: grey.astype(np.float32) / 255,
        lambda grey: grey.astype(np.float64),
        lambda grey: grey.astype(np.float16) / 255,
        lambda grey: grey[None],
        lambda grey: grey[..., None],
        lambda grey: np.stack([grey] * 3, -1),
        lambda grey: np.stack([grey] * 3),
        lambda grey: np.asfortranarray(grey),
        lambda grey: grey[:, ::-1][:, ::-1],
        lambda grey: torch.tensor(grey),
        lambda grey: torch.tensor(grey)[None] / 255,
    ],
)
def test_every_kind_of_array(images, convert):
    grey = np.asarray(drawing())
    torch.testing.assert_close(read(images, convert(grey)), read(images, grey), atol=1 / 255, rtol=0)


def nan():
    picture = np.asarray(drawing()).astype(np.float32) / 255
    picture[3, 4] = np.nan
    return picture


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (nan(), "holds NaN or infinite values"),
        (np.where(np.isnan(nan()), np.inf, 0), "holds NaN or infinite values"),
        (Image.new("L", (60, 40), 255), "is blank"),
        (Image.new("RGB", (60, 40)), "is blank"),
        (Image.new("L", (1, 1), 128), "is blank"),
        (np.zeros((0, 40), np.uint8), "has shape"),
        (np.zeros((7, 30, 40), np.uint8), "has shape"),
    ],
)
def test_what_cannot_be_read_is_named(processor, picture, message):
    with pytest.raises(ValueError, match=f"Image 1 .*{message}"):
        processor(images=[drawing(), picture])


@pytest.mark.parametrize("picture", ["formula.png", None, 7, b"bytes"])
def test_what_is_no_image(processor, picture):
    with pytest.raises((ValueError, TypeError, OSError)):
        processor(images=[drawing(), picture])


def test_cropping_leaves_the_ink(images):
    wide = Image.new("L", (400, 200))
    wide.paste(drawing(), (150, 80))
    found = read(images, wide, crop_margin=5)
    assert found.shape[0] < 50 and found.shape[1] < 90
    assert torch.equal(found, read(images, drawing(), crop_margin=5))
    assert not found[:5].any() and not found[:, :5].any() and not found[-5:].any() and not found[:, -5:].any()
    bar = np.zeros((40, 900), np.uint8)
    bar[20:22] = 255  # by itself 450 times as wide as high
    assert read(images, bar, crop_margin=2).shape == (16, 904)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scale": 0.6},
        {"scale": 0.6, "antialias": False},
        {"crop_margin": 4},
        {"crop_margin": 0, "scale": 1.7},
        {"crop_margin": 300, "scale": 0.5},  # the margin passes the left and upper edge
        {"max_size": {"height": 64, "width": 90}},
        {"min_size": {"height": 400, "width": 16}, "max_size": {"height": 900, "width": 2000}, "crop_margin": 3},
        {"crop_margin": 4, "scale": 0.47, "antialias": False},
    ],
)
def test_geometry_leads_from_image_to_model_and_back(images, settings):
    """The middle of each dot, known in the image, is where `pixel_values` has it."""
    dots = np.array([[61.0, 40.5], [250.0, 93.0], [140.5, 150.0]])  # x, y
    ys, xs = np.mgrid[:200, :400] + 0.5
    picture = np.zeros((200, 400), np.uint8)
    for x, y in dots:
        picture[(xs - x) ** 2 + (ys - y) ** 2 < 6**2] = 255
    batch = images([drawing(700, 300), picture], return_tensors="pt", return_geometry=True, **settings)
    assert batch["geometry"].shape == (2, 4) and batch["geometry"].dtype == torch.float32
    left, top, scale_x, scale_y = batch["geometry"][1].tolist()
    values = batch["pixel_values"][1, 0].numpy()
    ys, xs = np.mgrid[: values.shape[0], : values.shape[1]] + 0.5
    for x, y in dots:
        expected_x, expected_y = (x - left) * scale_x, (y - top) * scale_y
        near = values * ((xs - expected_x) ** 2 + (ys - expected_y) ** 2 < (9 * scale_x) ** 2)
        assert near.sum() > 0.8 * np.pi * 36 * scale_x * scale_y
        found_x, found_y = (near * xs).sum() / near.sum(), (near * ys).sum() / near.sum()
        assert abs(found_x - expected_x) < 0.3 and abs(found_y - expected_y) < 0.3
        assert abs(found_x / scale_x + left - x) < 0.6 and abs(found_y / scale_y + top - y) < 0.6


def test_geometry_is_given_only_to_who_asks(processor):
    assert "geometry" not in processor(images=[drawing()])
    assert processor(images=[drawing()], return_geometry=True)["geometry"].tolist() == [[0, 0, 1, 1]]
    assert "return_geometry" not in processor.image_processor.to_dict()


def test_image_processor_is_saved_with_its_settings(tmp_path):
    processor = comer_processor(scale=0.5, crop_margin=3, **OFFICIAL)
    processor.save_pretrained(tmp_path)
    for loaded in (
        AutoProcessor.from_pretrained(tmp_path).image_processor,
        AutoImageProcessor.from_pretrained(tmp_path),
    ):
        assert type(loaded) is TextImageProcessor
        assert (loaded.scale, loaded.crop_margin, loaded.polarity, loaded.antialias) == (
            0.5,
            3,
            "light_on_dark",
            False,
        )
        assert torch.equal(read(loaded, drawing()), read(processor.image_processor, drawing()))


# --------------------------------------------------------------------------------------------- labels


def test_labels_and_back(processor):
    texts = [r"\frac { x ^ { 2 } } { y _ i } \leq 1 . 5", "a", "( - 3 , \\sqrt [ 3 ] { z } )"]
    batch = processor(images=[drawing()] * 3, text=texts)
    assert batch["labels"].shape == (3, max(len(text.split()) for text in texts))
    assert batch["labels"].dtype == torch.int64
    assert processor.decode_labels(batch["labels"]) == texts
    for text in texts:
        ids = processor.tokenizer(text)["input_ids"]
        assert processor.tokenizer.decode(ids) == text
        assert torch.equal(processor(text=text)["labels"], torch.tensor([ids]))
    every = " ".join(CROHME_SYMBOLS)
    assert processor.tokenizer.decode(processor.tokenizer(every)["input_ids"]) == every
    assert processor.tokenizer.batch_decode(batch["labels"], skip_special_tokens=True) == texts
    framed = [[1, *processor.tokenizer("a + b")["input_ids"], 2, 0, 0]]
    assert processor.decode_labels(framed) == processor.decode_labels(torch.tensor(framed)) == ["a + b"]


def test_unknown_tokens_are_named(processor):
    with pytest.raises(ValueError, match=r"Label 1 .'x \+ \\\\oops y.. holds \\oops, which the vocabulary lacks"):
        processor(text=["x + y", r"x + \oops y"])
    with pytest.raises(ValueError, match="holds a\\+b"):
        processor(text="a+b")
    with pytest.raises(ValueError, match="needs images, text, or both"):
        processor()


def test_vocabularies_of_ones_own():
    tokenizer = latex_tokenizer(["x", "+"])
    assert tokenizer.get_vocab() == {"<pad>": 0, "<sos>": 1, "<eos>": 2, "x": 3, "+": 4}
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    for symbols in (["x", "x"], ["x", "<pad>"]):
        with pytest.raises(ValueError, match="stands twice in the vocabulary, or is one of"):
            latex_tokenizer(symbols)


def test_tokenizer_needs_no_code_of_ours(processor, tmp_path, run_python):
    processor.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded.get_vocab() == processor.tokenizer.get_vocab()
    text = r"\frac { 1 } { x ^ 2 }"
    done = run_python(
        f"""
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / "saved")!r})
ids = tokenizer({text!r})["input_ids"]
assert tokenizer.decode(ids) == {text!r}, tokenizer.decode(ids)
assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", "<sos>", "<eos>")
print(*ids)
""",
        without=["epigraph"],
    )
    assert [int(i) for i in done.stdout.split()] == processor.tokenizer(text)["input_ids"]
