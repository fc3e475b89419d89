"""Image processor of PixelViT, on Pillow, numpy and torch only."""

import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, PILImageResampling, load_image
from transformers.processing_utils import ImagesKwargs

# Only these are opened: Pillow knows formats that run programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MAX_PIXELS = 64_000_000  # of an image before it is resized; the largest phone cameras deliver 50 million


class PixelViTImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    num_channels (`int`): 1 gives grey (ITU-R 601 luma), 3 gives RGB; grey images become three equal channels.
    pixel_ids (`bool`): give the brightness of every pixel as an integer 0..255 (torch.long) for a model with
        `config.pixel_vocab_size = 256`, instead of rescaled and normalised floats.
    """

    num_channels: int
    pixel_ids: bool


class PixelViTImageProcessor(PilBackend):
    """Images of any kind as `pixel_values` (batch, channels, height, width): one number per channel for every token.

    Every image becomes grey or RGB with 8 bits per channel: turned as its EXIF orientation says, transparency laid on
    white, palettes resolved, 16 bits reduced. It is then resized to `size` (28 x 28) with Pillow's antialiased
    `resample` (bicubic), multiplied by `rescale_factor` (1/255) and normalised with `image_mean` and `image_std` (0.5,
    which gives -1..1). One image after the other, so that a list of paths to large photographs takes little memory.

    It takes Pillow images, paths and addresses, arrays and tensors (height, width), (channels, height, width) or
    (height, width, channels), batches of these with one axis more, and lists. Arrays hold bools, 8 bits (0..255),
    16 bits, or floats within 0..1 or 0..255. `do_rescale=False` leaves 0..255, whatever the array held.

    With `do_resize=False` images keep their sizes, which must then be equal.

    Raises:
        ValueError: an image that cannot be read, is larger than 64 million pixels, or holds values that are no
            brightness; sizes that differ; a setting out of its range. One sentence that says which image it was.
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = PixelViTImageProcessorKwargs
    do_resize = True
    size = {"height": 28, "width": 28}
    default_to_square = True
    resample = PILImageResampling.BICUBIC
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = 0.5
    image_std = 0.5
    num_channels = 3
    pixel_ids = False

    def _prepare_image_like_inputs(self, images, *args, expected_ndims: int = 3, **kwargs) -> list[np.ndarray]:
        prepared = []
        for index, image in enumerate(_flat(images)):
            try:
                prepared.append(self.process_image(image, **kwargs))
            except ValueError as error:
                name = f" ({image})" if isinstance(image, (str, Path)) and len(str(image)) < 500 else ""
                raise ValueError(f"Image {index}{name} cannot be read: {error}") from None
        if not prepared:
            raise ValueError("there are no images to process; pass at least one.")
        return prepared

    def process_image(
        self, image, num_channels, do_resize=True, size=None, resample=None, input_data_format=None, **kwargs
    ) -> np.ndarray:
        """One image as (num_channels, height, width) uint8, at the size that the model reads.

        Raises:
            ValueError: it is no image, damaged, too large, or holds values that are no brightness.
        """
        picture = _eight_bits(image, input_data_format).convert("L" if num_channels == 1 else "RGB")
        if do_resize:
            picture = picture.resize((size["width"], size["height"]), resample)
        array = np.asarray(picture)
        return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)

    def _validate_preprocess_kwargs(
        self, num_channels=None, do_resize=None, size=None, image_mean=None, image_std=None, **kwargs
    ):
        super()._validate_preprocess_kwargs(
            do_resize=do_resize, size=size, image_mean=image_mean, image_std=image_std, **kwargs
        )
        if num_channels not in (1, 3):
            raise ValueError(f"num_channels must be 1 (grey) or 3 (RGB), not {num_channels!r}.")
        if do_resize and not (size.get("height", 0) > 0 and size.get("width", 0) > 0):
            raise ValueError(f"size must be {{'height': ..., 'width': ...}} in pixels, not {dict(size)}.")
        for name, value in (("image_mean", image_mean), ("image_std", image_std)):
            if isinstance(value, (tuple, list)) and len(value) != num_channels:
                raise ValueError(f"{name} has {len(value)} values for num_channels={num_channels}; give one for each.")
        if image_std is not None and np.min(image_std) <= 0:
            raise ValueError(f"image_std must be above 0, not {image_std}: images are divided by it.")

    def _preprocess(
        self,
        images,
        do_resize,
        do_rescale,
        rescale_factor,
        do_normalize,
        image_mean,
        image_std,
        pixel_ids,
        return_tensors,
        **kwargs,
    ) -> BatchFeature:
        for index, image in enumerate(images):
            if not do_resize and image.shape != images[0].shape:
                sizes = [f"{height} x {width}" for _, height, width in (image.shape, images[0].shape)]
                raise ValueError(
                    f"Image {index} has {sizes[0]} pixels (height x width) and image 0 has {sizes[1]}: with "
                    "do_resize=False all images of a batch must have one size; resize them or pass them one by one."
                )
        values = torch.from_numpy(np.stack(images))
        if pixel_ids:
            values = values.long()
        else:
            values = values.float()
            if do_rescale:
                values = values * rescale_factor
            if do_normalize:
                mean, std = (torch.as_tensor(of, dtype=values.dtype).view(-1, 1, 1) for of in (image_mean, image_std))
                values = (values - mean) / std
        data = {"pixel_values": values if return_tensors in (None, "pt") else values.numpy()}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def post_process_semantic_segmentation(self, outputs, target_sizes=None) -> list[torch.Tensor]:
        """The most probable class of every pixel.

        Args:
            outputs: of `PixelViTForSemanticSegmentation`; `logits` (batch, num_labels, height, width).
            target_sizes: (height, width) of each image in pixels, as a list or a tensor (batch, 2), to which the
                logits are brought (bilinear) before the class is taken; by default the size that the model read.

        Returns:
            One map of class ids for each image: (height, width), torch.long.

        Raises:
            ValueError: a single label, which is a regression; or more or fewer sizes than images.
        """
        logits = outputs.logits
        if logits.shape[1] == 1:
            raise ValueError("the model gives one number per pixel and no classes; take them from outputs.logits.")
        if target_sizes is None:
            return list(logits.argmax(dim=1))
        if len(target_sizes) != len(logits):
            raise ValueError(f"target_sizes holds {len(target_sizes)} sizes for {len(logits)} images; give one each.")
        maps = []
        for image, (height, width) in zip(logits, target_sizes):
            size = (int(height), int(width))
            maps.append(F.interpolate(image[None].float(), size, mode="bilinear")[0].argmax(dim=0))
        return maps


def _flat(images) -> list:
    """Nested lists and batches as one list of single images; paths stay paths, so that none is opened too early."""
    if isinstance(images, (list, tuple)):
        return [image for part in images for image in _flat(part)]
    return list(images) if getattr(images, "ndim", 0) == 4 else [images]


def _eight_bits(image, input_data_format=None) -> Image.Image:
    """Anything that is an image as a Pillow image of mode L or RGB, upright and on white."""
    if isinstance(image, (str, Path)):
        image = _open(image)
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if isinstance(image, np.ndarray):
        return _on_white(_from_array(image, input_data_format))
    if not isinstance(image, Image.Image):
        raise ValueError(f"{type(image).__name__} is no image; pass a Pillow image, a path, an array or a tensor.")
    _check_pixels(image.width * image.height)
    # Photographs that some phones store carry a preview as second frame.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise ValueError(f"it has {image.n_frames} frames; pass the one to read as an image of its own.")
    try:
        image = ImageOps.exif_transpose(image)
        image.load()
    # What Pillow raises on damaged files depends on the format.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, OverflowError, MemoryError) as error:
        raise ValueError(f"it is damaged ({str(error).rstrip('.')}).") from None
    if image.mode[0] in "IF":  # more than 8 bits, which Pillow would clip instead of scale
        return _from_array(np.asarray(image))
    return _on_white(image)


def _open(source: str | Path) -> Image.Image:
    """A file, opened but not decoded; or what an http(s) or data address leads to, as transformers loads it."""
    if str(source).startswith(("http://", "https://", "data:image/")):
        return load_image(str(source))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own, lower limit follows
            return Image.open(source, formats=FORMATS)
    except FileNotFoundError:
        raise ValueError("there is no such file.") from None
    except Image.DecompressionBombError:
        raise ValueError(f"it has more than {MAX_PIXELS:,} pixels; shrink it first.") from None
    except (OSError, ValueError, SyntaxError):
        raise ValueError(f"it is no image of the formats {', '.join(FORMATS)}, or damaged at its beginning.") from None


def _check_pixels(pixels: int):
    if pixels > MAX_PIXELS:
        raise ValueError(f"{pixels:,} pixels are more than the {MAX_PIXELS:,} that are read; shrink it first.")


def _on_white(image: Image.Image) -> Image.Image:
    """Pillow image of 8 bits or fewer as L or RGB; what is transparent shows white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L") if image.mode in ("1", "L") else image.convert("RGB")


def _from_array(array: np.ndarray, input_data_format=None) -> Image.Image:
    """(height, width) or with 1 to 4 channels first or last, as a Pillow image of mode L, LA, RGB or RGBA."""
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3:
        first = shape[0] in (1, 2, 3, 4)
        if input_data_format is not None:
            first = ChannelDimension(input_data_format) == ChannelDimension.FIRST
        array = np.moveaxis(array, 0, -1) if first else array
    if array.ndim != 3 or array.shape[-1] not in (1, 2, 3, 4) or 0 in shape or array.dtype.kind not in "buif":
        raise ValueError(
            f"an array of shape {shape} and type {array.dtype} is no image; pass (height, width), or 1 to 4 channels "
            "first or last, and several images as a list or with a batch axis in front of the channels."
        )
    _check_pixels(array.shape[0] * array.shape[1])
    values = np.ascontiguousarray(_to_bytes(array))
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)


def _to_bytes(array: np.ndarray) -> np.ndarray:
    """Brightness of any type and range as uint8 0..255."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("it holds NaN or infinite values.")
    low, high = array.min(), array.max()
    if low < 0:
        raise ValueError(f"it holds values down to {low:g}, which is no brightness; pass it before normalisation.")
    if array.dtype == np.uint16 or (array.dtype.kind in "iu" and 255 < high <= 65535):
        scale = 1 / 257
    elif high <= 1:
        scale = 255
    elif high <= 255:
        scale = 1
    else:
        raise ValueError(f"it holds values up to {high:g}; pass 8 or 16 bits, or floats within 0..1 or 0..255.")
    return np.rint(array.astype(np.float32) * np.float32(scale)).astype(np.uint8)


__all__ = ["PixelViTImageProcessor"]
