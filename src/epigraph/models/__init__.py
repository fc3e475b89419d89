"""Models, configurations and processors. `MODELS` is the one table of what the Auto classes give."""

from .configuration_comer import CoMERConfig
from .configuration_e2str import E2STRConfig
from .configuration_pixelvit import PixelViTConfig
from .image_processing import TextImageProcessor
from .image_processing_e2str import E2STRImageProcessor
from .image_processing_pixelvit import PixelViTImageProcessor
from .modeling_comer import CoMERForConditionalGeneration
from .modeling_comer_encoder import CoMEREncoder
from .modeling_e2str import E2STRForTextRecognition, E2STRModel
from .modeling_pixelvit import (
    PixelViTBackbone,
    PixelViTForImageClassification,
    PixelViTForSemanticSegmentation,
    PixelViTModel,
)
from .modeling_pixelvit_pretraining import PixelViTForPreTraining
from .pixel_sets import pad_pixel_sets
from .processing import TextProcessor
from .processing_e2str import E2STRProcessor

# (config, {Auto class: model class}, image processor, processor or None where there is no text)
MODELS = [
    (
        CoMERConfig,
        {
            "AutoModel": CoMERForConditionalGeneration,
            "AutoModelForImageTextToText": CoMERForConditionalGeneration,
        },
        TextImageProcessor,
        TextProcessor,
    ),
    (
        PixelViTConfig,
        {
            "AutoModel": PixelViTModel,
            "AutoModelForImageClassification": PixelViTForImageClassification,
            "AutoModelForSemanticSegmentation": PixelViTForSemanticSegmentation,
            "AutoModelForPreTraining": PixelViTForPreTraining,
            "AutoBackbone": PixelViTBackbone,
        },
        PixelViTImageProcessor,
        None,
    ),
    (
        E2STRConfig,
        {
            "AutoModel": E2STRForTextRecognition,
            "AutoModelForTextRecognition": E2STRForTextRecognition,
        },
        E2STRImageProcessor,
        E2STRProcessor,
    ),
]

__all__ = [
    "MODELS",
    "CoMERConfig",
    "CoMEREncoder",
    "CoMERForConditionalGeneration",
    "E2STRConfig",
    "E2STRForTextRecognition",
    "E2STRImageProcessor",
    "E2STRModel",
    "E2STRProcessor",
    "PixelViTBackbone",
    "PixelViTConfig",
    "PixelViTForImageClassification",
    "PixelViTForPreTraining",
    "PixelViTForSemanticSegmentation",
    "PixelViTImageProcessor",
    "PixelViTModel",
    "TextImageProcessor",
    "TextProcessor",
    "pad_pixel_sets",
]
