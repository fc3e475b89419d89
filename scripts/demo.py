"""Read the handwritten formulas of examples/ and write demo.html: drawing, formula, truth and attention.

python scripts/demo.py
python scripts/demo.py --model runs/mine --examples my/ink --output mine.html
"""

import argparse
import sys
import time
from pathlib import Path

from epigraph.data.ink import read_ink
from epigraph.metrics import symlg_errors
from epigraph.reading import checkpoint_folder, load, read
from epigraph.report import Example, new_page, page

ROOT = Path(__file__).resolve().parents[1]


def read_example(path: Path, model, processor, n_best: int) -> Example:
    """Read one file of ink and compare with the truth that it states."""
    started = time.perf_counter()
    reading = read(path, model, processor=processor, n_best=n_best, explain=True)
    seconds = time.perf_counter() - started
    try:
        truth = read_ink(path).label
    except ValueError:  # the reading says so, too
        truth = None
    right = None if truth is None else not reading.error and symlg_errors(reading.text, truth) == 0
    return Example(reading, path.stem, seconds, truth, right)


def print_row(example: Example, width: int):
    """One line for the reading, and the truth below where it is written differently."""
    reading, right = example.reading, {True: "yes", False: "NO", None: "?"}[example.right]
    score = "" if reading.score is None else f"{reading.score:.3f}"
    text = reading.error or reading.text
    print(f"{example.title:{width}}  {right:5}  {score:>6}  {example.seconds:5.2f} s  {text}", flush=True)
    if example.truth not in (None, reading.text):
        print(f"{'truth':>{width + 24}}  {example.truth}", flush=True)


def main(args: list[str] | None = None):
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder or Hub id (default: the checkpoint that comes with epigraph)")
    parser.add_argument("--examples", type=Path, default=ROOT / "examples" / "handwritten-math", help="folder of ink")
    parser.add_argument("--output", type=Path, default=Path("demo.html"), help="the page (default: %(default)s)")
    parser.add_argument("--n-best", type=int, default=3, help="readings of each file to show (default: %(default)s)")
    arguments = parser.parse_args(args)

    files = sorted(path for path in arguments.examples.glob("*") if path.suffix in (".json", ".inkml"))
    if not files:
        parser.error(f"{arguments.examples} holds no ink (.json, .inkml)")
    width, verdicts = max(len(path.stem) for path in files), []

    def examples():
        print(f"{'file':{width}}  right   score     time  LaTeX")
        for path in files:
            example = read_example(path, model, processor, arguments.n_best)
            print_row(example, width)
            if example.right is not None:
                verdicts.append(example.right)
            yield example

    with new_page(arguments.output) as file:
        model, processor = load(arguments.model)
        file.write(page(examples(), checkpoint_folder(arguments.model).name))
    print(f"\n{sum(verdicts)} of {len(verdicts)} right; {arguments.output} shows pictures, formulas and attention")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
