"""`epigraph synth`: a recipe of argument values becomes a generator; that makes shards, a preview, a repository.

epigraph synth --recipe recipes/words.yaml --preview sheet.png
epigraph synth --recipe recipes/words.yaml --out data/words --num_samples 1000000
"""

import hashlib
import inspect
import logging
import sys
from collections import Counter
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import partial
from math import isfinite
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin, get_type_hints

from huggingface_hub.utils import validate_repo_id

from ...training import RecipeError, parse_recipe, parsed
from ..readers import expand_path
from .datasets import ATTEMPTS
from .fonts import LATIN, FontError, find_fonts
from .shards import FORMATS, ShardPlan, write_shards

KINDS = ("words", "groups", "crops", "scenes", "formulas")
EXECUTORS = ("none", "local", "slurm", "ray")
_SIZES = {"words": [64, 256], "groups": [64, 256], "scenes": [512, 512]}
_PLAN = ("num_samples", "shard_size", "seed", "attempts", "format")  # what `ShardPlan` puts into the manifest itself
_NOUNS = {int: "a whole number", str: "a text", bool: "true or false"}
SHEET = "sheet.png"
_PATHS = ("fonts", "words", "backgrounds", "captions")
_OUTSIDE = ("out", "workers", "push", "private", "preview", "count", "executor", "tasks", "executor_options")


@dataclass
class SynthesisArguments:
    """Draw labelled text images into shards. On the command line dictionaries are JSON."""

    out: str | None = field(
        default=None, metadata={"help": "Folder of the shards. A run that was cut off goes on where it stood."}
    )
    kind: str = field(
        default="words", metadata={"help": "words, groups (words x styles x backgrounds), crops, scenes, formulas."}
    )
    num_samples: int = field(default=10_000, metadata={"help": "Samples of all shards together."})
    size: list[int] | None = field(
        default=None, metadata={"help": "Height and width in pixels; 64 256 for words, 512 512 for scenes."}
    )
    contents: int = field(default=2, metadata={"help": "Words in each style: 2 makes pairs. Not for scenes."})
    fonts: list[str] = field(
        default_factory=list, metadata={"help": "Font files and folders; by default those of the system."}
    )
    font_names: list[str] = field(
        default_factory=list, metadata={"help": "Only faces whose name contains one of these."}
    )
    characters: str | None = field(
        default=None,
        metadata={"help": "What every face must have; Latin letters and digits, or what words need."},
    )
    words: list[str] = field(
        default_factory=list, metadata={"help": "Word lists or any text files; by default the system's list."}
    )
    word_options: str = field(default="{}", metadata={"help": 'Of WordSampler, as {"numbers": 0.2}.'})
    backgrounds: list[str] = field(
        default_factory=list, metadata={"help": "Folders of pictures without text, beside the procedural ones."}
    )
    style: str = field(default="{}", metadata={"help": 'Of StyleOptions, as {"curve": 0.5}; or plain: no effect.'})
    scene: str = field(default="{}", metadata={"help": 'Of SceneOptions, as {"plates": 0.3}. For kind scenes.'})
    captions: list[str] = field(
        default_factory=list,
        metadata={
            "help": "For kind formulas: text files with a formula on each line, or data with a text column, whose "
            "formulas are varied; by default those of the ink."
        },
    )
    ink: str | None = field(
        default=None, metadata={"help": "For kind formulas: segmented formulas whose strokes are used; else fonts."}
    )
    generator: str = field(default="{}", metadata={"help": "Further arguments of the kind's generator."})
    seed: int = field(default=0, metadata={"help": "Other seeds give other samples."})
    attempts: int = field(default=ATTEMPTS, metadata={"help": "Attempts before a rejected sample is left out."})
    shard_size: int = field(default=1000, metadata={"help": "Samples in a shard."})
    format: str = field(default="parquet", metadata={"help": "parquet or webdataset."})
    license: str | None = field(default=None, metadata={"help": "Licence on the dataset card, as the Hub names it."})
    workers: int | None = field(default=None, metadata={"help": "Processes; by default one for each CPU."})
    push: str | None = field(default=None, metadata={"help": "Dataset repository that gets the finished shards."})
    private: bool = field(default=False, metadata={"help": "Create that repository as private."})
    preview: str | None = field(
        default=None,
        metadata={
            "nargs": "?",
            "const": SHEET,
            "help": f"Draw a contact sheet with all labels here, or as {SHEET}; without --out, nothing else.",
        },
    )
    count: int = field(default=8, metadata={"help": "Samples on the contact sheet."})
    executor: str = field(
        default="none", metadata={"help": "local, slurm or ray: let datatrove run the tasks, as on a cluster."}
    )
    tasks: int | None = field(default=None, metadata={"help": "Tasks of the executor; by default one for each shard."})
    executor_options: str = field(default="{}", metadata={"help": 'Of the executor, as {"partition": "cpu"}.'})

    def __post_init__(self):
        for name in ("word_options", "style", "scene", "generator", "executor_options"):
            try:
                value = parsed(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name} is no JSON: {error}.") from None
            if not isinstance(value, dict) and (name, value) != ("style", "plain"):
                raise ValueError(f"{name} must be a dictionary, not {value!r}.")
            setattr(self, name, value)
        for name, known in (("kind", KINDS), ("format", tuple(FORMATS)), ("executor", EXECUTORS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}.")
        for name, kind in get_type_hints(type(self)).items():
            if not isinstance(getattr(self, name), dict):
                setattr(self, name, _typed(getattr(self, name), kind, name))
        for name in ("num_samples", "shard_size", "attempts", "contents", "workers", "tasks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        if self.size is None:
            self.size = _SIZES.get(self.kind)
        elif len(self.size) != 2:
            raise ValueError(f"size is height and width, not {self.size}.")

    def content(self) -> dict:
        """The values that say what is drawn, for the manifest; those at their defaults are left out.

        Of absolute paths it has the last part alone: what was read there is known by its digest.
        """
        defaults = {f.name: f.default if f.default is not MISSING else f.default_factory() for f in fields(self)}
        defaults |= {"word_options": {}, "style": {}, "scene": {}, "generator": {}}
        values = {name: value for name, value in asdict(self).items() if name not in (*_OUTSIDE, *_PLAN)}
        values |= {name: [_unplaced(path) for path in values[name]] for name in _PATHS}
        values["ink"] = values["ink"] and _unplaced(values["ink"])
        return {name: value for name, value in values.items() if name == "kind" or value != defaults[name]}


def _unplaced(path: str) -> str:
    return Path(path).name if Path(path).is_absolute() or path.startswith("~") else path


def _typed(value, kind, name: str):
    """`value` if it is of the annotated type; one entry may stand for a list of them."""
    kinds = [part for part in (get_args(kind) if isinstance(kind, UnionType) else (kind,)) if part is not type(None)]
    if value is None and isinstance(kind, UnionType):
        return value
    (kind,) = kinds
    if get_origin(kind) is list:
        return [_typed(item, *get_args(kind), name) for item in (value if isinstance(value, list) else [value])]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} must be {_NOUNS[kind]}, not {value!r}.")
    return value


def _like(default, value, name: str):
    """`value` if it can stand where `default` does: a share, a range, a number, relative frequencies; else ValueError.

    Numbers whose default is 0 to 1 are shares.
    """
    if isinstance(default, tuple):
        if not isinstance(value, (list, tuple)) or len(value) != len(default):
            raise RecipeError(f"{name} must be a list of {len(default)} numbers, least and most, not {value!r}.")
        value = tuple(_like(2.0, number, name) for number in value)
        if list(value) != sorted(value):
            raise RecipeError(f"{name} must be least and most in this order, not {list(value)}.")
        return value
    if isinstance(default, dict):
        if not isinstance(value, dict) or not value:
            raise RecipeError(f"{name} must be a dictionary of relative frequencies, not {value!r}.")
        return {key: _like(2.0, number, f"{name}.{key}") for key, number in value.items()}
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value) or value < 0:
        raise RecipeError(f"{name} must be a number from 0, not {value!r}.")
    if default <= 1 and value > 1:
        raise RecipeError(f"{name} is a share, 0 to 1, not {value!r}.")
    return value


def _options(cls, name: str, values: dict, **given):
    """A record of options whose fields all have defaults, with `values` and what is `given`."""
    defaults = cls(**given)
    known = _keywords(cls, name, values, given)
    return replace(defaults, **{key: _like(getattr(defaults, key), known[key], f"{name}.{key}") for key in known})


def _made(function, name: str, values: dict, **given):
    """What `function` gives for `values`, of which a wrong one is told with the name of its dictionary."""
    keywords = _keywords(function, name, values, given)
    try:
        return function(**given, **keywords)
    except TypeError as error:
        raise RecipeError(f"{name}: a value in {values} has the wrong type ({error}).") from error


def _keywords(function, name: str, values: dict, given=()) -> dict:
    """`values`, all of which `function` must take beside those `given`; lists as tuples, as records have them."""
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.name not in given and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if unknown := sorted(set(values) - set(known)):
        raise RecipeError(f"{name}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def build(args: SynthesisArguments) -> tuple[object, dict]:
    """The generator that a recipe describes, and for the manifest its whole style and the digests of what it reads.

    Raises:
        ValueError: no font was found, a file cannot be read, or an option does not exist.
    """
    if args.kind == "formulas":
        return _formulas(args)
    from .backgrounds import BackgroundPool
    from .sampling import StyleOptions
    from .words import WordSampler

    files = [expand_path(path) for path in args.words]
    words = _made(WordSampler, "word_options", args.word_options, files=files)
    faces = _faces(args, words.words)
    pool = BackgroundPool([expand_path(path) for path in args.backgrounds]) if args.backgrounds else None
    plain = args.style == "plain"
    options = StyleOptions.plain() if plain else _options(StyleOptions, "style", args.style)
    common = {"faces": faces, "words": words, "size": args.size and tuple(args.size), "backgrounds": pool}
    if args.kind == "scenes":
        from .scenes import SceneGenerator as Generator
        from .scenes import SceneOptions

        options = _options(SceneOptions, "scene", args.scene, style=options)
    elif args.kind == "crops":
        from .crops import CropGenerator as Generator

        if common.pop("size"):
            raise RecipeError("crops have no size in common; give the generator's heights instead of size.")
    else:
        from .rendering import GroupGenerator, WordGenerator

        Generator = WordGenerator if args.kind == "words" else GroupGenerator
        common["contents"] = args.contents
    common["options"] = options
    make = _made(Generator, "generator", args.generator, **common)
    inputs = {
        "fonts": [f"{face.name} {face.digest}" for face in faces],
        "words": {
            "count": len(words.words),
            "digest": _digest("\n".join(words.words).encode()),
            "left_out": words.left_out,
        },
        "backgrounds": [_digest(Path(path).read_bytes()) for path in pool.paths] if pool else [],
    }
    return make, {"options": asdict(options), "inputs": inputs}


def _formulas(args: SynthesisArguments) -> tuple[object, dict]:
    from .formula_labels import read_captions
    from .formulas import FormulaGenerator

    captions = [caption for path in args.captions for caption in read_captions(path)] or None
    inputs = {}
    if captions:
        inputs["captions"] = {"count": len(captions), "digest": _digest("\n".join(captions).encode())}
    if args.ink is None:
        known = bool(args.fonts or args.font_names)
        faces = find_fonts([expand_path(path) for path in args.fonts], names=args.font_names) if known else ()
        make = _made(FormulaGenerator.from_fonts, "generator", args.generator, faces=faces, captions=captions)
        return make, {"inputs": {"fonts": [f"{face.name} {face.digest}" for face in faces], **inputs}}
    path = expand_path(args.ink)
    make = _made(FormulaGenerator.from_ink, "generator", args.generator, path=path, captions=captions)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return make, {"inputs": {"ink": [_digest(file.read_bytes()) for file in files], **inputs}}


def _faces(args: SynthesisArguments, words: list[str]) -> list:
    """Faces for these words: with their 40 most frequent characters, or in lists of mixed scripts with fewer."""
    folders, names = [expand_path(path) for path in args.fonts], args.font_names
    if args.characters or not args.words:
        return find_fonts(folders, args.characters or LATIN, names)
    frequent = [character for character, _ in Counter("".join(words)).most_common(40)]
    failed = []
    for count in (40, 10, 1):
        try:
            return find_fonts(folders, "".join(frequent[:count]), names)
        except FontError as error:
            # A face never gets a word that it cannot draw, so that few characters are enough to be of use.
            failed.append(error)
    raise failed[0]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def plan_of(args: SynthesisArguments) -> ShardPlan:
    """The shards that a recipe describes; `build` says what is raised."""
    make, described = build(args)
    description = {"recipe": args.content(), **described}
    return ShardPlan(make, Path(args.out), **{name: getattr(args, name) for name in _PLAN}, description=description)


def push_shards(folder: str | Path, repo_id: str, private: bool = False) -> str:
    """Publish a finished folder as a dataset, in one commit: shards, manifest and card; the commit's URL.

    Raises:
        ValueError: the folder is not finished, or a shard is not what the manifest says.
        ConnectionError: the Hub refuses, or cannot be reached.
    """
    import json

    from ...cards import dataset_card
    from ...hub import commit, reaching

    folder = Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        shards = [(folder / shard["file"], shard["sha256"]) for shard in manifest["shards"]]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder} is not a finished folder of shards ({error!r}); run epigraph synth again"
        ) from None
    for path, sha256 in shards:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise ValueError(
                    f"{path} is not the file that the manifest lists; delete it and run epigraph synth again"
                )
    files = {path.relative_to(folder).as_posix(): path for path, _ in shards}
    files |= {"manifest.json": folder / "manifest.json", "README.md": dataset_card(manifest, repo_id).encode()}
    message = f"{manifest['rows']:,} rows by epigraph synth"
    return reaching(repo_id, lambda api: commit(api, repo_id, files, message, private, repo_type="dataset"))


def report(manifest: dict) -> str:
    """What a run made, what it drew again and what it left out, in a few lines."""
    rejected, skipped = manifest["rejected"], manifest["skipped"]
    lines = [f"{manifest['rows']:,} rows in {len(manifest['shards'])} shards"]
    for counts, what in ((rejected, "attempts rejected and drawn again"), (skipped, "samples left out")):
        if counts:
            share = sum(counts.values()) / (manifest["rows"] + sum(counts.values()))
            lines.append(f"{what}: {sum(counts.values()):,} ({100 * share:.2f} %)")
            lines += [f"  {count:,} {reason}" for reason, count in counts.items()]
    unused = manifest.get("inputs", {}).get("words", {}).get("left_out", {})
    lines += [f"words of the list left out: {count:,} {reason}" for reason, count in unused.items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """`epigraph synth` and scripts/synthesize.py."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("epigraph").setLevel(logging.INFO)
    args = parse_recipe(sys.argv[1:] if argv is None else argv, SynthesisArguments)
    if args.out is None and args.preview is None:
        raise RecipeError("name a folder for the shards with --out, or a contact sheet with --preview.")
    if args.push is not None:
        validate_repo_id(args.push)  # now, not after hours of work
    if args.preview is not None:
        from .preview import contact_sheet

        if (
            Path(args.preview).suffix.lower() not in (".png", ".jpg")
            or not Path(args.preview).absolute().parent.is_dir()
        ):
            raise RecipeError(f"preview {args.preview}: name a .png or .jpg file in a folder that exists.")
        contact_sheet(build(args)[0], args.seed, args.count).save(args.preview)
        print(f"{args.preview} shows the samples 0 to {args.count - 1} of seed {args.seed}")
    if args.out is None:
        return
    if args.executor == "none":
        try:
            manifest = write_shards(plan_of(args), args.workers)
        except KeyboardInterrupt:
            sys.exit(f"stopped; whole shards stay in {args.out}, and the same command goes on from there")
    else:
        try:
            from .cluster import run_tasks
        except ModuleNotFoundError as error:
            raise RecipeError(
                f"executor {args.executor} needs the package {error.name}; "
                "pip install 'epigraph[train,cluster]', or leave --executor out."
            ) from None
        manifest = run_tasks(partial(plan_of, args), args.executor, args.tasks, args.workers, **args.executor_options)
    if manifest is None:
        print(f"the tasks were handed to {args.executor}; {args.out}/manifest.json lists the shards when all are done")
        return
    print(f"{args.out}: {report(manifest)}")
    if args.push:
        print(push_shards(args.out, args.push, args.private))


if __name__ == "__main__":
    main()
