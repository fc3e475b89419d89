"""epigraph: text in images. Importing it makes every model loadable through transformers' Auto classes."""

import transformers
from transformers import AutoConfig, AutoProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .models import MODELS
from .models.configuration_comer import CoMERConfig
from .models.configuration_e2str import E2STRConfig
from .models.configuration_pixelvit import PixelViTConfig
from .models.image_processing import TextImageProcessor
from .models.image_processing_e2str import E2STRImageProcessor
from .models.image_processing_pixelvit import PixelViTImageProcessor
from .models.modeling_comer import CoMERForConditionalGeneration
from .models.modeling_comer_encoder import CoMEREncoder
from .models.modeling_e2str import E2STRForTextRecognition, E2STRModel
from .models.modeling_pixelvit import (
    PixelViTBackbone,
    PixelViTForImageClassification,
    PixelViTForSemanticSegmentation,
    PixelViTModel,
)
from .models.modeling_pixelvit_pretraining import PixelViTForPreTraining
from .models.pixel_sets import pad_pixel_sets
from .models.processing import TextProcessor
from .models.processing_e2str import E2STRProcessor

__version__ = "0.1.0"

for _config, _classes, _image_processor, _processor in MODELS:
    AutoConfig.register(_config.model_type, _config)
    for _auto, _model in _classes.items():
        getattr(transformers, _auto).register(_config, _model)
    AutoImageProcessor.register(_config, image_processor_classes={"pil": _image_processor})
    if _processor is not None:
        AutoProcessor.register(_config, _processor)

# They need the classes registered above.
from .pipelines import FormulaRecognitionPipeline, TextRecognitionPipeline  # noqa: E402
from .reading import FormulaReading, WordReading, read  # noqa: E402
from .reading_words import encoder  # noqa: E402

__all__ = [
    "CoMERConfig",
    "CoMEREncoder",
    "CoMERForConditionalGeneration",
    "E2STRConfig",
    "E2STRForTextRecognition",
    "E2STRImageProcessor",
    "E2STRModel",
    "E2STRProcessor",
    "FormulaReading",
    "FormulaRecognitionPipeline",
    "PixelViTBackbone",
    "PixelViTConfig",
    "PixelViTForImageClassification",
    "PixelViTForPreTraining",
    "PixelViTForSemanticSegmentation",
    "PixelViTImageProcessor",
    "PixelViTModel",
    "TextImageProcessor",
    "TextProcessor",
    "TextRecognitionPipeline",
    "WordReading",
    "encoder",
    "pad_pixel_sets",
    "read",
]
