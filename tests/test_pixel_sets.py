"""What PixelViT reads, in any form that a user may have it in, and what it refuses by name."""

import math

import numpy as np
import pytest
import torch
from test_modeling_pixelvit import CLOSE, SIZE, build, full_set, images

from epigraph import (
    PixelViTBackbone,
    PixelViTForPreTraining,
    PixelViTForSemanticSegmentation,
    PixelViTModel,
    pad_pixel_sets,
)


def test_sets_are_padded():
    batch = pad_pixel_sets([torch.ones(2, 3), torch.ones(4, 3)], [torch.zeros(2, 2).long(), torch.ones(4, 2).long()])
    assert batch["pixels"].shape == (2, 4, 3) and batch["coordinates"].dtype == torch.long
    assert batch["pixel_mask"].tolist() == [[True, True, False, False], [True] * 4]
    for pixels, places, message in [
        ([], [], "0 sets of pixels and 0 of coordinates"),
        ([torch.ones(2, 3)], [], "1 sets of pixels and 0 of coordinates"),
        ([torch.ones(2, 3)], [torch.ones(3, 2)], r"set 0 has pixels \(2, 3\) and coordinates \(3, 2\)"),
        ([torch.ones(2)], [torch.ones(2, 2)], r"set 0 has pixels \(2,\)"),
        # Padding would repeat the one channel three times, and round half pixels.
        ([torch.ones(2, 3), torch.ones(2, 1)], [torch.ones(2, 2)] * 2, "set 1 has 1 channels of .* set 0 has 3 chann"),
        (
            [torch.ones(2, 3)] * 2,
            [torch.ones(2, 2).long(), torch.ones(2, 2)],
            "set 1 has .* at torch.float32, but set",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            pad_pixel_sets(pixels, places)


def test_arrays_and_lists_are_padded():
    pixels, places = [torch.rand(2, 3), torch.rand(4, 3)], [torch.zeros(2, 2).long(), torch.ones(4, 2).long()]
    expected = pad_pixel_sets(pixels, places)
    for convert in (torch.Tensor.numpy, torch.Tensor.tolist):
        batch = pad_pixel_sets([convert(one) for one in pixels], [convert(one) for one in places])
        assert all(torch.equal(batch[name], tensor) for name, tensor in expected.items())


def changed(**changes):
    """A good set of 42 pixels with some of its inputs replaced: values, or functions of the good ones."""
    given = {**full_set(images()), "pixel_mask": torch.ones(2, 42)}
    return {**given, **{name: value(given[name]) if callable(value) else value for name, value in changes.items()}}


def put(value, *at):
    def change(tensor):
        tensor = tensor.clone()
        tensor[at] = torch.as_tensor(value, dtype=tensor.dtype)
        return tensor

    return change


IDS = {"pixel_vocab_size": 10}
BAD = {
    "below the image": (changed(coordinates=put([6, 0], 1, 4)), r"coordinates of image 1 has \(6, 0\), .* its 6 x 7 "),
    "right of the image": (
        changed(coordinates=put([0, 7], 0, 4)),
        r"coordinates of image 0 has \(0, 7\), which is outs",
    ),
    "negative": (changed(coordinates=put([-1, 3], 0, 0)), r"coordinates of image 0 has \(-1, 3\), which is outside"),
    "smaller image": (changed(image_size=(5, 7)), r"has \(5, 0\), which is outside its 5 x 7 pixels"),
    "one smaller image": (
        changed(image_size=torch.tensor([[6, 7], [6, 6]])),
        r"image 1 has \(0, 6\).* its 6 x 6 pixels",
    ),
    "image of nothing": (changed(image_size=(0, 7)), "outside its 0 x 7 pixels"),
    "twice": (changed(coordinates=put([2, 3], 1, 40)), "coordinates of image 1 has the same pixel twice"),
    "no pixels": (
        changed(pixels=torch.ones(2, 0, 3), coordinates=torch.ones(2, 0, 2).long(), pixel_mask=None),
        "empty",
    ),
    "no images": (
        changed(pixels=torch.ones(0, 4, 3), coordinates=torch.ones(0, 4, 2).long(), pixel_mask=None),
        "empty",
    ),
    "all padding": (changed(pixel_mask=put(0, 1)), "pixels of image 1 is an empty set: all is padding"),
    "lists of sets": (changed(pixels=[torch.ones(3, 3), torch.ones(4, 3)]), "must be tensors; pad_pixel_sets makes"),
    "list of places": (changed(coordinates=[[0, 1]]), "pixels and coordinates must be tensors; pad_pixel_sets"),
    "unequal sets": (changed(coordinates=lambda c: c[:, :40]), r"\(2, 42, 2\).*sets of different sizes need padding"),
    "flat pixels": (changed(pixels=lambda p: p[0]), r"pixels must be \(batch, n, channels\), not \(42, 3\)"),
    "three numbers a place": (
        changed(coordinates=torch.ones(2, 42, 3).long()),
        r"coordinates must be \(batch, n, 2\)",
    ),
    "channels": (changed(pixels=lambda p: p[..., :1]), r"pixels \(2, 42, 1\) has 1 channels, but the model reads 3"),
    "fractions": (changed(coordinates=lambda c: c.float()), "coordinates must be integers, .* not torch.float32"),
    "complex": (changed(coordinates=lambda c: c + 0j), "coordinates must be integers, .* not torch.complex64"),
    "arrays": (changed(pixels=lambda p: p.numpy()), "pixels and coordinates must be tensors; pad_pixel_sets"),
    "bools": (changed(coordinates=lambda c: c > 3), "coordinates must be integers, .* not torch.bool"),
    "no places": (changed(coordinates=None), "pixels need coordinates"),
    "no size": (changed(image_size=None), "pixels need image_size: where a pixel lies cannot be told from the set"),
    "size of one": (changed(image_size=6), r"image_size must be integers of shape \(2,\) or \(batch, 2\)"),
    "size in fractions": (changed(image_size=(6.0, 7.0)), "image_size must be integers .* not torch.float32"),
    "size of three": (changed(image_size=(6, 7, 3)), r"image_size must be integers .* shape \(3,\)"),
    "sizes of three": (changed(image_size=torch.ones(3, 2).long()), r"image_size must be integers .* shape \(3, 2\)"),
    "size in words": (changed(image_size="large"), "image_size must be a height and a width, not 'large'"),
    "mask of another size": (changed(pixel_mask=torch.ones(2, 41)), r"pixel_mask must be .* \(2, 42\), not .*41"),
    "mask as a list": (
        changed(pixel_mask=[1] * 42),
        r"pixel_mask must be a tensor \(batch, n\) = \(2, 42\), not a list",
    ),
    "mask as an array": (
        changed(pixel_mask=np.ones((2, 42))),
        r"pixel_mask must be a tensor .* not a ndarray \(2, 42\)",
    ),
    # 0 would be read as padding and -inf as a pixel: the reverse of what such masks mean.
    "mask to add": (
        changed(pixel_mask=torch.full((2, 42), -math.inf)),
        "pixel_mask must hold 1 for pixels and 0 for pad",
    ),
    "mask of shares": (
        changed(pixel_mask=torch.full((2, 42), 0.5)),
        "pixel_mask must hold 1 for pixels and 0 for pad",
    ),
    "mask of nothing": (changed(pixel_mask=torch.full((2, 42), math.nan)), "pixel_mask must hold 1 for pixels and 0"),
    "size by name": (changed(image_size={"height": 6, "width": 7}), "image_size must be a height and a width, not {"),
    "size of bools": (changed(image_size=(True, True)), "image_size must be integers .* not torch.bool"),
    "negative size": (changed(image_size=(-6, 7)), "outside its -6 x 7 pixels"),
    "not a number": (changed(pixels=put(math.nan, 1, 3, 2)), "pixels of image 1 has numbers that are not finite"),
    "infinite": (changed(pixels=put(math.inf, 0, 3)), "pixels of image 0 has numbers that are not finite"),
    "ids": (
        changed(pixels=lambda p: p.long()),
        "pixels must be numbers, scaled as the processor does it, not torch.int",
    ),
    "nothing": ({}, "Give either pixel_values, or pixels with their coordinates and image_size"),
    "both": ({**changed(), "pixel_values": images()}, "Give either pixel_values, or pixels"),
    "only places": ({"coordinates": torch.ones(1, 1, 2).long()}, "Give either pixel_values, or pixels"),
    "size of images": ({"pixel_values": images(), "image_size": SIZE}, "belong to pixels, not to pixel_values"),
    "mask of images": (
        {"pixel_values": images(), "pixel_mask": torch.ones(2, 42)},
        "belong to pixels, not to pixel_v",
    ),
    "images of unequal sizes": (
        {"pixel_values": [images()[0], images(5, 5)[0]]},
        "pixel_values must be a tensor, not a",
    ),
    "one image": (
        {"pixel_values": images()[0]},
        r"pixel_values must be \(batch, channels, height, width\), not \(3, 6",
    ),
    "images of no pixels": ({"pixel_values": torch.ones(2, 3, 0, 7)}, r"not \(2, 3, 0, 7\)"),
    "grey images": ({"pixel_values": images(channels=1)}, "has 1 channels, but the model reads 3"),
    "images not finite": (
        {"pixel_values": put(math.nan, 1, 0, 0, 0)(images())},
        "pixel_values of image 1 has numbers",
    ),
    "images of ids": ({"pixel_values": images().long()}, "pixel_values must be numbers, scaled .* not torch.int64"),
}
BAD_IDS = {
    "numbers": ({"pixel_values": images()}, "pixel_values must be ids from 0 to 9, not torch.float32"),
    "numbers of a set": (changed(), "pixels must be ids from 0 to 9, not torch.float32"),
    "too large": ({"pixel_values": torch.full((1, 3, 6, 7), 10)}, "pixel_values of image 0 has ids outside 0 to 9"),
    "negative": (changed(pixels=lambda p: put(-1, 1, 1)(p.long() * 0)), "pixels of image 1 has ids outside 0 to 9"),
}


@pytest.mark.parametrize("head", [PixelViTModel, PixelViTForPreTraining])
@pytest.mark.parametrize("settings, name", [*(({}, name) for name in BAD), *((IDS, name) for name in BAD_IDS)])
def test_bad_input(head, settings, name):
    given, message = (BAD_IDS if settings else BAD)[name]
    with pytest.raises(ValueError, match=message) as error:
        build(head, **settings, decoder_hidden_size=16, decoder_num_hidden_layers=1)(**given)
    assert "\n" not in str(error.value)


def test_more_selected_than_there_are():
    with pytest.raises(ValueError, match="num_selected_pixels is 50, but an image of 6 x 7 has only 42 pixels"):
        build(pixel_selection="ink", num_selected_pixels=50)(images())


@pytest.mark.parametrize("head", [PixelViTForSemanticSegmentation, PixelViTBackbone])
@pytest.mark.parametrize(
    "name", ["images of unequal sizes", "one image", "images of no pixels", "grey images", "images not finite"]
)
def test_bad_images_of_other_heads(head, name):
    given, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        build(head)(**given)


def test_good_input_is_not_refused():
    """The set that the bad ones are made from, and a mask of every type."""
    model = build()
    expected = model(images()).logits
    for mask in (torch.ones(2, 42), torch.ones(2, 42).bool(), torch.ones(2, 42).long(), None):
        torch.testing.assert_close(model(**changed(pixel_mask=mask)).logits, expected, **CLOSE)
    sizes = [[6, 7], torch.tensor([6, 7]), torch.tensor([[6, 7]] * 2), torch.Size((6, 7)), np.array([6, 7])]
    for size in [*sizes, torch.tensor([6, 7], dtype=torch.uint8)]:
        torch.testing.assert_close(model(**changed(image_size=size)).logits, expected, **CLOSE)
    for dtype in (torch.uint8, torch.uint16, torch.uint32, torch.uint64):
        torch.testing.assert_close(
            model(**changed(coordinates=full_set(images())["coordinates"].to(dtype))).logits, expected, **CLOSE
        )
