"""Other recognisers beside ours: the same word images, the same protocol, one run.

python scripts/peers.py --data '${EPIGRAPH_DATA}/words.parquet' --model checkpoints/e2str-small \
    --rapidocr-python PEERS/bin/python --answers runs/peers --output runs/peers.json

`tesseract` is the program of that name, `rapidocr` the Python package (`python -m venv PEERS && PEERS/bin/pip install
rapidocr==3.10.0 onnxruntime`), which reads words with PP-OCRv6 small. One that is not there is left out, and the
results say why. No peer is asked to find words, and none is trained or tuned.

Answers are kept in the folder `--answers`, a file for each recogniser: a run that is stopped goes on where it was, and
a model that is named later is measured beside peers that have answered already. Every recogniser works with one
thread. The CPU seconds of an image hold its share of starting tesseract, once for 50 images; rapidocr and our models
are loaded before the clock runs.
"""

import argparse
import hashlib
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from epigraph.cards import shown, weights_sha256
from epigraph.data.protocols import DEFAULT_PROTOCOL
from epigraph.data.readers import expand_path
from epigraph.data.words import HALVES, half_of, load_words
from epigraph.evaluation import data_sha256, portable, write_json
from epigraph.evaluation_pools import Contents
from epigraph.metrics import averages, word_rows
from epigraph.reading import checkpoint_folder, load, read_all

SETS = ("iiit5k:test", "icdar13:test", "icdar15:train:queries", "sroie:train:queries", "alpr_us:test:queries")
PEERS = ("tesseract", "rapidocr")
CHUNK = 50  # images between two writes of answers


class Missing(Exception):
    """A peer that is not there, and why."""


@dataclass
class WordSet:
    """Images and texts of one source, split and, where one is named, half.

    Attributes:
        name: "icdar15:train:queries", as it was asked for.
        ids, texts, images: of its words, images as they are stored.
    """

    name: str
    source: str
    split: str
    half: str | None
    ids: list[str]
    texts: list[str]
    images: list[bytes]

    @classmethod
    def load(cls, path: str, name: str, limit: int | None) -> "WordSet":
        """The words of a set, with `limit` those with the lowest SHA-1 of their ids."""
        source, split, half, *more = [*name.split(":"), None, None]
        if not split or (half and half not in HALVES) or any(more):
            raise ValueError(f"--sets {name}: a set is SOURCE:SPLIT, or SOURCE:SPLIT:pool or SOURCE:SPLIT:queries.")
        rows = half_of(load_words(path, split, source), half, path)
        if limit is not None:
            names = rows["id"][:]
            order = sorted(range(len(names)), key=lambda place: hashlib.sha1(names[place].encode()).digest())
            rows = rows.select(order[:limit])
        return cls(name, source, split, half, rows["id"][:], rows["text"][:], list(Contents(rows)))


# ------------------------------------------------------------------------------------------------------- recognisers


class Tesseract:
    """The program `tesseract`, told that the image is one word."""

    name = "tesseract"

    def __init__(self):
        if shutil.which("tesseract") is None:
            raise Missing("no program tesseract; Debian's package tesseract-ocr has it")
        version = subprocess.run(["tesseract", "--version"], capture_output=True, text=True, check=True)
        self.identity = {"version": version.stdout.split("\n")[0].split()[-1], "options": "--psm 8"}

    def __call__(self, files: list[Path]) -> tuple[list[str], float]:
        """Texts of image files, and the CPU seconds of all of them."""
        before = _of_children()
        listing = files[0].with_name("files.txt")
        listing.write_text("".join(f"{file}\n" for file in files))
        pages = self._pages(listing)
        if pages is None or len(pages) != len(files):  # it gives up at the first image that it cannot open
            pages = [" ".join(self._pages(file) or ()) for file in files]
        return [" ".join(page.split()) for page in pages], _of_children() - before

    def _pages(self, file: Path) -> list[str] | None:
        done = subprocess.run(
            ["tesseract", str(file), "stdout", "--psm", "8"],
            env=os.environ | {"OMP_THREAD_LIMIT": "1"},
            capture_output=True,
            check=False,
        )
        return None if done.returncode else done.stdout.decode(errors="replace").removesuffix("\f").split("\f")


def _of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class RapidOCR:
    """The package rapidocr, its recogniser only, in an interpreter that has it."""

    name = "rapidocr"

    def __init__(self, python: str):
        script = Path(__file__).with_name("peer_rapidocr.py")
        self.errors = tempfile.TemporaryFile("w+")
        try:
            self.process = subprocess.Popen(
                [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
            )
        except OSError as error:
            raise Missing(f"{python} cannot be run ({error.strerror})") from None
        if not (first := self.process.stdout.readline()):
            raise Missing(f"{python} has no rapidocr that works ({self._last_error()})")
        self.identity = json.loads(first)

    def __call__(self, files: list[Path]) -> tuple[list[str], float]:
        """Texts of image files, and the CPU seconds of all of them."""
        answers = []
        for file in files:
            self.process.stdin.write(json.dumps(str(file)) + "\n")
            self.process.stdin.flush()
            if not (line := self.process.stdout.readline()):
                raise OSError(f"rapidocr ended at {file.name} ({self._last_error()}).")
            answers.append(json.loads(line))
        return [answer["text"] for answer in answers], sum(answer["seconds"] for answer in answers)

    def _last_error(self) -> str:
        self.errors.seek(0)
        return (self.errors.read().strip().splitlines() or ["no reason given"])[-1]


class Ours:
    """A checkpoint of this package that reads words, without examples."""

    def __init__(self, name: str, batch_size: int, num_beams: int | None):
        import torch

        torch.set_num_threads(1)
        folder = checkpoint_folder(name)
        digest = weights_sha256(folder)
        self.name = folder.resolve().name
        self.model, self.processor = load(folder, "word", "cpu")
        self.settings = {} if num_beams is None else {"num_beams": num_beams}
        self.batch_size = batch_size
        self.identity = {"model": portable(str(name)), "weights_sha256": digest, "batch_size": batch_size}
        self.identity |= self.settings

    def __call__(self, files: list[Path]) -> tuple[list[str], float]:
        """Texts of image files, and the CPU seconds of all of them."""
        start = time.process_time()
        contents = [file.read_bytes() for file in files]  # their names do not say what they are
        readings = read_all(
            contents, self.model, self.processor, task="word", batch_size=self.batch_size, **self.settings
        )
        texts = [reading.text for reading in readings]
        return texts, time.process_time() - start


# ------------------------------------------------------------------------------------------------------------ answers


class Answers:
    """What one recogniser has read so far, in a file of JSON lines.

    Args:
        path: the file; its first line says whose answers to what data they are.
        identity: of the recogniser, and of the data.

    Raises:
        ValueError: the file holds answers of another recogniser, or to other data.
    """

    def __init__(self, path: Path, identity: dict):
        self.path, self.found = path, {}
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        if not whole:
            path.write_text(json.dumps(identity) + "\n", encoding="utf-8")
            return
        if (theirs := json.loads(whole[0])) != identity:
            raise ValueError(f"{path} holds answers of {theirs}, not of {identity}; name another --answers folder.")
        if len(whole) < len(lines):  # a run was killed while it wrote
            path.write_text("".join(whole), encoding="utf-8")
        for answer in map(json.loads, whole[1:]):
            self.found[answer["set"], answer["id"]] = answer

    def complete(self, reader, words: WordSet, folder: Path):
        """Have everything read that has no answer yet."""
        absent = [place for place, name in enumerate(words.ids) if (words.name, name) not in self.found]
        bar = tqdm(total=len(absent), desc=f"{reader.name}, {words.name}", unit=" words", disable=None)
        for start in range(0, len(absent), CHUNK):
            places = absent[start : start + CHUNK]
            files = [folder / f"{number}.image" for number in range(len(places))]
            for file, place in zip(files, places):
                file.write_bytes(words.images[place])
            texts, seconds = reader(files)
            answers = [
                {"set": words.name, "id": words.ids[place], "text": text, "seconds": round(seconds / len(places), 6)}
                for place, text in zip(places, texts, strict=True)
            ]
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers))
            self.found |= {(words.name, answer["id"]): answer for answer in answers}
            bar.update(len(places))
        bar.close()

    def of(self, words: WordSet) -> tuple[list[str], float]:
        """Texts in the order of the set, and the mean CPU seconds of an image."""
        answers = [self.found[words.name, name] for name in words.ids]
        return [answer["text"] for answer in answers], sum(answer["seconds"] for answer in answers) / len(answers)


# ------------------------------------------------------------------------------------------------------------ results


def rows_of(reader: str, words: WordSet, answers: Answers) -> list[dict]:
    """One row for each metric of one recogniser on one set."""
    texts, seconds = answers.of(words)
    count = len(texts)
    rows = word_rows(texts, words.texts, [words.source] * count, [words.split] * count, DEFAULT_PROTOCOL)
    timed = {"metric": "cpu_seconds", "value": seconds, "n": count, "source": words.source, "split": words.split}
    extra = {"reader": reader, "half": words.half}
    return [row | extra for row in [*rows, timed | {"protocol": DEFAULT_PROTOCOL}]]


def table(results: dict) -> str:
    """Markdown: accuracy, 1-N.E.D. and CPU seconds of every recogniser on every set."""
    lines = ["| set | words | recogniser | accuracy | 1-N.E.D. | CPU s an image |", "|---|---:|---|---:|---:|---:|"]
    found = {}
    for row in results["rows"]:
        name = ":".join(part for part in (row["source"], row["split"], row["half"]) if part)
        found.setdefault((name, row["reader"]), {})[row["metric"]] = row
    for (name, reader), rows in found.items():
        accuracy, ned = (shown(metric, rows[metric]["value"]) for metric in ("word_accuracy", "ned"))
        count = rows["word_accuracy"]["n"]
        lines.append(f"| {name} | {count} | {reader} | {accuracy} | {ned} | {rows['cpu_seconds']['value']:.4f} |")
    lines.append("")
    for reader, row in results["averages"].items():
        arithmetic, weighted = (shown("word_accuracy", row[kind]) for kind in ("arithmetic", "weighted"))
        lines.append(f"{reader}: mean over {row['sets']} sets {arithmetic}, over all words {weighted}")
    lines += [f"{name} was left out: {reason}" for name, reason in results["skipped"].items()]
    return "\n".join(lines)


def recognisers(arguments: argparse.Namespace) -> tuple[list, dict[str, str]]:
    """Those that are there, ours last, and why the others are not."""
    makers = {"tesseract": Tesseract, "rapidocr": lambda: RapidOCR(arguments.rapidocr_python)}
    found, skipped = [], {}
    for name in arguments.peers:
        try:
            found.append(makers[name]())
        except Missing as reason:
            skipped[name] = str(reason)
            print(f"{name} is left out: {reason}", file=sys.stderr)
    found += [Ours(name, arguments.batch_size, arguments.num_beams) for name in arguments.model]
    if len({reader.name for reader in found}) < len(found):
        raise ValueError(f"--model: two of {arguments.model} have the name of one folder; name one at a time.")
    return found, skipped


def compare(arguments: argparse.Namespace, command: str) -> dict:
    """Have everything read that has no answer yet, and count."""
    sets = [WordSet.load(arguments.data, name, arguments.limit) for name in arguments.sets]
    data = data_sha256(expand_path(arguments.data))
    readers, skipped = recognisers(arguments)
    arguments.answers.mkdir(parents=True, exist_ok=True)
    by_reader = {}
    for reader in readers:
        weights = reader.identity.get("weights_sha256", "")[:8]  # answers of other weights stay beside
        path = arguments.answers / f"{'-'.join(filter(None, (reader.name, weights)))}.jsonl"
        answers = Answers(path, {"reader": reader.name, **reader.identity, "data_sha256": data})
        with tempfile.TemporaryDirectory(prefix="epigraph-peers-") as folder:
            for words in sets:
                answers.complete(reader, words, Path(folder))
        by_reader[reader.name] = answers
    rows = [row for words in sets for name, answers in by_reader.items() for row in rows_of(name, words, answers)]
    accuracies = [row for row in rows if row["metric"] == "word_accuracy"]
    means = {name: averages(row for row in accuracies if row["reader"] == name) for name in by_reader}
    return {
        "command": command,
        "data_sha256": data,
        "limit": arguments.limit,
        "readers": {reader.name: reader.identity for reader in readers},
        "skipped": skipped,
        "rows": rows,
        "averages": {name: found[0] for name, found in means.items() if found},
    }


def main(args: list[str] | None = None):
    """See the module."""
    parser = argparse.ArgumentParser(description="Measure other recognisers beside ours on the same word images.")
    parser.add_argument("--data", required=True, help="words: anything that load_words reads")
    parser.add_argument("--sets", nargs="+", default=SETS, metavar="SOURCE:SPLIT[:HALF]",
                        help="what is measured (default: %(default)s)")  # fmt: skip
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS, help="default: %(default)s")
    parser.add_argument("--rapidocr-python", default=sys.executable, metavar="PYTHON",
                        help="interpreter of an environment with rapidocr; by default this one")  # fmt: skip
    parser.add_argument("--model", nargs="*", default=[], help="checkpoints of this package, by folder or Hub id")
    parser.add_argument("--batch_size", type=int, default=8, help="words that our models read together")
    parser.add_argument("--num_beams", type=int, help="of our models' search; by default what the checkpoint says")
    parser.add_argument("--limit", type=int, help="of each set so many words only: those with the lowest SHA-1 of ids")
    parser.add_argument("--answers", type=Path, default=Path("runs/peers"), help="folder (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = sys.argv[1:] if args is None else args
    arguments = parser.parse_args(args)
    if arguments.limit is not None and arguments.limit < 1:
        raise ValueError(f"--limit must be at least 1, not {arguments.limit}.")
    command = shlex.join(["python", "scripts/peers.py", *(portable(argument) for argument in args)])
    results = compare(arguments, command)
    print(table(results))
    if arguments.output:
        write_json(arguments.output, results)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
