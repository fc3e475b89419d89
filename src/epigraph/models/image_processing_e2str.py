"""Image processor of E2STR: word images of any kind and shape to one size."""

from transformers.image_utils import PILImageResampling

from .image_processing_pixelvit import PixelViTImageProcessor


class E2STRImageProcessor(PixelViTImageProcessor):
    """Word images as `pixel_values` (batch, 3, 32, 128): RGB, squashed bilinearly, scaled as CLIP's images are.

    That is what in-context training and inference of the official code do; see `PixelViTImageProcessor` for what it
    takes and refuses.
    """

    size = {"height": 32, "width": 128}
    resample = PILImageResampling.BILINEAR
    image_mean = [0.48145466, 0.4578275, 0.40821073]
    image_std = [0.26862954, 0.26130258, 0.27577711]


__all__ = ["E2STRImageProcessor"]
