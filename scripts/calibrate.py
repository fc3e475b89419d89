"""Fit a model's scores to the truth: the score of a reading becomes the probability that all of it is right.

Writes `score_calibration` into the config.json of the model folder and prints what it changes, by cross-validation.
Use formulas that the model was neither trained nor is reported on.

python scripts/calibrate.py --model checkpoints/comer-hme --data '${EPIGRAPH_DATA}/crohme_ink.parquet' \
    --split test_2013
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

from epigraph.calibration import cross_validated, fit, losses, probabilities
from epigraph.data.readers import load_formulas
from epigraph.evaluation import evaluate_formulas, write_json
from epigraph.reading import checkpoint_folder, load

LEAST = 50  # readings; two numbers cannot be fitted on a handful


def main(args: list[str] | None = None):
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="model folder; its config.json is changed")
    parser.add_argument("--data", required=True, help="formulas: anything that scripts/evaluate.py takes")
    parser.add_argument("--split", help="rows of this split only; not the one that is reported")
    parser.add_argument("--batch_size", type=int, default=8, help="formulas read together (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...; by default CUDA if there")
    arguments = parser.parse_args(args)
    if not arguments.model.is_dir():
        raise ValueError(f"--model {arguments.model}: no such folder; calibration changes a folder's config.json.")
    folder = checkpoint_folder(arguments.model)
    config = folder / "config.json"
    if not os.access(config, os.W_OK):
        raise ValueError(f"{config}: cannot be written; calibration needs a whole model (merge an adapter first).")
    dataset = load_formulas(arguments.data, split=arguments.split)
    model, processor = load(folder, device=arguments.device)
    readings = evaluate_formulas(model, processor, dataset, batch_size=arguments.batch_size, progress=True)["readings"]

    pairs = [
        (reading.n_best[0].log_probability, reading.text.split() == text.split())
        for reading, text in zip(readings, dataset["text"])
        if reading.n_best
    ]
    if len(pairs) < LEAST:
        raise ValueError(f"{arguments.data}: {len(pairs)} readings are too few to fit on; give at least {LEAST}.")
    logs, right = map(np.array, zip(*pairs))
    calibration = {name: round(value, 4) for name, value in sorted(fit(logs, right).items())}
    before, after = probabilities(logs, None), cross_validated(logs, right)

    print(f"{len(pairs)} readings, {right.mean():.2%} right; {len(readings) - len(pairs)} could not be read")
    print(f"{'':28}  mean score  log-loss   Brier     ECE")
    for name, scores in (("the model's own probability", before), ("calibrated, 10 folds", after)):
        loss = losses(scores, right)
        print(f"{name:28}  {scores.mean():10.4f}  {loss['log_loss']:8.4f}  {loss['brier']:6.4f}  {loss['ece']:6.4f}")
    settings = json.loads(config.read_text(encoding="utf-8")) | {"score_calibration": calibration}
    write_json(config, dict(sorted(settings.items())))  # sorted, as transformers writes it
    print(f"{config}: score_calibration is {calibration}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
