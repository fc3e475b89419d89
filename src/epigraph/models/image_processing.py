"""Image processors, on Pillow-and-torch only."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ImagesKwargs

from .image_cleaning import clean_ink, dark_on_light, written_height


class TextImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    scale (`float`): factor applied to every image before the size limits; 1 keeps the field's 28-pixel symbols.
    min_size (`dict`): smallest `height` and `width`; smaller images are enlarged, keeping their ratio.
    max_size (`dict`): largest `height` and `width`; larger images are shrunk, keeping their ratio.
    polarity (`str`): `auto` inverts dark ink on a light ground, `light_on_dark` and `dark_on_light` say what it is.
    crop_margin (`int`): cut to the ink and leave this many black pixels around it; without it the image stays whole.
    antialias (`bool`): average when shrinking; False reproduces OpenCV's bilinear resize.
    clean (`bool`): bring ink to full contrast on an even ground, and free photographs of paper from uneven light,
        shadows, rules, specks and the table around the sheet. Full black and white pass unchanged.
    symbol_height (`float`): pixels that the writing is scaled to before `scale` (28 in the field), whatever its size
        in the image; without it the image keeps its size.
    return_geometry (`bool`): also return where each image lies in `pixel_values` (see `TextImageProcessor`).
    """

    scale: float
    min_size: dict
    max_size: dict
    polarity: str
    crop_margin: int | None
    antialias: bool
    clean: bool
    symbol_height: float | None
    return_geometry: bool


class TextImageProcessor(PilBackend):
    """Grey images of any size as one padded batch: white ink on black, 0..1, with the mask of what is image.

    Every image keeps its ratio. It is scaled by `scale`, before that to the `symbol_height` if there is one, then
    shrunk under `max_size` or enlarged over `min_size` (CoMER's limits: height 16 to 256, width 16 to 1024), and
    padded with black at the bottom and right.

    With `return_geometry=True` the batch also holds `geometry` (batch, 4) float32: left, top, scale_x, scale_y with
    `x_model = (x_image - left) * scale_x` and `y_model = (y_image - top) * scale_y`, where pixel i reaches from i to
    i + 1, in the image as it was passed in. Left and top are negative where a margin was added.
    """

    model_input_names = ["pixel_values", "pixel_mask"]
    valid_kwargs = TextImageProcessorKwargs
    do_rescale = True
    rescale_factor = 1 / 255
    scale = 1.0
    min_size = {"height": 16, "width": 16}
    max_size = {"height": 256, "width": 1024}
    polarity = "auto"
    crop_margin = None
    antialias = True
    clean = False
    symbol_height = None
    max_aspect = {"wide": 64, "tall": 16}

    def _prepare_images_structure(self, images, expected_ndims: int = 3):
        # Grey arrays (height, width) are this processor's everyday input; the base class wants a channel axis.
        listed = images if isinstance(images, (list, tuple)) else [images]
        listed = [image[None] if getattr(image, "ndim", None) == 2 else image for image in listed]
        for index, image in enumerate(listed):
            shape = tuple(getattr(image, "shape", (1, 1, 1)))
            if 0 in shape or (len(shape) == 3 and not {shape[0], shape[-1]} & {1, 2, 3, 4}):
                raise ValueError(f"Image {index} cannot be read: it has shape {shape}, which is no image.")
        return super()._prepare_images_structure(listed, expected_ndims=expected_ndims)

    def process_image(self, image, **kwargs) -> np.ndarray:
        if isinstance(image, Image.Image):
            if image.has_transparency_data:
                image = image.convert("RGBA")
            elif image.mode not in (
                "1",
                "L",
                "RGB",
                "I",
                "I;16",
                "F",
            ):  # palette numbers and the like are no brightness
                image = image.convert("RGB")
        return super().process_image(image, **kwargs)

    def scale_factor(
        self,
        height: int,
        width: int,
        scale: float | None = None,
        min_size: dict | None = None,
        max_size: dict | None = None,
    ) -> float:
        """What both sides of a `height` x `width` image are multiplied by; None means the processor's own setting.

        Raises:
            ValueError: more than 64 times as wide as high, or 16 times as high as wide; that is no formula.
        """
        if width > self.max_aspect["wide"] * height or height > self.max_aspect["tall"] * width:
            raise ValueError(
                f"an image of {width} x {height} pixels is too long for one formula: at most 64 times as wide as "
                "high, or 16 times as high as wide."
            )
        high, low = max_size or self.max_size, min_size or self.min_size
        factor = self.scale if scale is None else scale
        shrink = min(high["height"] / (height * factor), high["width"] / (width * factor))
        enlarge = max(low["height"] / (height * factor), low["width"] / (width * factor))
        if shrink < 1:
            factor *= shrink
        elif enlarge > 1:
            factor *= enlarge
        return factor

    def crop_ink(self, ink: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        """(height, width) cut to what is brighter than half the brightest; and left and top of that in the image."""
        bright = ink > ink.max() / 2
        rows, columns = bright.any(1).nonzero().flatten(), bright.any(0).nonzero().flatten()
        # One pixel more: the soft edge of a stroke is darker than half.
        top, left = max(int(rows[0]) - 1, 0), max(int(columns[0]) - 1, 0)
        return ink[top : int(rows[-1]) + 2, left : int(columns[-1]) + 2], left, top

    def add_margin(self, ink: torch.Tensor, margin: int) -> tuple[torch.Tensor, int, int]:
        """(height, width) with `margin` black pixels around it; and how many were added at the left and on top.

        A lone bar gets more room on its short sides, so that it stays within the limits of `scale_factor`.
        """
        height, width = ink.shape
        missing_height = max(0, math.ceil((width + 2 * margin) / self.max_aspect["wide"]) - height - 2 * margin)
        missing_width = max(0, math.ceil((height + 2 * margin) / self.max_aspect["tall"]) - width - 2 * margin)
        across, down = margin + (missing_width + 1) // 2, margin + (missing_height + 1) // 2
        return F.pad(ink, (across, across, down, down)), across, down

    def resize_ink(self, ink: torch.Tensor, factor: float, antialias: bool) -> torch.Tensor:
        """(height, width) in 0..1 scaled by `factor`, rounded to 8 bits as every stored image is."""
        if factor == 1:
            return ink
        size = [max(round(side * factor), 1) for side in ink.shape]
        if antialias:
            # Shrinking averages either way; enlarged, strokes stay crisp only under the cubic.
            mode = "bilinear" if factor < 1 else "bicubic"
            ink = F.interpolate(ink[None, None], size, mode=mode, antialias=True)[0, 0].clamp(0, 1)
        else:
            # OpenCV samples at steps of exactly 1 / factor, where `interpolate` would use the ratio of the sizes.
            for axis, length in enumerate(size):
                source = ((torch.arange(length) + 0.5) / factor - 0.5).clamp(0, ink.shape[axis] - 1)
                low, high = source.floor().long(), source.ceil().long()
                share = (source - low).unsqueeze(1 - axis)
                ink = torch.lerp(ink.index_select(axis, low), ink.index_select(axis, high), share)
        return (ink * 255).round() / 255

    def to_ink(self, image: np.ndarray, polarity: str) -> torch.Tensor:
        """Channel-first image of any common dtype to (height, width) float32 in 0..1, white ink on black.

        Raises:
            ValueError: empty, NaN or infinite, or without any contrast.
        """
        if image.ndim != 3 or image.shape[0] not in (1, 2, 3, 4) or 0 in image.shape:
            raise ValueError(f"it has shape {image.shape}, which is no image.")
        values = torch.from_numpy(np.ascontiguousarray(image).astype(np.float32))
        if not torch.isfinite(values).all():
            raise ValueError("it holds NaN or infinite values.")
        if image.dtype == np.uint8:
            values = values / 255
        elif image.dtype == np.uint16 or (image.dtype == np.int32 and values.max() > 255):
            values = values / 65535  # 16-bit PNGs arrive as either
        elif values.max() > 1.0:
            values = values / 255
        values = values.clamp(0, 1)
        alpha = values[-1] if values.shape[0] in (2, 4) else None
        values = values if alpha is None else values[:-1]
        if values.shape[0] == 3:
            values = (values * values.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
        values = values[0]
        if alpha is not None:
            values = values * alpha + self.page_behind(values, alpha, polarity) * (1 - alpha)
        if values.max() - values.min() < 0.05:
            raise ValueError("it is blank: there is no ink to read.")
        if polarity == "dark_on_light" or (polarity == "auto" and dark_on_light(values)):
            return 1 - values
        return values

    def page_behind(self, values: torch.Tensor, alpha: torch.Tensor, polarity: str) -> float:
        """The brightness that transparent pixels (both (height, width)) show: white, or black behind light ink."""
        if polarity != "auto":
            return float(polarity == "dark_on_light")
        opaque = float((values * alpha).sum() / alpha.sum().clamp(min=1e-6))
        if alpha.mean() < 0.5:  # ink on nothing
            return float(opaque < 0.5)
        return opaque  # a picture with holes, such as the rounded corners of a window

    def _process(
        self, image, scale, min_size, max_size, polarity, crop_margin, antialias, clean, symbol_height
    ) -> tuple[torch.Tensor, list[float]]:
        """One image as (height, width) for the model, and its row of `geometry`."""
        ink = self.to_ink(image, polarity)
        self.scale_factor(*ink.shape, scale, min_size, max_size)  # refuses before anything large is computed
        left = top = 0
        shrunk = (1.0, 1.0)
        if clean:
            cleaned = clean_ink(ink)
            if cleaned.max() < 0.5:
                raise ValueError("it is blank: there is no ink to read.")
            shrunk = tuple(after / before for after, before in zip(cleaned.shape, ink.shape))
            ink = cleaned
        if crop_margin is not None:
            ink, left, top = self.crop_ink(ink)
        enlarge = 1.0 if symbol_height is None else symbol_height / written_height(ink)
        if crop_margin is not None:
            ink, across, down = self.add_margin(ink, round(crop_margin / enlarge))
            left, top = left - across, top - down
        factor = self.scale_factor(*ink.shape, enlarge * scale, min_size, max_size)
        resized = self.resize_ink(ink, factor, antialias)
        # Averaging fills the rounded size; OpenCV's way keeps the exact factor and drops what is left over.
        sides = [after / before if antialias else factor for before, after in zip(ink.shape, resized.shape)]
        return resized, [left / shrunk[1], top / shrunk[0], sides[1] * shrunk[1], sides[0] * shrunk[0]]

    def _preprocess(
        self,
        images,
        scale,
        min_size,
        max_size,
        polarity,
        crop_margin,
        antialias,
        clean,
        symbol_height,
        return_tensors,
        return_geometry=False,
        **kwargs,
    ) -> BatchFeature:
        if polarity not in ("auto", "light_on_dark", "dark_on_light"):
            raise ValueError(f"polarity must be auto, light_on_dark or dark_on_light, not {polarity!r}.")
        settings = (scale, min_size, max_size, polarity, crop_margin, antialias, clean, symbol_height)
        processed, geometry = [], []
        for index, image in enumerate(images):
            try:
                ink, place = self._process(image, *settings)
            except ValueError as error:
                raise ValueError(f"Image {index} cannot be read: {error}") from None
            processed.append(ink)
            geometry.append(place)
        height, width = (max(ink.shape[axis] for ink in processed) for axis in (0, 1))
        pixel_values = torch.zeros(len(processed), 1, height, width)
        pixel_mask = torch.zeros(len(processed), height, width, dtype=torch.long)
        for index, ink in enumerate(processed):
            pixel_values[index, 0, : ink.shape[0], : ink.shape[1]] = ink
            pixel_mask[index, : ink.shape[0], : ink.shape[1]] = 1
        data = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        if return_geometry:
            data["geometry"] = torch.tensor(geometry, dtype=torch.float32)
        if return_tensors not in (None, "pt"):
            data = {name: tensor.numpy() for name, tensor in data.items()}
        return BatchFeature(data=data, tensor_type=return_tensors)


__all__ = ["TextImageProcessor"]
