"""The pipelines `formula-recognition` and `text-recognition` of transformers, thin over `epigraph.reading`.

```python
import epigraph
from transformers import pipeline

reader = pipeline("formula-recognition", model="checkpoints/comer-hme")
reader("formula.png")["text"]
```
"""

from dataclasses import asdict
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoModelForTextRecognition, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .data.ink import Ink
from .inputs import is_batch
from .reading import default_checkpoint, read_all
from .reading_words import encoder, open_pool


class FormulaRecognitionPipeline(Pipeline):
    """Reads formulas from images and ink: what `epigraph.read` takes and gives, as dicts, read by read.

    Lists are read in batches and give lists; data sets and generators give an iterator. `batch_size` (default 8),
    `n_best`, `min_score` and the settings of the model's `generate` are taken here and by each call. An input that
    cannot be read has a sentence under `error`, and the others are read.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # `pipeline` takes the dtype of the weights, and small checkpoints are stored as float16, which CPUs emulate.
        if self.device.type == "cpu" and self.model.dtype == torch.float16:
            self.model.float()

    def __call__(self, inputs, **kwargs):
        """Read one input (a dict) or several (see the class).

        Args:
            inputs: see `epigraph.read`.
            kwargs: `batch_size`, `n_best`, `min_score` and settings of `generate`.
        """
        if isinstance(inputs, (list, tuple)):
            if not inputs:
                return []
            inputs = list(inputs) if is_batch(inputs) else Ink(list(inputs), name="input 1")
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, **reading):
        return {}, reading, {}

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        batch_size = batch_size if batch_size > 1 else 8  # 1 is what `Pipeline` makes of no batch size
        readings = read_all(inputs, self.model, self.processor, batch_size=batch_size, **forward_params)
        return map(self.postprocess, readings)

    def preprocess(self, inputs):
        return {"inputs": [inputs]}

    def _forward(self, model_inputs, **reading):
        return next(read_all(model_inputs["inputs"], self.model, self.processor, **reading))

    def postprocess(self, reading):
        return asdict(reading)


class TextRecognitionPipeline(FormulaRecognitionPipeline):
    """Reads words from images: what `epigraph.read` takes and gives, as dicts, read by read.

    As `FormulaRecognitionPipeline`; `pool`, `k` and `gate` are taken here and by each call, too. A pool that is named
    by folder or Hub id is opened once.
    """

    def _sanitize_parameters(self, **reading):
        if isinstance(reading.get("pool"), (str, Path)):
            reading["pool"] = open_pool(reading["pool"], encoder(self.model, self.processor))
        return super()._sanitize_parameters(**reading)


PIPELINE_REGISTRY.register_pipeline(
    "formula-recognition",
    pipeline_class=FormulaRecognitionPipeline,
    pt_model=AutoModelForImageTextToText,
    default={"model": (default_checkpoint("maths"), "main")},
    type="image",
)
PIPELINE_REGISTRY.register_pipeline(
    "text-recognition",
    pipeline_class=TextRecognitionPipeline,
    pt_model=AutoModelForTextRecognition,
    default={"model": (default_checkpoint("word"), "main")},
    type="image",
)

__all__ = ["FormulaRecognitionPipeline", "TextRecognitionPipeline"]
