"""Fine-tuning of models that read formulas: rows that can be used, and room for new symbols."""

import logging

from tqdm.auto import tqdm

from .pretraining import formula_loader, reading_evaluation, training_rows
from .training import LoopArguments, RecipeError, changed

logger = logging.getLogger(__name__)

MAX_NEW_SYMBOLS = 500


class FormulaTuning:
    """What fine-tuning needs to know of formulas.

    Args:
        args: `FinetuneArguments`.
        model: what is fine-tuned; new symbols make it wider.
        processor: its own.

    Attributes:
        rows: formulas that can be trained on.
        held_out: formulas to measure with, where `eval_data` names some; else None.
        processor: the given one, or with new symbols another.
        new_symbols: the tokens that were added.

    Raises:
        ValueError: the data cannot be used, or the settings; one sentence.
    """

    unit = "formulas"
    # Attention and feed-forward of the decoder; of the encoder every convolution.
    target_modules = [
        *("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"),
        *("stem.conv", "bottleneck.conv", "growth.conv", "projection.conv", "feature_proj"),
    ]
    augmentation = {"swap": 0.5, "rotation": 2.0, "shear": 0.15, "stretch": 0.15}

    def __init__(self, args, model, processor):
        from .data.readers import load_formulas, normalise_labels

        if given := changed(args, ("source", "half")):
            raise RecipeError(f"{', '.join(given)}: for words only; leave it out.")
        rows = training_rows(args.train_data, args.train_split)
        known, self.new_symbols, self.processor = processor.tokenizer.get_vocab(), [], processor
        if args.new_symbols:
            self.new_symbols = missing_symbols(rows, known, args.new_symbols)
        if self.new_symbols:
            self.processor = widened_processor(processor, self.new_symbols)
            model.widen_vocabulary(self.processor.tokenizer.get_vocab())
            logger.warning("%d new symbols: %s", len(self.new_symbols), " ".join(self.new_symbols))
        vocabulary = self.processor.tokenizer.get_vocab()
        rows, report = normalise_labels(rows, vocabulary)
        if report.unknown and not args.new_symbols:
            logger.warning(
                "add --new_symbols auto to teach the model the %d unknown symbols, too", len(report.unknown)
            )
        self.rows, self.held_out = usable_images(rows), None
        if args.eval_data:
            self.held_out = comparable_labels(load_formulas(args.eval_data, args.eval_split), vocabulary)

    def loader(self, rows, args: LoopArguments):
        """The `loader` of `train` over `rows`, and how many of them it uses."""
        loader = formula_loader(as_read(rows, self.processor), self.processor, args)
        used = int(loader.batches.usable.sum())
        if dropped := len(loader.batches.usable) - used:
            logger.warning(
                "%d of %d formulas are larger than max_image_pixels or max_label_length", dropped, len(rows)
            )
        return loader, used

    def evaluation(self, rows, args: LoopArguments):
        """`evaluate(model)` for `train`."""
        return reading_evaluation(rows, self.processor, None)

    def measure(self, model, rows) -> dict:
        """Read `rows` with a checkpoint as `epigraph.read` does: `metrics`, and the `texts` that were read."""
        from .evaluation import evaluate_formulas
        from .metrics import token_error_rate
        from .reading import load

        measured = evaluate_formulas(*load(model), rows, progress=True)
        texts = [reading.text for reading in measured["readings"]]
        metrics = {name: measured["metrics"][name] for name in ("exprate", "exprate_1", "exprate_2", "exprate_symlg")}
        return {"metrics": {**metrics, "token_error_rate": token_error_rate(texts, rows["text"][:])}, "texts": texts}


def usable_images(rows):
    """Rows whose images can be opened; rows of ink as they are.

    Raises:
        ValueError: no image can be opened.
    """
    if "image" not in rows.column_names:
        return rows
    kept = []
    for index, (_, image) in enumerate(_images(rows)):
        if isinstance(image, ValueError):
            logger.warning("left out: %s", image)
        else:
            kept.append(index)
    if not kept:
        raise ValueError(f"none of the {len(rows)} images can be opened.")
    return rows.select(kept)


def as_read(rows, processor):
    """Rows with their images as reading prepares them: cleaned, cut to the ink, at the size of drawn ink.

    So photographs train what they are read as, and none is too large. Rows of ink stay as they are; images in which
    there is nothing to read are left out.
    """
    if "image" not in rows.column_names:
        return rows
    import datasets
    from PIL import Image

    kept, images = [], []
    for index, (name, image) in enumerate(tqdm(_images(rows), "Preparing images", len(rows), disable=None)):
        try:
            ink = processor(images=[image], scale=1.0)["pixel_values"][0, 0]
        except ValueError as error:
            logger.warning("left out: %s: %s", name, str(error).removeprefix("Image 0 cannot be read: "))
            continue
        kept.append(index)
        images.append(Image.fromarray((ink * 255).byte().numpy()))
    rows = rows.select(kept)
    columns = {name: rows[name][:] for name in rows.column_names if name != "image"}
    features = datasets.Features({**rows.features, "image": datasets.Image()})
    return datasets.Dataset.from_dict({**columns, "image": images}, features=features)


def _images(rows):
    """The name and the image of each row, or the ValueError that says why it cannot be opened."""
    import datasets

    from .inputs import to_image

    for row in rows.cast_column("image", datasets.Image(decode=False)):
        try:
            yield row["id"], to_image(row["image"]["bytes"] or row["image"]["path"], row["id"])
        except ValueError as error:
            yield row["id"], error


def missing_symbols(rows, vocabulary: dict[str, int], wanted: list[str]) -> list[str]:
    """The tokens to add: those `wanted`, or with "auto" all that the labels hold; the most frequent first.

    Raises:
        RecipeError: a wanted symbol is no token, or there are more than a vocabulary of formulas would need.
    """
    from .data.latex import LabelReport, tokenize

    if wanted != ["auto"]:
        for symbol in wanted:
            if tokenize(symbol) != [symbol]:
                raise RecipeError(
                    f"new_symbols: {symbol!r} is not one token; tokens are single characters and commands such as "
                    r"\Omega, or auto."
                )
        return [symbol for symbol in dict.fromkeys(wanted) if symbol not in vocabulary]
    report = LabelReport()
    for name, text in zip(rows["id"], rows["text"]):
        report.add(name, text, vocabulary)
    if len(report.unknown) > MAX_NEW_SYMBOLS:
        raise RecipeError(
            f"new_symbols: the labels hold {len(report.unknown)} unknown tokens, such as "
            f"{', '.join(list(report.unknown)[:5])}; are they LaTeX? More than {MAX_NEW_SYMBOLS} are not added."
        )
    return [symbol for symbol, _ in sorted(report.unknown.items(), key=lambda item: (-item[1], item[0]))]


def widened_processor(processor, symbols: list[str]):
    """The processor with `symbols` added after the tokens it has.

    Raises:
        ValueError: its tokenizer is none of `latex_tokenizer`, so that tokens would get other ids.
    """
    from .models.processing import TextProcessor
    from .models.tokenization import SPECIAL_TOKENS, latex_tokenizer

    vocabulary = processor.tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    tokenizer = latex_tokenizer([*tokens[len(SPECIAL_TOKENS) :], *symbols])
    if {token: tokenizer.get_vocab().get(token) for token in tokens} != vocabulary:
        raise ValueError("this model's tokenizer is not one of LaTeX tokens, so no symbols can be added to it.")
    return TextProcessor(processor.image_processor, tokenizer)


def comparable_labels(rows, vocabulary: dict[str, int]):
    """Rows to measure with, labels in normal form; one that the vocabulary cannot write stays, and counts as wrong."""
    from .data.readers import normalise_labels

    try:
        kept, _ = normalise_labels(rows, vocabulary)
    except ValueError:
        return rows
    written = dict(zip(kept["id"], kept["text"]))
    texts = [written.get(name, text) for name, text in zip(rows["id"], rows["text"])]
    return rows.remove_columns("text").add_column("text", texts)


__all__ = ["FormulaTuning"]
