"""Images of any kind to PixelViT's pixels: parity with transformers' ViT processor, bounds, ids, maps back."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from epigraph.models import PixelViTConfig, PixelViTForImageClassification, PixelViTImageProcessor


def picture(width=60, height=45):
    """A colour picture with edges, ramps and noise, upright and not symmetric."""
    noise = np.random.default_rng(0).integers(0, 60, (height, width, 3))
    ramp = np.linspace(0, 190, width)[None, :, None] * np.array([1.0, 0.5, 0.2])
    image = Image.fromarray((noise + ramp).astype(np.uint8))
    ImageDraw.Draw(image).ellipse([8, 5, 30, 40], fill=(20, 200, 90), outline=(255, 255, 255))
    return image


def grey():
    return picture().convert("L")


@pytest.fixture
def whole():
    """Keeps the size, the channel count 1 and the numbers 0..255, so that tests see every pixel as it is."""
    return PixelViTImageProcessor(num_channels=1, do_resize=False, pixel_ids=True)


def read(processor, image, **settings):
    """(channels, height, width) of one picture."""
    return processor(image, return_tensors="pt", **settings)["pixel_values"][0]


# ------------------------------------------------------------------------------------------------------- pixel values


@pytest.mark.parametrize("resample", [0, 1, 2, 3])
def test_colour_pictures_give_the_numbers_of_the_stock_vit_processor(resample):
    settings = {"size": {"height": 28, "width": 32}, "resample": resample}
    stock = ViTImageProcessorPil(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25], **settings)
    ours = PixelViTImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25], **settings)
    pictures = [picture(), picture(28, 32), picture(13, 200)]
    expected = torch.as_tensor(stock(pictures, return_tensors="pt")["pixel_values"])
    found = ours(pictures, return_tensors="pt")["pixel_values"]
    assert found.shape == (3, 3, 28, 32) and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_defaults_are_28_by_28_rgb_from_minus_one_to_one():
    batch = PixelViTImageProcessor()([Image.new("RGB", (90, 50), "white"), Image.new("L", (9, 9))])
    assert list(batch) == ["pixel_values"] and batch["pixel_values"].shape == (2, 3, 28, 28)
    assert (batch["pixel_values"][0] == 1).all() and (batch["pixel_values"][1] == -1).all()


def test_shrinking_averages():
    """A fine chequerboard is grey, not the one colour that sampling would hit."""
    board = (np.indices((280, 280)).sum(0) % 2 * 255).astype(np.uint8)
    found = read(PixelViTImageProcessor(), board)
    assert found.abs().max() < 0.05


def test_grey_and_colour_are_brought_to_the_channels_asked_for():
    one, three = PixelViTImageProcessor(num_channels=1), PixelViTImageProcessor()
    assert read(one, picture()).shape == (1, 28, 28)
    torch.testing.assert_close(read(one, picture()), read(one, grey()))
    channels = read(three, grey())
    assert torch.equal(channels[0], channels[1]) and torch.equal(channels[:1], read(one, grey()))
    colours = read(three, picture())
    assert not torch.equal(colours[0], colours[1])


@pytest.mark.parametrize("size", [8, {"height": 8, "width": 12}, (8, 12)])
def test_sizes_are_height_and_width(size):
    expected = (8, 8) if size == 8 else (8, 12)
    assert read(PixelViTImageProcessor(size=size), picture()).shape == (3, *expected)
    assert read(PixelViTImageProcessor(), picture(), size=size).shape == (3, *expected)


def test_rescaling_and_normalising_can_be_left_out():
    array = np.asarray(grey())
    settings = {"num_channels": 1, "do_resize": False, "do_normalize": False}
    raw = read(PixelViTImageProcessor(**settings, do_rescale=False), grey())
    assert raw.dtype == torch.float32 and np.array_equal(raw[0].numpy(), array)
    torch.testing.assert_close(read(PixelViTImageProcessor(**settings), grey()), raw / 255)
    scaled = read(PixelViTImageProcessor(num_channels=1, do_resize=False, image_mean=0.25, image_std=0.1), grey())
    torch.testing.assert_close(scaled, (raw / 255 - 0.25) / 0.1)


def test_pixel_ids_are_the_brightness_as_integers():
    found = PixelViTImageProcessor(num_channels=1, pixel_ids=True)(grey(), return_tensors="pt")["pixel_values"]
    assert found.dtype == torch.int64 and found.shape == (1, 1, 28, 28)
    floats = read(PixelViTImageProcessor(num_channels=1), grey())
    torch.testing.assert_close(found[0] / 255 * 2 - 1, floats)
    assert read(PixelViTImageProcessor(num_channels=1), grey(), pixel_ids=True).dtype == torch.int64


@pytest.mark.parametrize("kind, expected", [("pt", torch.Tensor), ("np", np.ndarray), (None, torch.Tensor)])
def test_kinds_of_result(kind, expected):
    found = PixelViTImageProcessor()(picture(), return_tensors=kind)["pixel_values"]
    assert isinstance(found, expected) and found.shape == (1, 3, 28, 28)


# ------------------------------------------------------------------------------------------------------ kinds of image


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"])
def test_every_mode_of_image(whole, mode):
    image = grey().point(lambda value: 255 * (value > 90)) if mode in ("1", "P", "PA") else grey()
    if mode in ("I", "I;16"):
        converted = Image.fromarray(np.asarray(image).astype(np.uint16) * 257).convert(mode)
    else:
        converted = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    assert converted.mode == mode
    assert (read(whole, converted) - read(whole, image)).abs().max() <= 2


def test_transparent_pixels_are_white(whole):
    for mode in ("RGBA", "LA"):
        image = Image.new(mode, (4, 4))
        image.putpixel((1, 2), (10, 10, 10, 255) if mode == "RGBA" else (10, 255))
        image.putpixel((2, 2), (0, 0, 0, 51) if mode == "RGBA" else (0, 51))
        found = read(whole, image)[0]
        assert found[0, 0] == 255 and found[2, 1] == 10 and found[2, 2] == 204
    palette = Image.new("P", (4, 4))
    palette.putpalette([9, 9, 9] * 2)
    palette.putpixel((1, 2), 1)
    palette.info["transparency"] = 0
    assert read(whole, palette)[0, 0, 0] == 255 and read(whole, palette)[0, 2, 1] == 9


def test_photographs_are_turned_upright(whole, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    grey().save(tmp_path / "photo.png", exif=exif)
    expected = read(whole, grey().transpose(Image.Transpose.ROTATE_270))
    assert torch.equal(read(whole, tmp_path / "photo.png"), expected)
    assert torch.equal(read(whole, Image.open(tmp_path / "photo.png")), expected)


@pytest.mark.parametrize(
    "convert",
    [
        lambda array: array.astype(np.int32),
        lambda array: array.astype(np.int64),
        lambda array: array.astype(np.uint16) * 257,
        lambda array: array.astype(np.int32) * 257,
        lambda array: array.astype(np.float32) / 255,
        lambda array: array.astype(np.float64),
        lambda array: array.astype(np.float32)[None],
        lambda array: array[..., None],
        lambda array: np.stack([array] * 3, -1),
        lambda array: np.stack([array] * 3),
        lambda array: np.stack([array, np.full_like(array, 255)], -1),
        lambda array: np.asfortranarray(array),
        lambda array: torch.tensor(array),
        lambda array: (torch.tensor(array)[None] / 255).requires_grad_(),
        lambda array: torch.tensor(array)[None, None] / 255,
    ],
)
def test_every_kind_of_array(whole, convert):
    array = np.asarray(grey())
    assert (read(whole, convert(array)) - read(whole, array)).abs().max() <= 1
    assert np.array_equal(read(whole, array)[0].numpy(), array)


def test_bools_are_black_and_white(whole):
    found = read(whole, np.eye(4, dtype=bool))
    assert torch.equal(found[0], torch.eye(4, dtype=torch.long) * 255)


def test_half_precision_tensors_are_read(whole):
    array = np.asarray(grey())
    found = read(whole, torch.tensor(array).to(torch.bfloat16) / 255)
    assert (found - read(whole, array)).abs().max() <= 2


def test_the_layout_can_be_stated_where_it_is_ambiguous(whole):
    array = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    first = read(whole, array, input_data_format="channels_first")
    last = read(whole, array, input_data_format="channels_last")
    assert torch.equal(read(whole, array), first) and first.shape == (1, 5, 3) and last.shape == (1, 3, 5)


def test_batches_lists_and_paths_are_the_same_images(tmp_path):
    processor = PixelViTImageProcessor()
    pictures = [picture(), picture().rotate(180)]
    for number, image in enumerate(pictures):
        image.save(tmp_path / f"{number}.png")
    expected = processor(pictures)["pixel_values"]
    stacked = np.stack([np.asarray(image) for image in pictures])
    paths = [tmp_path / "0.png", str(tmp_path / "1.png")]
    for images in ([[pictures[0]], [pictures[1]]], tuple(pictures), stacked, torch.tensor(stacked), paths):
        assert torch.equal(processor(images)["pixel_values"], expected)
    mixed = [paths[0], stacked[1].transpose(2, 0, 1)]
    assert torch.equal(processor(mixed)["pixel_values"], expected)


# ----------------------------------------------------------------------------------------------------------- bad input


def broken(tmp_path):
    picture().save(tmp_path / "torn.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "torn.png").read_bytes()[:900])
    return tmp_path / "torn.png"


def frames(tmp_path):
    grey().save(tmp_path / "moving.gif", save_all=True, append_images=[grey().rotate(90)])
    return tmp_path / "moving.gif"


def no_image(tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    return tmp_path / "notes.png"


BAD = {
    "NaN": (lambda folder: np.full((9, 9), np.nan), "holds NaN or infinite"),
    "infinite": (lambda folder: torch.full((9, 9), torch.inf), "holds NaN or infinite"),
    "normalised": (lambda folder: np.full((9, 9), -0.4), "down to -0.4"),
    "beyond": (lambda folder: np.full((9, 9), 3e5), "up to 300000"),
    "channels": (lambda folder: np.zeros((7, 30, 40), np.uint8), r"shape \(7, 30, 40\)"),
    "empty": (lambda folder: np.zeros((0, 40), np.uint8), r"shape \(0, 40\)"),
    "strings": (lambda folder: np.array([["a", "b"]]), "is no image"),
    "number": (lambda folder: 7, "int is no image"),
    "nothing": (lambda folder: None, "NoneType is no image"),
    "large": (lambda folder: np.broadcast_to(np.uint8(0), (9000, 9000)), "81,000,000 pixels are more than"),
    "large picture": (lambda folder: Image.new("1", (9000, 9000)), "81,000,000 pixels are more than"),
    "torn": (broken, "is damaged"),
    "frames": (frames, "2 frames"),
    "no image": (no_image, "is no image of the formats"),
    "absent": (lambda folder: folder / "absent.png", "absent.png.* no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_named_in_one_sentence(tmp_path, case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        PixelViTImageProcessor()([picture(), make(tmp_path)])
    assert re.match(r"Image 1( \(.*\))? cannot be read: ", str(caught.value))


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="no images to process"):
        PixelViTImageProcessor()([])


def test_without_resizing_sizes_must_be_equal():
    processor = PixelViTImageProcessor(do_resize=False)
    assert processor([picture(), picture()])["pixel_values"].shape == (2, 3, 45, 60)
    with pytest.raises(ValueError, match=r"Image 2 has 45 x 61 pixels \(height x width\) and image 0 has 45 x 60"):
        processor([picture(), picture(), picture(61)])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_channels": 4}, "num_channels must be 1"),
        ({"size": {"shortest_edge": 28}}, "size must be"),
        ({"image_mean": [0.5, 0.5]}, "image_mean has 2 values"),
        ({"image_std": [0.5] * 3, "num_channels": 1}, "image_std has 3 values for num_channels=1"),
        ({"image_std": 0.0}, "image_std must be above 0, not 0.0"),
        ({"image_std": [0.5, 0.5, 0.0]}, "image_std must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PixelViTImageProcessor(**settings)(picture())


# --------------------------------------------------------------------------------------------------- segmentation maps


def test_maps_are_brought_to_the_sizes_asked_for():
    processor = PixelViTImageProcessor()
    logits = torch.zeros(2, 3, 4, 4)
    logits[0, 1, :, :2], logits[1, 2] = 5, 5
    outputs = SimpleNamespace(logits=logits)
    maps = processor.post_process_semantic_segmentation(outputs)
    assert [tuple(one.shape) for one in maps] == [(4, 4)] * 2 and maps[0].dtype == torch.int64
    for sizes in ([(8, 12), (3, 5)], torch.tensor([[8, 12], [3, 5]])):
        maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        assert [tuple(one.shape) for one in maps] == [(8, 12), (3, 5)]
        assert (maps[0][:, :5] == 1).all() and (maps[0][:, 8:] == 0).all() and (maps[1] == 2).all()


def test_maps_that_cannot_be_made_are_refused():
    processor = PixelViTImageProcessor()
    with pytest.raises(ValueError, match="2 sizes for 1 images"):
        outputs = SimpleNamespace(logits=torch.zeros(1, 3, 4, 4))
        processor.post_process_semantic_segmentation(outputs, target_sizes=[(4, 4), (5, 5)])
    with pytest.raises(ValueError, match="no classes"):
        processor.post_process_semantic_segmentation(SimpleNamespace(logits=torch.zeros(1, 1, 4, 4)))


# -------------------------------------------------------------------------------------------------------------- saving


def test_it_is_saved_with_its_settings(tmp_path):
    settings = {"num_channels": 1, "size": {"height": 9, "width": 7}, "resample": 2, "image_mean": 0.3}
    processor = PixelViTImageProcessor(**settings, image_std=[0.2])
    processor.save_pretrained(tmp_path)
    for loaded in (AutoImageProcessor.from_pretrained(tmp_path), PixelViTImageProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is PixelViTImageProcessor and loaded.to_dict() == processor.to_dict()
        assert torch.equal(read(loaded, picture()), read(processor, picture()))
        assert read(loaded, picture()).shape == (1, 9, 7)


@pytest.mark.parametrize("pixel_ids", [False, True])
def test_the_pipeline_of_transformers_classifies_pictures_and_paths(tmp_path, pixel_ids):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    config = PixelViTConfig(
        **sizes, image_size=8, num_channels=1, num_labels=3, pixel_vocab_size=256 if pixel_ids else None
    )
    PixelViTForImageClassification(config).save_pretrained(tmp_path / "model")
    processor = PixelViTImageProcessor(num_channels=1, size=8, pixel_ids=pixel_ids)
    processor.save_pretrained(tmp_path / "model")
    picture().save(tmp_path / "picture.png")
    model = PixelViTForImageClassification.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        expected = model(**processor(picture(), return_tensors="pt")).logits[0].softmax(0).sort(descending=True)
    # By name, as users do; and put together by hand.
    for settings in (
        {"model": str(tmp_path / "model")},
        {"model": model, "image_processor": processor},
    ):
        classify = pipeline("image-classification", **settings)
        one, other = classify([picture(), str(tmp_path / "picture.png")])
        assert one == other and [entry["label"] for entry in one] == [f"LABEL_{i}" for i in expected.indices]
        assert [entry["score"] for entry in one] == pytest.approx(expected.values.tolist(), abs=1e-5)
