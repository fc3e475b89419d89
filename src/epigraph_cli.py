"""The `epigraph` command. It stands outside the package, so that `--help` imports neither torch nor transformers.

`read` and `pool` are defined here; the other commands hand their arguments to the same `main(args)` that the scripts
call.
"""

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="epigraph",
    help="Read handwritten mathematics as LaTeX, and words; train, measure and publish models of text and of images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Search(StrEnum):
    """How CoMER searches."""

    exact = "exact"
    official = "official"


class Direction(StrEnum):
    """In which order it writes: both, left to right, right to left."""

    joint = "joint"
    l2r = "l2r"
    r2l = "r2l"


class Half(StrEnum):
    """Of words that are never trained on."""

    pool = "pool"
    queries = "queries"


@app.command()
def read(
    files: Annotated[list[Path], typer.Argument(help="Images; of formulas also ink as InkML or JSON.")],
    model: Annotated[str | None, typer.Option(help="Folder or Hub id; by default the task's own checkpoint.")] = None,
    task: Annotated[
        str | None, typer.Option(help="maths, ink or word; by default it follows from model and file.")
    ] = None,
    n_best: Annotated[int, typer.Option(min=1, help="Readings to print for each file.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Files that are read together.")] = 8,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; by default the fastest one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per file.")] = False,
    search: Annotated[
        Search | None, typer.Option(help="Of formulas: official is the search of the official code, without grammar.")
    ] = None,
    direction: Annotated[
        Direction | None, typer.Option(help="Of formulas: decode in both directions (joint), or in one.")
    ] = None,
    pool: Annotated[
        str | None, typer.Option(help="Of words: folder or Hub id of a pool of examples (epigraph pool).")
    ] = None,
    k: Annotated[int, typer.Option(min=0, help="Examples for each word.")] = 2,
    gate: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Use examples only where the score without them is lower."),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Mark readings with a lower score: '?' in a first column of its own, \"doubtful\" with --json.",
        ),
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(metavar="OUT.html", help="Also write a page that shows where the model looked at each token."),
    ] = None,
):
    """Print what each file says: name, score and LaTeX or word, separated by tabs.

    The score is the probability that the whole reading is right. With a pool three columns follow: the score and the
    word without examples, and the examples that were used, each with its similarity. A file that cannot be read is
    reported and the others are read.
    """
    from epigraph import read as read_files

    if explain is not None:
        from epigraph.report import read_to_page

        read_files = partial(read_to_page, explain)
    chosen = {"search": search and search.value, "direction": direction and direction.value, "gate": gate}
    chosen |= {"pool": pool, "k": k} if pool is not None else {}
    results = read_files(
        [str(path) for path in files],
        model=model,
        task=task,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        n_best=n_best,
        min_score=min_score,
        progress=len(files) > 1,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    for result in results:
        if as_json:
            print(json.dumps(asdict(result), ensure_ascii=False))
        elif result.error:
            print(result.error, file=sys.stderr)
        else:
            for candidate in result.n_best:
                line = f"{result.name}\t{candidate.score:.3f}\t{candidate.text}"
                if pool is not None:
                    used = ", ".join(f"{example.text} ({example.similarity:.3f})" for example in result.examples)
                    line += f"\t{result.plain_score:.3f}\t{result.plain_text}\t{used}"
                if min_score is not None:
                    line = f"{'?' if candidate.score < min_score else ''}\t{line}"
                print(line)
    if explain is not None:
        print(f"{explain} shows where the model looked", file=sys.stderr)
    raise typer.Exit(code=int(any(result.error for result in results)))


pools = typer.Typer(
    name="pool", help="Make and change pools of examples, which words are read with.", no_args_is_help=True
)
app.add_typer(pools)
PoolFolder = Annotated[Path, typer.Argument(help="The pool's folder.")]
WordModel = Annotated[
    str | None,
    typer.Option("--model", help="Folder or Hub id of the model that is to read with it; by default the shipped one."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; by default the fastest one.")]
Source = Annotated[str, typer.Option(help="Where they come from, to be kept with them.")]


def encoder_of(model: str | None, device: str | None):
    """What makes the keys of a pool."""
    from epigraph.reading import load
    from epigraph.reading_words import encoder

    return encoder(*load(model, "word", device))


@pools.command()
def build(
    pool: PoolFolder,
    data: Annotated[str, typer.Argument(help="Word images: folder with texts, parquet, LMDB, csv, jsonl or tsv.")],
    model: WordModel = None,
    split: Annotated[str | None, typer.Option(help="Only these rows.")] = None,
    source: Annotated[str | None, typer.Option(help="Only these rows.")] = None,
    half: Annotated[
        Half | None,
        typer.Option(help="Only the pool's half of words that are never trained on, or that of the queries."),
    ] = None,
    device: Device = None,
):
    """Make a pool of labelled word images."""
    from epigraph.context_pool import ContextPool

    if (pool / "manifest.json").exists():
        raise ValueError(f"{pool} holds a pool already; add to it, or name another folder.")
    if half is None:
        made = ContextPool.from_folder(data, encoder_of(model, device), split, source)
    else:
        from epigraph.data.words import half_of, load_words

        rows = half_of(load_words(data, split, source), half.value, data)
        made = ContextPool.from_dataset(rows, encoder_of(model, device))
    made.save(pool)
    for refused in made.added.refused:
        print(refused.reason, file=sys.stderr)
    print(made)


@pools.command()
def add(
    pool: PoolFolder,
    image: Annotated[Path, typer.Argument(help="Of one word.")],
    text: Annotated[str, typer.Argument(help="What is written in it.")],
    model: WordModel = None,
    source: Source = "",
    replace: Annotated[bool, typer.Option(help="Correct the text of an image that the pool has.")] = False,
    device: Device = None,
):
    """Add a word image, and print its id."""
    from epigraph.context_pool import ContextPool

    opened = ContextPool.load(pool, encoder_of(model, device))
    added = opened.add([image], [text], source, replace)
    opened.save()
    print("\n".join(added.ids) or f"{image} is in the pool already.")


@pools.command()
def remove(pool: PoolFolder, ids: Annotated[list[str], typer.Argument(help="As list and search print them.")]):
    """Take entries out."""
    from epigraph.context_pool import ContextPool

    opened = ContextPool.load(pool)
    try:
        opened.remove(ids)
    except KeyError as error:
        raise ValueError(f"{pool}: {error.args[0]}.") from None
    opened.save()
    print(opened)


@pools.command()
def undo(pool: PoolFolder):
    """Withdraw the last change; prints the ids that left (-) and came back (+)."""
    from epigraph.context_pool import ContextPool

    opened = ContextPool.load(pool)
    left, back = opened.undo()
    opened.save()
    print("\n".join([f"-{name}" for name in left] + [f"+{name}" for name in back]))


@pools.command("list")
def list_entries(pool: Annotated[str, typer.Argument(help="The pool's folder or Hub id.")]):
    """Print id and text of every entry, separated by a tab."""
    from epigraph.context_pool import ContextPool

    opened = ContextPool.load(pool)
    for name, text in zip(opened.ids, opened.texts):
        print(f"{name}\t{text}")


@pools.command()
def search(
    pool: Annotated[str, typer.Argument(help="The pool's folder or Hub id.")],
    images: Annotated[list[Path], typer.Argument(help="Of words.")],
    model: WordModel = None,
    k: Annotated[int, typer.Option(min=1, help="Entries to print for each.")] = 5,
    device: Device = None,
):
    """Print the entries most like each image: name, similarity, id, source and text, separated by tabs."""
    from epigraph.context_pool import ContextPool

    opened = ContextPool.load(pool, encoder_of(model, device))
    for image, found in zip(images, opened.search(images, k)):
        for example in found:
            print(f"{image}\t{example.similarity:.3f}\t{example.id}\t{example.source}\t{example.text}")


@pools.command()
def reencode(
    pool: PoolFolder,
    model: Annotated[str, typer.Option(help="Folder or Hub id of the model that is to read with the pool.")],
    device: Device = None,
):
    """Make all keys anew, for another model."""
    from epigraph.context_pool import ContextPool

    opened = ContextPool.load(pool).reencode(encoder_of(model, device))
    opened.save()
    print(opened)


@pools.command("push")
def push_pool(
    pool: PoolFolder,
    repo_id: Annotated[str, typer.Argument(help="owner/name of a data set on the Hub.")],
    license: Annotated[str | None, typer.Option(help="Of the images, as the Hub names licences.")] = None,
    private: Annotated[bool, typer.Option(help="Create it as private.")] = False,
):
    """Publish a pool with a card, in one commit."""
    from epigraph.context_pool import ContextPool

    print(ContextPool.load(pool).push_to_hub(repo_id, license, private))


def forward(name: str, module: str, summary: str):
    """Add a command that passes everything after its name, `--help` included, to `module.main`."""

    @app.command(
        name,
        help=summary,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def run(context: typer.Context):
        sys.argv[0] = f"epigraph {name}"  # argparse prints it in its usage line
        import_module(module).main(context.args)


forward("eval", "epigraph.evaluation", "Measure a model on a data set: metrics, and a JSON of results.")
forward("train", "epigraph.pretraining", "Train a model from a recipe.")
forward("finetune", "epigraph.finetuning", "Adapt a model to a writer or to new symbols, with LoRA or as a whole.")
forward("synth", "epigraph.data.synthesis.recipe", "Draw labelled text images: shards, or a contact sheet.")
forward("convert", "epigraph.conversion", "Turn a checkpoint of other code into a model folder, or PixelViT into ViT.")
forward("push", "epigraph.hub", "Push a model, its card and its results to the Hub.")


def main():
    """Entry point: an error of ours is one sentence, not a traceback."""
    try:
        app()
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"epigraph: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"epigraph: the package {error.name} is not installed; pip install 'epigraph[train]' brings it.")
