"""Fine-tuning of models that read words: a domain's words, whole or one half of them, shown one by one."""

from dataclasses import asdict, fields

from .pretraining import OF_FORMULAS, refuse_unknown, word_evaluation
from .training import LoopArguments, RecipeError, changed


class WordTuning:
    """What fine-tuning needs to know of words.

    Args:
        args: `FinetuneArguments`.
        model: what is fine-tuned.
        processor: its own.

    Attributes:
        rows: words that can be trained on, with their labels as the model writes them.
        held_out: words to measure with, where `eval_data` names some; else None.
        processor: the given one.

    Raises:
        ValueError: the data cannot be used, or the settings; one sentence.
    """

    unit = "words"
    # Attention and feed-forward of encoder, resampler, cross-attention and decoder; OPT has an `out_proj`.
    target_modules = ["q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "fc1", "fc2"]
    new_symbols = ()

    def __init__(self, args, model, processor):
        from .data.words import half_of, load_words, training_labels

        if given := changed(args, ("new_symbols", *OF_FORMULAS)):
            raise RecipeError(f"{', '.join(given)}: for formulas only; leave it out.")
        self.processor, self.held_out = processor, None
        loaded = [
            half_of(load_words(path, args.train_split, args.source), args.half, path) for path in args.train_data
        ]
        self.rows, _ = training_labels(_joined(loaded), characters_of(processor))
        if args.eval_data:
            self.held_out = load_words(args.eval_data, args.eval_split)

    @property
    def augmentation(self) -> dict:
        """How words are varied by default, as in training from scratch."""
        from .data.word_augmentation import WordAugmentation

        return asdict(WordAugmentation())

    def loader(self, rows, args: LoopArguments):
        """The `loader` of `train` over `rows`, and how many of them it uses: those whose images can be opened."""
        from .data.word_augmentation import WordAugmentation
        from .data.word_batches import WordDataset, WordLoader
        from .data.words import check_images

        refuse_unknown("augmentation", args.augmentation, [f.name for f in fields(WordAugmentation)])
        augmentation = WordAugmentation(**args.augmentation) if args.augmentation else None
        rows, _ = check_images(rows)
        if not len(rows):
            raise ValueError("none of the images to be trained on can be opened.")
        size = self.processor.image_processor.size
        dataset = WordDataset([rows], (size["height"], size["width"]), 1, augmentation, args.seed)
        return WordLoader(dataset, [1.0], self.processor, args.batch_size, args.num_workers), len(rows)

    def evaluation(self, rows, args: LoopArguments):
        """`evaluate(model)` for `train`."""
        return word_evaluation({"held_out": rows}, self.processor, args)

    def measure(self, model, rows) -> dict:
        """Read `rows` with a checkpoint as `epigraph.read` does: `metrics`, and the `texts` that were read."""
        from .evaluation_words import evaluate_words
        from .reading import load

        measured = evaluate_words(*load(model, "word"), rows, batch_size=32, progress=True)
        return {"metrics": measured["metrics"], "texts": [reading.text for reading in measured["readings"]]}


def characters_of(processor) -> set[str]:
    """What labels for training may consist of: the characters that the model writes, without the space."""
    tokenizer = processor.tokenizer
    return set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens) - {" "}


def _joined(parts: list):
    import datasets

    if len(parts) == 1:
        return parts[0]
    parts = [part.select_columns(["id", "image", "text"]) for part in parts]
    return datasets.concatenate_datasets([part.cast(parts[0].features) for part in parts])


__all__ = ["WordTuning", "characters_of"]
