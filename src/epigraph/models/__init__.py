"""Models, configurations and processors. `MODELS` is the one table of what the Auto classes give."""

from .configuration_comer import CoMERConfig
from .image_processing import TextImageProcessor
from .modeling_comer import CoMERForConditionalGeneration
from .modeling_comer_encoder import CoMEREncoder
from .processing import TextProcessor

# (config, {Auto class: model class}, image processor, processor)
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
]

__all__ = [
    "MODELS",
    "CoMERConfig",
    "CoMEREncoder",
    "CoMERForConditionalGeneration",
    "TextImageProcessor",
    "TextProcessor",
]
