"""What `scripts/pretrain.py` trains: models of formulas and of words, classifiers, and PixelViT on hidden pixels.

    accelerate launch scripts/pretrain.py --recipe recipes/comer_crohme.yaml

Each task makes of a recipe what the loop of `training` needs: a model, its data, a measurement, and a processor to
save beside the weights.
"""

import logging
import sys
from dataclasses import fields

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)
from transformers.trainer_utils import set_seed

from .inputs import first_line
from .training import LoopArguments, PretrainArguments, RecipeError, changed, parse_recipe, train

logger = logging.getLogger(__name__)

# What a type of model can be trained for; the first where a recipe does not say.
TASKS = {"comer": ("formulas",), "e2str": ("words",), "pixelvit": ("classification", "pixels")}
# Settings that mean nothing to images and words.
OF_FORMULAS = ("zoom", "max_pixels", "max_image_pixels", "max_label_length", "freeze_norms_at")
# Settings that mean nothing to formulas and images.
OF_SEQUENCES = ("images_per_sequence", "alike", "exchange")


# --------------------------------------------------------------------------------------------------------- formulas


def reading_evaluation(rows, processor, limit: int | None):
    """`evaluate(model)` for `train`: greedy expression rates on held-out rows; ExpRate selects the best model."""
    from .evaluation import evaluate_formulas

    rows = rows.select(range(min(limit or len(rows), len(rows))))

    def evaluate(model) -> dict[str, float]:
        metrics = evaluate_formulas(model, processor, rows, batch_size=16, num_beams=1, direction="l2r")["metrics"]
        return {**metrics, "selection": metrics["exprate"]}

    return evaluate


def training_rows(paths: list[str], split: str | None = None):
    """The formulas of one or several sources, one after the other, each narrowed to `split`.

    Of several sources the columns that all of them have are kept, and `symbols`, empty where a source has none.

    Raises:
        ValueError: as `load_formulas`, so also where one of the sources has no such split; or some sources have ink,
            others images.
    """
    from .data.readers import load_formulas

    sources = [load_formulas(path, split) for path in paths]
    if len(sources) == 1:
        return sources[0]
    import datasets

    ink = ["strokes" in rows.column_names for rows in sources]
    if any(ink) and not all(ink):
        raise ValueError(
            f"train_data: {paths[ink.index(False)]} has images, {paths[ink.index(True)]} has ink; train on one kind."
        )
    shared = set.intersection(*(set(rows.column_names) for rows in sources))
    columns = [name for name in sources[0].column_names if name in shared - {"strokes", "symbols"}]
    parts = [rows.select_columns(columns) for rows in sources]
    features = parts[0].features
    if all(ink):
        text, whole = datasets.Value("string"), datasets.Value("int64")
        drawn = {"strokes": datasets.List(datasets.List(datasets.Value("float32")))}
        if any("symbols" in rows.column_names for rows in sources):
            drawn["symbols"] = datasets.List({"label": text, "strokes": datasets.List(whole)})
        wanted = [[name for name in drawn if name in rows.column_names] for rows in sources]
        parts = [rows.select_columns([*columns, *names]) for rows, names in zip(sources, wanted)]
        features = datasets.Features({**features, **drawn})
    parts = [rows.cast(datasets.Features({name: features[name] for name in rows.column_names})) for rows in parts]
    return datasets.concatenate_datasets(parts)


def formula_loader(rows, processor, args: LoopArguments):
    """The `loader` of `train` over rows of the formula schema, varied and cut into batches as `args` say."""
    from .data.collate import FormulaBatches, FormulaDataset, FormulaLoader
    from .data.ink import InkAugmentation

    refuse_unknown("augmentation", args.augmentation, InkAugmentation.__dataclass_fields__)
    augmentation = InkAugmentation(**args.augmentation) if args.augmentation else None
    dataset = FormulaDataset(rows, augmentation, args.seed)
    lengths = [len(text.split()) for text in dataset.texts]
    zoom = tuple(args.zoom) if augmentation is not None else (1.0, 1.0)
    limits = (args.batch_size, args.max_pixels, args.max_label_length, args.max_image_pixels)
    batches = FormulaBatches(dataset.sizes(), lengths, *limits, args.seed, zoom)
    return FormulaLoader(dataset, batches, processor, args.num_workers)


def pretrain_formulas(args: PretrainArguments):
    """The arguments of `train` for a model that reads formulas; see `main` for what is raised."""
    from .data.dictionary import symbols_of
    from .data.readers import load_formulas, normalise_labels
    from .models.grammar_comer import grammar_from_vocabulary
    from .models.image_processing import TextImageProcessorKwargs
    from .models.processing import comer_processor
    from .reading import load

    refuse_unknown("processor", args.processor, {"symbols", *TextImageProcessorKwargs.__annotations__})
    if isinstance(args.model, dict):
        check_settings(args.model)
        rows = training_rows(args.train_data, args.train_split)
        if "symbols" in args.processor:
            args.processor["symbols"] = symbols_of(args.processor["symbols"], rows["text"])
        processor = comer_processor(**args.processor)
        vocabulary = processor.tokenizer.get_vocab()
        config = new_config(
            {"vocab_size": len(vocabulary), "grammar": grammar_from_vocabulary(vocabulary), **args.model}
        )
        model = AutoModel.from_config(config)
    else:
        model, processor = load(args.model, None, "cpu", "float32")
        rows = training_rows(args.train_data, args.train_split)

    vocabulary = processor.tokenizer.get_vocab()
    rows, _ = normalise_labels(rows, vocabulary)
    loader = formula_loader(rows, processor, args)
    evaluate = None
    if args.eval_data:
        # Not normalised: a label that the vocabulary cannot write counts as wrong.
        evaluate = reading_evaluation(load_formulas(args.eval_data, args.eval_split), processor, args.eval_limit)
    return model, loader, evaluate, processor


# ----------------------------------------------------------------------------------------------------------- images


def image_rows(paths: list[str], split: str | None, labelled: bool):
    """The images of one or several sources, one after the other; classes of the same name are one class.

    Raises:
        ValueError, FileNotFoundError: as `load_images`.
    """
    import datasets

    from .data.image_classes import class_names, load_images, with_classes

    sources = [load_images(path, split, labelled=labelled) for path in paths]
    if labelled:
        names = list(dict.fromkeys(name for rows in sources for name in class_names(rows)))
        sources = [with_classes(rows, names) for rows in sources]
    if len(sources) == 1:
        return sources[0]
    columns = ["id", "image", "label"] if labelled else ["id", "image"]
    return datasets.concatenate_datasets([rows.select_columns(columns) for rows in sources])


def new_image_model(args: PretrainArguments, auto, names: list[str] | None):
    """A model of the recipe's settings with random weights, and a processor that gives it images of its size."""
    from .models.image_processing_pixelvit import PixelViTImageProcessor, PixelViTImageProcessorKwargs

    refuse_unknown("processor", args.processor, PixelViTImageProcessorKwargs.__annotations__)
    check_settings(args.model, from_data={"id2label", "label2id", "num_labels"})
    config = new_config({**args.model, **classes_of(names)})
    height, width = config.image_height_width
    settings = {"size": {"height": height, "width": width}, "num_channels": config.num_channels}
    if config.pixel_vocab_size is not None:
        settings["pixel_ids"] = True
    return auto.from_config(config), PixelViTImageProcessor(**{**settings, **args.processor})


def further_image_model(args: PretrainArguments, auto, names: list[str] | None):
    """The model of a folder with its processor.

    Where the folder's model does something else, or knows other classes, its encoder goes on with a new head.
    """
    from .reading import checkpoint_folder, load_config, load_weights

    if args.processor:
        raise RecipeError(f"processor: {args.model} has its own; leave the setting out.")
    folder = checkpoint_folder(args.model)
    config = load_config(folder, args.model)
    try:
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RecipeError(f"{args.model}: its processor cannot be loaded ({first_line(error)}).") from None
    same = config.architectures == [auto._model_mapping[type(config)].__name__]
    if same and set(names or ()) <= set(config.label2id):
        model, missing, unknown = load_weights(auto, folder, config, "float32", args.model)
    else:
        encoder, missing, left_out = load_weights(AutoModel, folder, config, "float32", args.model)
        config.update(classes_of(names))
        model, unknown = auto.from_config(config), []
        model.base_model.load_state_dict(encoder.state_dict())
        parts = ", ".join(sorted({name.split(".")[0] for name in left_out})) or "nothing"
        logger.warning(
            "%s: the encoder is trained further, the %s is new; left out: %s",
            args.model,
            "classifier" if names else "decoder",
            parts,
        )
    if missing or unknown:
        raise RecipeError(
            f"{args.model}: its weights do not fit its config.json: {len(missing)} missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}; save the model again with save_pretrained."
        )
    return model, processor


def classes_of(names: list[str] | None) -> dict:
    """What a configuration says about classes; nothing without any."""
    if names is None:
        return {}
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def pretrain_images(args: PretrainArguments, task: str):
    """The arguments of `train` for a classifier, or for a model that predicts hidden pixels."""
    from .data.image_classes import ImageAugmentation, ImageLoader, class_names, load_images, with_classes

    if given := changed(args, OF_FORMULAS):
        raise RecipeError(f"{', '.join(given)}: for formulas only; images of one size need no such setting.")
    refuse_unknown("augmentation", args.augmentation, [f.name for f in fields(ImageAugmentation)])
    try:
        augmentation = ImageAugmentation(**args.augmentation) if args.augmentation else None
    except ValueError as error:
        raise RecipeError(str(error)) from None
    labelled = task == "classification"
    rows = image_rows(args.train_data, args.train_split, labelled)
    names = class_names(rows) if labelled else None
    make = new_image_model if isinstance(args.model, dict) else further_image_model
    auto = AutoModelForImageClassification if labelled else AutoModelForPreTraining
    model, processor = make(args, auto, names)
    if labelled:
        names = [model.config.id2label[number] for number in range(model.config.num_labels)]
        rows = with_classes(rows, names, args.model)
    held_out = None
    if args.eval_data:
        held_out = load_images(args.eval_data, args.eval_split, limit=args.eval_limit, labelled=labelled)
        held_out = with_classes(held_out, names, "the training data") if labelled else held_out
    loader = ImageLoader(rows, processor, args.batch_size, args.seed, args.num_workers, augmentation)
    evaluate = None
    if held_out is not None:
        measure = classification_evaluation if labelled else reconstruction_evaluation
        evaluate = measure(held_out, processor, args)
    return model, loader, evaluate, processor


def classification_evaluation(rows, processor, args: LoopArguments):
    """`evaluate(model)` for `train`: accuracy on held-out images, which selects the best model."""
    from .classification import evaluate_classification

    def evaluate(model) -> dict[str, float]:
        metrics = evaluate_classification(model, processor, rows, batch_size=args.batch_size)["metrics"]
        return {**metrics, "selection": metrics["accuracy"]}

    return evaluate


def reconstruction_evaluation(rows, processor, args: LoopArguments):
    """`evaluate(model)` for `train`: the loss on held-out images, of which the same pixels are hidden every time."""
    from .data.image_classes import ImageLoader

    loader = ImageLoader(rows, processor, args.batch_size)

    @torch.no_grad()
    def evaluate(model) -> dict[str, float]:
        total, cuda = 0.0, [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(cuda):
            torch.manual_seed(args.seed)
            for batch in loader.in_order():
                batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
                total += model(**batch, num_items_in_batch=1).loss.item()
        return {"loss": total / len(rows), "selection": -total / len(rows)}

    return evaluate


# ------------------------------------------------------------------------------------------------------------ words


def word_model(args: PretrainArguments):
    """The model of a recipe's settings, or of a folder, and its processor."""
    from .models.processing_e2str import e2str_processor
    from .reading import load

    if not isinstance(args.model, dict):
        if args.processor:
            raise RecipeError(f"processor: {args.model} has its own; leave the setting out.")
        return load(args.model, None, "cpu", "float32")
    refuse_unknown("processor", args.processor, {"characters"})
    check_settings(args.model)
    text = dict(args.model.get("text_config") or {})
    if "vocab_size" in text:
        raise RecipeError("model: text_config.vocab_size follows from the processor's characters; leave it out.")
    try:
        vocabulary = len(e2str_processor(**args.processor).tokenizer)
        config = new_config({**args.model, "text_config": {**text, "vocab_size": vocabulary}})
        size = dict(zip(("height", "width"), config.image_height_width))
        positions = config.text_config.max_position_embeddings
        processor = e2str_processor(**args.processor, max_length=positions, size=size)
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, RecipeError) else RecipeError(f"processor: {first_line(error)}") from None
    return AutoModel.from_config(config), processor


def word_sources(args: PretrainArguments) -> list:
    """The `WordSource`s of a recipe; `RecipeError` where one cannot be."""
    from .data.word_batches import WordSource

    sources = []
    for data in args.train_data:
        values = {"path": data} if isinstance(data, str) else data
        refuse_unknown("train_data", values, [f.name for f in fields(WordSource)])
        try:
            sources.append(WordSource(**{"split": args.train_split, **values}))
        except (TypeError, ValueError) as error:
            raise RecipeError(f"train_data: {str(error).removeprefix('train_data: ')}") from None
    return sources


def pretrain_words(args: PretrainArguments):
    """The arguments of `train` for a model that reads words: single ones, or many in context."""
    from .data.word_augmentation import WordAugmentation
    from .data.word_batches import WordDataset, WordLoader
    from .data.words import load_words
    from .finetuning_words import characters_of

    if given := changed(args, OF_FORMULAS):
        raise RecipeError(f"{', '.join(given)}: for formulas only; words need no such setting.")
    if args.images_per_sequence < 1:
        raise RecipeError(f"images_per_sequence must be at least 1, not {args.images_per_sequence}.")
    if args.images_per_sequence > 1 and (args.augmentation or {}).get("part"):
        raise RecipeError("augmentation: part is of single words only; sequences show parts by themselves (Split).")
    for name in ("alike", "exchange"):
        share = getattr(args, name)
        if not 0 <= share <= 1 or share and args.images_per_sequence == 1:
            raise RecipeError(f"{name} is a share of sequences of several images, from 0 to 1, not {share}.")
    refuse_unknown("augmentation", args.augmentation, [f.name for f in fields(WordAugmentation)])
    try:
        augmentation = WordAugmentation(**args.augmentation) if args.augmentation else None
    except (TypeError, ValueError) as error:
        raise RecipeError(str(error)) from None
    sources = word_sources(args)
    model, processor = word_model(args)
    if args.exchange and model.config.ctc_loss_weight:
        logger.warning("exchange: the CTC head, which sees no examples, is left out from here on")
        model.config.ctc_loss_weight, model.ctc_head = 0.0, None
    parts, held_out = [], {}
    for source in sources:
        rows, kept = source.load(characters_of(processor))
        parts.append(rows)
        if len(kept):
            held_out[f"{source.name}_{len(parts)}" if source.name in held_out else source.name] = kept
    if args.eval_data:
        held_out["eval_data"] = load_words(args.eval_data, args.eval_split)
    size = processor.image_processor.size
    size = size["height"], size["width"]
    dataset = WordDataset(parts, size, args.images_per_sequence, augmentation, args.seed, args.exchange)
    weights = [len(rows) if source.weight is None else source.weight for source, rows in zip(sources, parts)]
    loader = WordLoader(dataset, weights, processor, args.batch_size, args.num_workers, args.alike)
    return model, loader, word_evaluation(held_out, processor, args) if held_out else None, processor


def word_evaluation(held_out: dict, processor, args: LoopArguments):
    """`evaluate(model)` for `train`: greedy word accuracy (protocol 36) by source; their mean selects the best."""
    from .evaluation_words import evaluate_words

    chosen = {}
    for name, rows in held_out.items():
        count = min(args.eval_limit or len(rows), len(rows))
        chosen[name] = rows.select([number * len(rows) // count for number in range(count)])

    def evaluate(model) -> dict[str, float]:
        read = {
            name: evaluate_words(model, processor, rows, batch_size=32, num_beams=1)["metrics"]["word_accuracy"]
            for name, rows in chosen.items()
        }
        return {**{f"word_accuracy_{name}": value for name, value in read.items()},
                "selection": sum(read.values()) / len(read)}  # fmt: skip

    return evaluate


# ------------------------------------------------------------------------------------------------------------- main


def refuse_unknown(name: str, values: dict, known) -> None:
    """Raise `RecipeError` where `values`, of the argument `name`, has a key that is not known."""
    if unknown := sorted(set(values) - set(known)):
        raise RecipeError(f"{name}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(known))}.")


def check_settings(settings: dict, from_data: set[str] = frozenset()) -> None:
    """Raise `RecipeError` where a new model's settings are none of its configuration, or come `from_data`."""
    known = {"model_type", *CONFIG_MAPPING[settings["model_type"]].__dataclass_fields__}
    refuse_unknown("model", settings, {name for name in known - from_data if name == "model_type" or name[0] != "_"})
    for name, part in CONFIG_MAPPING[settings["model_type"]].sub_configs.items():
        refuse_unknown(f"model: {name}", settings.get(name) or {}, {"model_type", *part.__dataclass_fields__})


def new_config(settings: dict):
    """The configuration with these settings, `model_type` among them; `RecipeError` where they cannot be."""
    try:
        return AutoConfig.for_model(**settings)
    except (StrictDataclassError, ValueError) as error:
        raise RecipeError(f"model: {' '.join(str(error).split())}") from None


def task_of(args: PretrainArguments) -> str:
    """What is trained; `RecipeError` where there is no such model, or it cannot be trained for that."""
    from .adapters import base_of, is_adapter
    from .reading import checkpoint_folder, load_config

    if isinstance(args.model, dict):
        model_type = args.model["model_type"]
        if model_type not in CONFIG_MAPPING:
            raise RecipeError(f"model: there is no model_type {model_type!r}.")
    else:
        folder = checkpoint_folder(args.model)
        if is_adapter(folder):  # it states no type
            folder = checkpoint_folder(base_of(folder))
        model_type = load_config(folder, args.model).model_type
    tasks = TASKS.get(model_type)
    if tasks is None:
        raise RecipeError(f"model: recipes train {', '.join(TASKS)}, not {model_type}.")
    if args.task not in (None, *tasks):
        raise RecipeError(f"task: a {model_type} model is trained for {' or '.join(tasks)}, not {args.task!r}.")
    return args.task or tasks[0]


def set_attention(model, args: PretrainArguments, task: str) -> None:
    """The attention that the recipe names, or the fastest: of images in bf16 on a CPU that is ours."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    name = args.attn_implementation
    if name is None and task != "formulas" and args.mixed_precision == "bf16":
        # What the loop's Accelerator asks the environment for: the first state of a process is that of all of it.
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
        name = "blocked" if state.device.type == "cpu" else None
    if name is not None:
        try:
            model.set_attn_implementation(name)
        except (ValueError, ImportError) as error:
            raise RecipeError(f"attn_implementation: {first_line(error)}.") from None


def main(argv: list[str] | None = None) -> None:
    """Trains what a recipe says; see `PretrainArguments`.

    Raises:
        RecipeError: a setting that is unknown or cannot be.
        ValueError, OSError: model or data cannot be used; one sentence. Also what `train` raises.
    """
    import epigraph  # noqa: F401  registers the Auto classes

    args = parse_recipe(sys.argv[1:] if argv is None else argv)
    set_seed(args.seed)
    task = task_of(args)
    if task == "words":
        model, loader, evaluate, processor = pretrain_words(args)
    elif of_words := changed(args, OF_SEQUENCES):
        raise RecipeError(f"{', '.join(of_words)}: of words only, not of {task}.")
    elif not all(isinstance(path, str) for path in args.train_data):
        raise RecipeError(f"train_data: {task} take paths alone.")
    elif task == "formulas":
        model, loader, evaluate, processor = pretrain_formulas(args)
    else:
        model, loader, evaluate, processor = pretrain_images(args, task)
    set_attention(model, args, task)
    train(model, loader, args, evaluate, processor.save_pretrained)


if __name__ == "__main__":
    main()
