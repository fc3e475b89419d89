"""Fit a model's scores to the truth: the score of a reading becomes the probability that all of it is right.

Writes `score_calibration` into the config.json of the model folder, of models that read words also
`char_score_calibration`, and prints what they change, by cross-validation. Use formulas or words that the model was
neither trained nor is reported on.

python scripts/calibrate.py --model checkpoints/comer-hme --data '${EPIGRAPH_DATA}/crohme_ink.parquet' \
    --split test_2013
python scripts/calibrate.py --model checkpoints/e2str-small --data '${EPIGRAPH_DATA}/words.parquet' --split train \
    --source iiit5k --held_out 0.1

`--held_out` is that of the recipe: what training has kept for measuring.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path

import numpy as np

from epigraph.calibration import cross_validated, fit, losses, outcomes, probabilities
from epigraph.data.readers import load_formulas
from epigraph.data.word_batches import WordSource
from epigraph.data.words import load_words
from epigraph.evaluation import evaluate_formulas, write_json
from epigraph.finetuning_words import characters_of
from epigraph.reading import TASKS_OF, checkpoint_folder, load

LEAST = 50  # readings; two numbers cannot be fitted on a handful


def main(args: list[str] | None = None):
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="model folder; its config.json is changed")
    parser.add_argument("--data", required=True, help="formulas or words: anything that scripts/evaluate.py takes")
    parser.add_argument("--split", help="rows of this split only; not the one that is reported")
    parser.add_argument("--source", help="of words, rows of this source only")
    parser.add_argument("--held_out", type=float, default=0.0, metavar="SHARE",
                        help="of words, those only that a recipe with this held_out does not train on")  # fmt: skip
    parser.add_argument("--batch_size", type=int, default=8, help="inputs read together (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...; by default CUDA if there")
    arguments = parser.parse_args(args)
    if not arguments.model.is_dir():
        raise ValueError(f"--model {arguments.model}: no such folder; calibration changes a folder's config.json.")
    folder = checkpoint_folder(arguments.model)
    config = folder / "config.json"
    if not os.access(config, os.W_OK):
        raise ValueError(f"{config}: cannot be written; calibration needs a whole model (merge an adapter first).")
    model, processor = load(folder, device=arguments.device)
    of_words = "word" in TASKS_OF[model.config.model_type]
    if not of_words and (arguments.source or arguments.held_out):
        raise ValueError("--source and --held_out are for models that read words; leave them out.")
    measured = (words if of_words else formulas)(model, processor, arguments)

    found = {}
    for name, (things, pairs) in measured.items():
        if len(pairs) < LEAST:
            raise ValueError(f"{arguments.data}: {len(pairs)} {things} are too few to fit on; give at least {LEAST}.")
        found[name] = fitted(things, *map(np.array, zip(*pairs)))
    settings = json.loads(config.read_text(encoding="utf-8")) | found
    write_json(config, dict(sorted(settings.items())))  # sorted, as transformers writes it
    for name, calibration in found.items():
        print(f"{config}: {name} is {calibration}")


def formulas(model, processor, arguments: argparse.Namespace) -> dict[str, tuple[str, list]]:
    """Log-probability of each reading, and whether it is right."""
    dataset = load_formulas(arguments.data, split=arguments.split)
    readings = evaluate_formulas(model, processor, dataset, batch_size=arguments.batch_size, progress=True)["readings"]
    pairs = [
        (reading.n_best[0].log_probability, reading.text.split() == text.split())
        for reading, text in zip(readings, dataset["text"])
        if reading.n_best
    ]
    print(f"{len(readings) - len(pairs)} of {len(readings)} formulas could not be read")
    return {"score_calibration": ("readings", pairs)}


def words(model, processor, arguments: argparse.Namespace) -> dict[str, tuple[str, list]]:
    """Log-probability of each reading and of each character, and whether it is right, without regard to case."""
    from epigraph.evaluation_words import evaluate_words

    if arguments.held_out:
        source = WordSource(arguments.data, arguments.split, arguments.source, held_out=arguments.held_out)
        _, dataset = source.load(characters_of(processor))
    else:
        dataset = load_words(arguments.data, arguments.split, arguments.source)
    model.config.score_calibration = model.config.char_score_calibration = None  # the scores are then the model's own
    readings = evaluate_words(model, processor, dataset, batch_size=arguments.batch_size, progress=True)["readings"]
    print(f"{sum(reading.error is not None for reading in readings)} of {len(readings)} words could not be read")
    of_words, of_characters = (
        [(math.log(score), right) for score, right in pairs if score > 0]  # 0 is a reading that was cut off
        for pairs in outcomes(readings, dataset["text"])
    )
    return {
        "score_calibration": ("readings", of_words),
        "char_score_calibration": ("characters", of_characters),
    }


def fitted(things: str, logs: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """The calibration; prints what it changes."""
    calibration = {name: round(value, 4) for name, value in sorted(fit(logs, right).items())}
    before, after = probabilities(logs, None), cross_validated(logs, right)
    print(f"{len(logs)} {things}, {right.mean():.2%} right")
    print(f"{'':28}  mean score  log-loss   Brier     ECE")
    for name, scores in (("the model's own probability", before), ("calibrated, 10 folds", after)):
        loss = losses(scores, right)
        print(f"{name:28}  {scores.mean():10.4f}  {loss['log_loss']:8.4f}  {loss['brier']:6.4f}  {loss['ece']:6.4f}")
    return calibration


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
