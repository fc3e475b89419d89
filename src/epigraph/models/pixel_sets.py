"""Images as sets of pixels: the two forms of input of PixelViT, checked and made into one."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .configuration_pixelvit import PixelViTConfig
from .pixel_selection import select_pixels


class PixelSet(NamedTuple):
    """Pixels with their places.

    Attributes:
        pixels: (batch, n, channels), numbers or ids.
        coordinates: (batch or 1, n, 2), row and column; 1 where they are the same in every image.
        image_size: height and width of all images, or (batch, 2).
        mask: (batch, n) bool, True = pixel, False = padding; None where nothing is padding.
    """

    pixels: torch.Tensor
    coordinates: torch.LongTensor
    image_size: tuple[int, int] | torch.LongTensor
    mask: torch.BoolTensor | None

    def take(self, indices: torch.LongTensor, mask: torch.BoolTensor | None) -> "PixelSet":
        """The pixels at `indices` (batch, m) of each image, of which `mask` (batch, m) says what is padding."""
        pixels = self.pixels.gather(1, indices[..., None].expand(-1, -1, self.pixels.shape[2]))
        coordinates = self.coordinates.expand(len(indices), -1, -1).gather(1, indices[..., None].expand(-1, -1, 2))
        return PixelSet(pixels, coordinates, self.image_size, mask)


def pad_pixel_sets(pixels: Sequence[torch.Tensor], coordinates: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Pixel sets of different sizes as one batch.

    Args:
        pixels: per image (n_i, channels), tensors or what makes them, such as arrays.
        coordinates: per image (n_i, 2), row and column.

    Returns:
        `pixels` (batch, max n, channels), `coordinates` (batch, max n, 2) and `pixel_mask` (batch, max n) bool.

    Raises:
        ValueError: there are no sets; one's pixels and coordinates are not equally many; or sets differ in channels
            or dtypes.
    """
    if not len(pixels) or len(pixels) != len(coordinates):
        raise ValueError(f"{len(pixels)} sets of pixels and {len(coordinates)} of coordinates make no batch.")
    pixels, coordinates = ([torch.as_tensor(one) for one in several] for several in (pixels, coordinates))
    for index, (values, places) in enumerate(zip(pixels, coordinates)):
        if values.ndim != 2 or places.shape != (len(values), 2):
            raise ValueError(
                f"set {index} has pixels {tuple(values.shape)} and coordinates {tuple(places.shape)}; they must be "
                "(n, channels) and (n, 2)."
            )
    kinds = [f"{one.shape[1]} channels of {one.dtype} at {at.dtype}" for one, at in zip(pixels, coordinates)]
    for index, kind in enumerate(kinds):
        if kind != kinds[0]:  # padding would repeat the one channel, or round the numbers
            raise ValueError(f"set {index} has {kind}, but set 0 has {kinds[0]}; sets of one batch must be alike.")
    present = [torch.ones(len(values), dtype=torch.bool, device=values.device) for values in pixels]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "pixels": pad(pixels, batch_first=True),
        "coordinates": pad(coordinates, batch_first=True),
        "pixel_mask": pad(present, batch_first=True),
    }


def read_pixels(
    config: PixelViTConfig,
    training: bool,
    pixel_values: torch.Tensor | None = None,
    pixels: torch.Tensor | None = None,
    coordinates: torch.Tensor | None = None,
    image_size: torch.Tensor | Sequence[int] | None = None,
    pixel_mask: torch.Tensor | None = None,
) -> PixelSet:
    """What a model was given, as one set of pixels for each image; see `PixelViTModel.forward` for the arguments.

    What depends on the numbers themselves is not checked under torch.compile.

    Raises:
        ValueError: naming the input and what is wrong with it.
    """
    if (pixel_values is None) == (pixels is None):
        raise ValueError("Give either pixel_values, or pixels with their coordinates and image_size.")
    if pixel_values is not None:
        if not (coordinates is None and image_size is None and pixel_mask is None):
            raise ValueError("coordinates, image_size and pixel_mask belong to pixels, not to pixel_values.")
        return _read_images(config, training, pixel_values)
    if coordinates is None or image_size is None:
        missing = "coordinates" if coordinates is None else "image_size"
        raise ValueError(f"pixels need {missing}: where a pixel lies cannot be told from the set.")
    return _read_set(config, pixels, coordinates, image_size, pixel_mask)


def _read_images(config: PixelViTConfig, training: bool, images: torch.Tensor) -> PixelSet:
    if not isinstance(images, torch.Tensor):
        raise ValueError(
            f"pixel_values must be a tensor, not a {type(images).__name__}; the image processor makes one, and images "
            "of different sizes are given as sets of pixels (pad_pixel_sets)."
        )
    if images.ndim != 4 or not images.numel():
        raise ValueError(f"pixel_values must be (batch, channels, height, width), not {tuple(images.shape)}.")
    _check_values(config, "pixel_values", images, images.shape[1])
    height, width = images.shape[2:]
    pixels = images.flatten(2).transpose(1, 2)
    if config.pixel_vocab_size is not None:
        pixels = pixels.long()
    if config.pixel_selection == "all":
        chosen = torch.arange(height * width, device=images.device)[None]
    else:
        settings = config.pixel_selection, config.num_selected_pixels, config.selection_seed
        chosen = select_pixels(images, *settings, training)
        pixels = pixels.gather(1, chosen[..., None].expand(-1, -1, pixels.shape[2]))
    coordinates = torch.stack([chosen // width, chosen % width], dim=-1)
    return PixelSet(pixels, coordinates, (height, width), None)


def _read_set(config, pixels, coordinates, image_size, pixel_mask) -> PixelSet:
    if not (isinstance(pixels, torch.Tensor) and isinstance(coordinates, torch.Tensor)):
        raise ValueError(
            "pixels and coordinates must be tensors; pad_pixel_sets makes lists of sets into one batch with its "
            "pixel_mask."
        )
    if pixels.ndim != 3:
        raise ValueError(f"pixels must be (batch, n, channels), not {tuple(pixels.shape)}.")
    batch, count, channels = pixels.shape
    if coordinates.shape != (batch, count, 2):
        raise ValueError(
            f"coordinates must be (batch, n, 2) = {(batch, count, 2)} for these pixels, not "
            f"{tuple(coordinates.shape)}; sets of different sizes need padding and a pixel_mask (pad_pixel_sets)."
        )
    if not _is_integer(coordinates):
        raise ValueError(f"coordinates must be integers, row and column, not {coordinates.dtype}.")
    if not batch * count:
        raise ValueError(f"pixels {tuple(pixels.shape)} is an empty set.")
    mask = None if pixel_mask is None else _read_mask(pixel_mask, batch, count)
    image_size = _image_size(image_size, batch, pixels.device)
    coordinates = coordinates.long()  # neither narrow nor unsigned integers can all be compared
    _check_values(config, "pixels", pixels, channels, mask)
    if not torch.compiler.is_compiling():
        _check_places(coordinates, image_size, mask)
    if mask is not None:
        coordinates = coordinates.masked_fill(~mask[..., None], 0)
        pixels = pixels.masked_fill(~mask[..., None], 0)
    if config.pixel_vocab_size is not None:
        pixels = pixels.long()
    return PixelSet(pixels, coordinates, image_size, mask)


def _is_integer(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _read_mask(mask: torch.Tensor, batch: int, count: int) -> torch.Tensor | None:
    if not isinstance(mask, torch.Tensor) or mask.shape != (batch, count):
        given = f"{type(mask).__name__} {tuple(getattr(mask, 'shape', ()))}"
        raise ValueError(f"pixel_mask must be a tensor (batch, n) = {(batch, count)}, not a {given}.")
    present = mask.bool()
    if torch.compiler.is_compiling():
        return present
    if not bool((mask == present).all()):
        raise ValueError("pixel_mask must hold 1 for pixels and 0 for padding, and nothing else.")
    return None if bool(present.all()) else present  # without padding every attention is at its fastest


def _image_size(image_size, batch: int, device: torch.device):
    """Height and width as two numbers where they are the same for all images, else (batch, 2)."""
    if isinstance(image_size, tuple) and [type(side) for side in image_size] == [int, int] and min(image_size) > 0:
        return image_size
    if not isinstance(image_size, torch.Tensor):
        try:
            image_size = torch.tensor(image_size)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"image_size must be a height and a width, not {image_size!r}.") from None
    if image_size.shape not in ((2,), (batch, 2)) or not _is_integer(image_size):
        raise ValueError(
            f"image_size must be integers of shape (2,) or (batch, 2) = {(batch, 2)}, not {image_size.dtype} of shape "
            f"{tuple(image_size.shape)}."
        )
    if image_size.device.type == "cpu" and not torch.compiler.is_compiling():
        height, width = image_size.view(-1, 2)[0].tolist()
        if min(height, width) > 0 and bool((image_size == image_size.view(-1, 2)[0]).all()):
            return height, width
    return image_size.to(device, torch.long).expand(batch, 2)


def _check_values(config, name: str, values: torch.Tensor, channels: int, mask: torch.Tensor | None = None) -> None:
    """Channels, kind and range of the numbers of `values`, padding left out."""
    if channels != config.num_channels:
        raise ValueError(
            f"{name} {tuple(values.shape)} has {channels} channels, but the model reads {config.num_channels} "
            "(num_channels)."
        )
    size = config.pixel_vocab_size
    if values.is_floating_point() != (size is None):
        wanted = "numbers, scaled as the processor does it" if size is None else f"ids from 0 to {size - 1}"
        raise ValueError(f"{name} must be {wanted}, not {values.dtype}.")
    if torch.compiler.is_compiling():
        return
    # As int64: 8 bits do not even hold a size of 256 to compare with.
    good = values.isfinite() if size is None else (values.long() >= 0) & (values.long() < size)
    if mask is not None:
        good = good | ~mask[..., None]
    if not bool(good.all()):
        index = (~good).nonzero()[0, 0].item()
        problem = "numbers that are not finite" if size is None else f"ids outside 0 to {size - 1}"
        raise ValueError(f"{name} of image {index} has {problem}.")


def _check_places(coordinates: torch.Tensor, image_size, mask: torch.Tensor | None) -> None:
    batch, count, _ = coordinates.shape
    present = torch.ones(batch, count, dtype=torch.bool, device=coordinates.device) if mask is None else mask
    if not bool(present.any(1).all()):
        raise ValueError(f"pixels of image {(~present.any(1)).nonzero()[0].item()} is an empty set: all is padding.")
    sizes = torch.as_tensor(image_size, device=coordinates.device).expand(batch, 2)[:, None]
    outside = ((coordinates < 0) | (coordinates >= sizes)).any(-1) & present
    if bool(outside.any()):
        image, index = outside.nonzero()[0].tolist()
        raise ValueError(
            f"coordinates of image {image} has {tuple(coordinates[image, index].tolist())}, which is outside its "
            f"{' x '.join(map(str, sizes[image, 0].tolist()))} pixels (row, column)."
        )
    places = coordinates[..., 0].long() * sizes[..., 1] + coordinates[..., 1]
    # Every padded slot a number of its own: only pixels can be equal.
    places = torch.where(present, places, -1 - torch.arange(count, device=places.device)).sort(dim=1).values
    if bool((twice := places[:, 1:] == places[:, :-1]).any()):
        raise ValueError(f"coordinates of image {twice.nonzero()[0, 0].item()} has the same pixel twice.")


__all__ = ["PixelSet", "pad_pixel_sets", "read_pixels"]
