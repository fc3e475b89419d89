"""The `epigraph` command. It stands outside the package, so that `--help` imports neither torch nor transformers.

`read` is defined here; the other commands hand their arguments to the same `main(args)` that the scripts call.
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
    help="Read handwritten mathematics as LaTeX; train, measure and publish models of text and of images.",
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


@app.command()
def read(
    files: Annotated[list[Path], typer.Argument(help="Images, or ink as InkML or JSON.")],
    model: Annotated[str | None, typer.Option(help="Folder or Hub id; by default the task's own checkpoint.")] = None,
    task: Annotated[str | None, typer.Option(help="maths or ink; by default it follows from each file.")] = None,
    n_best: Annotated[int, typer.Option(min=1, help="Readings to print for each file.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Files that are read together.")] = 8,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; by default the fastest one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per file.")] = False,
    search: Annotated[
        Search, typer.Option(help="official: the search of the official code, without grammar.")
    ] = Search.exact,
    direction: Annotated[Direction, typer.Option(help="Decode in both directions, or in one.")] = Direction.joint,
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
    """Print what each file says: name, score and LaTeX, separated by tabs.

    The score is the probability that the whole reading is right. A file that cannot be read is reported and the others
    are read.
    """
    from epigraph import read as read_files

    if explain is not None:
        from epigraph.report import read_to_page

        read_files = partial(read_to_page, explain)
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
        search=search.value,
        direction=direction.value,
    )
    for result in results:
        if as_json:
            print(json.dumps(asdict(result), ensure_ascii=False))
        elif result.error:
            print(result.error, file=sys.stderr)
        else:
            for candidate in result.n_best:
                line = f"{result.name}\t{candidate.score:.3f}\t{candidate.text}"
                if min_score is not None:
                    line = f"{'?' if candidate.score < min_score else ''}\t{line}"
                print(line)
    if explain is not None:
        print(f"{explain} shows where the model looked", file=sys.stderr)
    raise typer.Exit(code=int(any(result.error for result in results)))


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
