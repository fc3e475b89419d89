"""Measuring classes of images: what a classifier answers on a data set, as rates and for each class."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModelForImageClassification, BaseImageProcessor, PreTrainedModel

from .inputs import first_line
from .reading import DTYPES, checkpoint_folder, load_config, load_weights, on_device

if TYPE_CHECKING:
    from datasets import Dataset

BEST = 5  # answers of an image that are looked at
MANY_CLASSES = 10  # from which on it is also measured whether the class is among the best answers


def load_classifier(
    model: str | Path, device: str | torch.device | None = None, dtype: str = "float32"
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """A classifier in evaluation mode, and its image processor.

    Args:
        model: folder or Hub id.
        device: by default CUDA where there is one, else the CPU.
        dtype: "float32", "bfloat16" or "float16".

    Raises:
        ValueError: no such model, or none that classifies images.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    folder = checkpoint_folder(model)
    config = load_config(folder, model)
    loaded, missing, unknown = load_weights(AutoModelForImageClassification, folder, config, dtype, model)
    if missing or unknown:
        raise ValueError(
            f"{model}: no classifier of images; its weights lack {missing[:3]} and hold {unknown[:3]} besides. Train "
            "it on classes first."
        )
    try:
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{model}: its processor cannot be loaded ({first_line(error)}).") from None
    return on_device(loaded, device or ("cuda" if torch.cuda.is_available() else "cpu")), processor


def evaluate_classification(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    dataset: "Dataset",
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> dict:
    """Classify a data set and compare.

    Args:
        model: loaded; it is put into evaluation mode meanwhile.
        processor: of the model.
        dataset: in the schema of `epigraph.data.image_classes`, its classes numbered as the model numbers them.
        batch_size: images that are classified together.
        progress: show a progress bar on a terminal.

    Returns:
        `metrics`: see `classification_metrics`. `answers`: for each row the most probable classes, the best first, at
        most 5; an empty list for an image that cannot be read, which is wrong. `errors`: a sentence for each of these.
    """
    from .data.image_classes import open_images

    answers, errors, waiting = [], [], []

    def classify():
        logits = model(pixel_values=torch.cat([pixels for _, pixels in waiting]).to(model.device)).logits
        for (place, _), classes in zip(waiting, logits.argsort(dim=1, descending=True)[:, :BEST].tolist()):
            answers[place] = classes
        waiting.clear()

    training = model.training
    model.eval()
    images = open_images(dataset)
    images = tqdm(images, "Classifying", len(dataset), unit=" images", disable=None if progress else True)
    try:
        with torch.inference_mode():
            for name, image in images:
                answers.append([])
                try:
                    if isinstance(image, ValueError):
                        raise image
                    pixels = processor(images=[image], return_tensors="pt")["pixel_values"]
                except ValueError as error:
                    errors.append(f"{name}: {str(error).removeprefix(f'{name}: ')}")
                    continue
                if waiting and (len(waiting) == batch_size or waiting[0][1].shape != pixels.shape):
                    classify()
                waiting.append((len(answers) - 1, pixels))
            if waiting:
                classify()
    finally:
        model.train(training)
    metrics = classification_metrics(answers, dataset["label"][:], model.config.num_labels)
    return {"metrics": metrics, "answers": answers, "errors": errors}


def classification_metrics(answers: Sequence[Sequence[int]], labels: Sequence[int], classes: int) -> dict[str, float]:
    """Rates in 0..1.

    Args:
        answers: for each image its most probable classes, the best first.
        labels: the true classes.
        classes: how many there are.

    Returns:
        `accuracy`, the share whose best answer is right; of 10 classes and more also `accuracy_5`, the share with the
        class among the best five.
    """
    metrics = {"accuracy": sum(label in best[:1] for best, label in zip(answers, labels)) / len(labels)}
    if classes >= MANY_CLASSES:
        metrics["accuracy_5"] = sum(label in best[:BEST] for best, label in zip(answers, labels)) / len(labels)
    return metrics


def class_breakdown(answers: Sequence[Sequence[int]], labels: Sequence[int], names: Sequence[str]) -> list[dict]:
    """For each class that occurs: `class`, `n`, `accuracy`, and `taken_for`, its most frequent wrong answer."""
    found = []
    for number, name in enumerate(names):
        own = [best[:1] for best, label in zip(answers, labels) if label == number]
        if not own:
            continue
        wrong = [answer for best in own for answer in best if answer != number]
        taken_for = max(set(wrong), key=lambda answer: (wrong.count(answer), -answer)) if wrong else None
        found.append(
            {
                "class": name,
                "n": len(own),
                "accuracy": sum(best == [number] for best in own) / len(own),
                "taken_for": None if taken_for is None else names[taken_for],
            }
        )
    return found


__all__ = ["class_breakdown", "classification_metrics", "evaluate_classification", "load_classifier"]
