"""Inputs of any kind, opened: paths, bytes, images, arrays and strokes become an image that a processor takes.

Everything that comes from outside is bounded here, and refused in one sentence that names it.
"""

import io
import warnings
from numbers import Number
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .data.ink import Ink, as_strokes, read_inkml, read_json, render

IMAGE_FORMATS = {
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
MAX_PIXELS = 64_000_000  # the largest phone cameras deliver 50 million; decoded, these take up to 256 MB


def is_batch(inputs) -> bool:
    """Whether `inputs` is a list of inputs rather than one: a list of strokes is one input."""
    return isinstance(inputs, (list, tuple)) and not (inputs and _is_stroke(inputs[0]))


def _is_stroke(item) -> bool:
    """An array (points, 2), or a list of numbers or of pairs of numbers."""
    if isinstance(item, np.ndarray):
        return item.ndim == 1 or (item.ndim == 2 and item.shape[1] == 2)
    if not isinstance(item, (list, tuple)) or not item:
        return False
    first = item[0]
    pair = isinstance(first, (list, tuple)) and len(first) == 2 and isinstance(first[0], Number)
    return pair or isinstance(first, Number)


def to_image(item, name: str, task: str | None = None) -> Image.Image | np.ndarray:
    """One input as an image that the processor takes: opened, rendered, turned upright.

    Raises:
        ValueError: it cannot be opened, or is an image while the task is "ink"; one sentence that names it.
    """
    content = open_input(item, name)
    if isinstance(content, Ink):
        return render(as_strokes(content.strokes, name))
    if task == "ink":
        raise ValueError(f"{name}: an image, but task 'ink' reads strokes (InkML, JSON); read it with task 'maths'.")
    if isinstance(content, torch.Tensor):
        content = content.detach().cpu()
        content = (content.float() if content.is_floating_point() else content).numpy()
    if isinstance(content, np.ndarray):
        if content.ndim not in (2, 3) or content.dtype.kind not in "buif" or content.size == 0:
            raise ValueError(f"{name}: an array of shape {content.shape} and type {content.dtype}, which is no image.")
        _check_pixels(content.size, name)
        return content
    if not isinstance(content, Image.Image):
        raise ValueError(f"{name}: {type(item).__name__} is nothing that can be read; pass a path, an image or ink.")
    _check_pixels(content.width * content.height, name)
    # Photographs that some phones store carry a preview as second frame.
    if getattr(content, "n_frames", 1) > 1 and content.format != "MPO":
        raise ValueError(f"{name}: it has {content.n_frames} frames; save the one to read as an image of its own.")
    try:
        return _common_mode(ImageOps.exif_transpose(content))
    # What Pillow raises on damaged files depends on the format.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, OverflowError, MemoryError) as error:
        raise ValueError(f"{name}: the image is damaged ({first_line(error)}).") from None


def open_input(item, name: str):
    """Files and bytes as ink or as an image not yet decoded, strokes as ink; all else as it is."""
    if isinstance(item, (str, Path)):
        suffix = Path(item).suffix.lower()
        if suffix in (".inkml", ".json"):
            return (read_inkml if suffix == ".inkml" else read_json)(item, name=name)
        if suffix not in IMAGE_FORMATS:
            kinds = ", ".join([*IMAGE_FORMATS, ".inkml", ".json"])
            raise ValueError(f"{name}: files that can be read end in {kinds}, not in '{suffix}'.")
        return _open_image(item, name)
    if isinstance(item, bytes):
        start = item[:256].lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n")[:1]  # of text in UTF-16, too
        if start == b"<":
            return read_inkml(item, name=name)
        return read_json(item, name=name) if start in (b"[", b"{") else _open_image(io.BytesIO(item), name)
    if isinstance(item, (list, tuple)):
        return Ink(list(item), name=name)
    return item


def _open_image(source, name: str) -> Image.Image:
    """Read the header of an image file. Only formats that are listed: Pillow knows some that run programs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own, lower limit follows
            return Image.open(source, formats=sorted(set(IMAGE_FORMATS.values())))
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file.") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name}: not an image, or damaged at its beginning.") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name}: more than {MAX_PIXELS:,} pixels; shrink it first.") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(
            f"{name}: cannot be opened ({getattr(error, 'strerror', None) or first_line(error)})."
        ) from None


def _check_pixels(pixels: int, name: str):
    if pixels > MAX_PIXELS:
        raise ValueError(f"{name}: {pixels:,} pixels are more than the {MAX_PIXELS:,} that are read; shrink it first.")


def _common_mode(image: Image.Image) -> Image.Image:
    """Decode, to grey or RGB with or without transparency, 8 bits each."""
    image.load()
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip instead of scale
        pixels = np.asarray(image).clip(0, 65535)
        return Image.fromarray((pixels / (257 if pixels.max() > 255 else 1)).astype(np.uint8))
    if image.mode in ("LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB", "RGBA") else image.convert("L" if image.mode == "1" else "RGB")


def is_channel_first(image) -> bool:
    """Whether an array is (channels, height, width) rather than (height, width) or (height, width, channels)."""
    return isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[-1] not in (1, 2, 3, 4)


def picture_of(pixels: np.ndarray) -> Image.Image:
    """An array that `to_image` gave as a picture: channels first or last, of any range."""
    if is_channel_first(pixels):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.dtype != np.uint8:
        high = 65535 if pixels.dtype == np.uint16 or (pixels.dtype == np.int32 and pixels.max() > 255) else 255
        pixels = np.asarray(pixels, np.float32) / (1 if pixels.max() <= 1 else high)
        pixels = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)


def height_and_width(image) -> tuple[int, int]:
    """Of a PIL image, or of an array that is not channel-first."""
    return image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)


def name_of(item, number: int) -> str:
    """What to call an input that was given without a name, the `number`th of its list."""
    if isinstance(item, (str, Path)):
        return str(item)
    if isinstance(item, Ink):
        return item.name
    return str(getattr(item, "filename", "") or f"input {number}")


def first_line(error: Exception) -> str:
    """Of an error's message, without a full stop; the name of its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


__all__ = [
    "IMAGE_FORMATS",
    "MAX_PIXELS",
    "first_line",
    "height_and_width",
    "is_batch",
    "is_channel_first",
    "name_of",
    "open_input",
    "picture_of",
    "to_image",
]
