"""Image processors, on Pillow-and-torch only."""

import numpy as np
import torch
import torch.nn.functional as F
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ImagesKwargs


class TextImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    scale (`float`): factor applied to every image before the size limits; 1 keeps the field's 28-pixel symbols.
    min_size (`dict`): smallest `height` and `width`; smaller images are enlarged, keeping their ratio.
    max_size (`dict`): largest `height` and `width`; larger images are shrunk, keeping their ratio.
    polarity (`str`): `auto` inverts dark ink on a light ground, `light_on_dark` and `dark_on_light` say what it is.
    antialias (`bool`): average when shrinking; False reproduces OpenCV's bilinear resize.
    """

    scale: float
    min_size: dict
    max_size: dict
    polarity: str
    antialias: bool


class TextImageProcessor(PilBackend):
    """Grey images of any size as one padded batch: white ink on black, 0..1, with the mask of what is image.

    Every image keeps its ratio. It is scaled by `scale`, then shrunk under `max_size` or enlarged over `min_size`
    (CoMER's limits: height 16 to 256, width 16 to 1024), and padded with black at the bottom and right.
    """

    model_input_names = ["pixel_values", "pixel_mask"]
    valid_kwargs = TextImageProcessorKwargs
    do_rescale = True
    rescale_factor = 1 / 255
    scale = 1.0
    min_size = {"height": 16, "width": 16}
    max_size = {"height": 256, "width": 1024}
    polarity = "auto"
    antialias = True
    max_aspect = {"wide": 64, "tall": 16}

    def _prepare_images_structure(self, images, expected_ndims: int = 3):
        # Grey arrays (height, width) are this processor's everyday input; the base class wants a channel axis.
        listed = images if isinstance(images, (list, tuple)) else [images]
        listed = [image[None] if getattr(image, "ndim", None) == 2 else image for image in listed]
        return super()._prepare_images_structure(listed, expected_ndims=expected_ndims)

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """Size in pixels that an image of `height` x `width` is brought to.

        Raises:
            ValueError: more than 64 times as wide as high, or 16 times as high as wide; that is no formula.
        """
        if width > self.max_aspect["wide"] * height or height > self.max_aspect["tall"] * width:
            raise ValueError(
                f"an image of {width} x {height} pixels is too long for one formula: at most 64 times as wide as "
                "high, or 16 times as high as wide."
            )
        high, low = self.max_size, self.min_size
        factor = self.scale
        shrink = min(high["height"] / (height * factor), high["width"] / (width * factor))
        enlarge = max(low["height"] / (height * factor), low["width"] / (width * factor))
        if shrink < 1:
            factor *= shrink
        elif enlarge > 1:
            factor *= enlarge
        # A limit counts again after the rounding: a very long image would otherwise leave it on the short side.
        return max(round(height * factor), 1), max(round(width * factor), 1)

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
        elif image.dtype == np.uint16 or image.dtype == np.int32:  # 16-bit PNGs arrive as either
            values = values / 65535
        elif values.max() > 1.0:
            values = values / 255
        values = values.clamp(0, 1)
        if values.shape[0] in (2, 4):  # transparent pixels show the white page
            alpha = values[-1:]
            values = values[:-1] * alpha + (1 - alpha)
        if values.shape[0] == 3:
            values = (values * values.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
        values = values[0]
        if values.max() - values.min() < 0.05:
            raise ValueError("it is blank: there is no ink to read.")
        if polarity == "auto":
            border = torch.cat([values[0], values[-1], values[:, 0], values[:, -1]])
            polarity = "dark_on_light" if border.median() > 0.5 else "light_on_dark"
        return 1 - values if polarity == "dark_on_light" else values

    def _preprocess(self, images, polarity, antialias, return_tensors, **kwargs) -> BatchFeature:
        if polarity not in ("auto", "light_on_dark", "dark_on_light"):
            raise ValueError(f"polarity must be auto, light_on_dark or dark_on_light, not {polarity!r}.")
        processed = []
        for index, image in enumerate(images):
            try:
                ink = self.to_ink(image, polarity)
                size = self.target_size(*ink.shape)
            except ValueError as error:
                raise ValueError(f"Image {index} cannot be read: {error}") from None
            if size != tuple(ink.shape):
                resized = F.interpolate(ink[None, None], size, mode="bilinear", antialias=antialias)[0, 0]
                ink = (resized * 255).round() / 255  # 8-bit, as every stored image is
            processed.append(ink)
        height, width = (max(ink.shape[axis] for ink in processed) for axis in (0, 1))
        pixel_values = torch.zeros(len(processed), 1, height, width)
        pixel_mask = torch.zeros(len(processed), height, width, dtype=torch.long)
        for index, ink in enumerate(processed):
            pixel_values[index, 0, : ink.shape[0], : ink.shape[1]] = ink
            pixel_mask[index, : ink.shape[0], : ink.shape[1]] = 1
        data = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        if return_tensors not in (None, "pt"):
            data = {name: tensor.numpy() for name, tensor in data.items()}
        return BatchFeature(data=data, tensor_type=return_tensors)


__all__ = ["TextImageProcessor"]
