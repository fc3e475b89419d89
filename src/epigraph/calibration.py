"""Scores that mean something: from the log-probability of a reading to the probability that it is right.

A network's probabilities say too little or too much. A straight line through their log-odds mends that (Platt,
"Probabilistic outputs for support vector machines", 1999): its slope and intercept are fitted on formulas or words
that the model was not trained on, stand in `config.score_calibration` (of the characters of words in
`config.char_score_calibration`), and so travel with the weights.
"""

import math
from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein

from .data.protocols import DEFAULT_PROTOCOL, comparable_answer, comparable_label

BINS = 10
THRESHOLDS = (0.5, 0.8, 0.9)
_CERTAIN = -1e-12  # a log-probability of 0, which rounding gives, would have infinite log-odds


def probabilities(log_probabilities: Sequence[float], calibration: dict[str, float] | None) -> np.ndarray:
    """The probability that a reading is right, in 0..1, for each of the readings.

    Args:
        log_probabilities: natural logarithms of what the model itself gives to the whole readings, at most 0.
        calibration: what `fit` gave; None for the model's own probabilities.
    """
    line = calibration or {"slope": 1.0, "intercept": 0.0}
    return _logistic(line["slope"] * _log_odds(log_probabilities) + line["intercept"])


def fit(log_probabilities: Sequence[float], right: Sequence[bool]) -> dict[str, float]:
    """The `slope` and `intercept` of the log-odds that make `right` most likely.

    As in Platt's paper, the targets stand a little off 0 and 1 (by one more example of each kind), so that readings
    that can be told apart without error give no infinite slope.

    Raises:
        ValueError: nothing is right, nothing is wrong, or what the model finds likely is not right more often.
    """
    right = np.asarray(right, dtype=bool)
    if right.all() or not right.any():
        raise ValueError(
            f"{right.sum()} of {len(right)} readings are right; a calibration needs right ones and wrong ones, "
            "so give it more data."
        )
    inputs = np.stack([_log_odds(log_probabilities), np.ones(len(right))], axis=1)
    targets = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))
    line = np.array([0.0, math.log(right.sum() / (~right).sum())])
    for _ in range(100):  # Newton's method; the likelihood is concave, and the steps are halved where they overshoot
        found = _logistic(inputs @ line)
        curvature = (inputs * (found * (1 - found))[:, None]).T @ inputs
        step = np.linalg.lstsq(curvature, inputs.T @ (targets - found), rcond=None)[0]
        before = _likelihood(inputs @ line, targets)
        while _likelihood(inputs @ (line + step), targets) < before and np.abs(step).max() > 1e-10:
            step /= 2
        line = line + step
        if np.abs(step).max() < 1e-9:
            break
    slope, intercept = line.tolist()
    if not slope > 0:
        raise ValueError("what the model finds likely is not right more often than the rest, so no score can tell.")
    return {"slope": slope, "intercept": intercept}


def cross_validated(log_probabilities: Sequence[float], right: Sequence[bool], folds: int = 10) -> np.ndarray:
    """The probability of each reading by a calibration that was fitted on the other folds.

    Raises:
        ValueError: as `fit`.
    """
    log_probabilities, right = np.asarray(log_probabilities), np.asarray(right, dtype=bool)
    fold_of = np.random.default_rng(0).permutation(len(right)) % folds
    found = np.empty(len(right))
    for fold in np.unique(fold_of):
        held_out = fold_of == fold
        calibration = fit(log_probabilities[~held_out], right[~held_out])
        found[held_out] = probabilities(log_probabilities[held_out], calibration)
    return found


def characters_right(text: str, label: str, protocol: str = DEFAULT_PROTOCOL) -> list[bool | None]:
    """Which characters of a reading are right: those that the fewest edits to its label leave where they are.

    Args:
        text: what was read.
        label: what there was to read, in the form that the protocol compares.
        protocol: of words; one that compares character by character ("36", "62", "94", "standard").

    Returns:
        For each character of `text` whether it is right; None where the protocol does not compare it.
    """
    forms = [comparable_answer(character, protocol) for character in text]
    compared = [place for place, form in enumerate(forms) if form]
    right = [None if not form else True for form in forms]
    for edit in Levenshtein.editops([forms[place] for place in compared], list(label)):
        if edit.tag != "insert":
            right[compared[edit.src_pos]] = False
    return right


def outcomes(readings: Sequence, labels: Sequence[str], protocol: str = DEFAULT_PROTOCOL) -> tuple[list, list]:
    """What happened to words: pairs of score and whether it was right, of the readings and of their characters.

    Left out are labels that the protocol leaves out, readings without a score, and characters where the scores are
    of pieces of words.
    """
    words, characters = [], []
    for reading, text in zip(readings, labels):
        label, _ = comparable_label(text, protocol)
        if label is None or reading.score is None:
            continue
        words.append((reading.score, comparable_answer(reading.text, protocol) == label))
        if len(reading.char_scores) == len(reading.text):
            found = zip(reading.char_scores, characters_right(reading.text, label, protocol))
            characters += [(score, right) for score, right in found if right is not None]
    return words, characters


def reliability(scores: Sequence[float], right: Sequence[bool], metric: str = "exprate") -> dict:
    """How far scores say how often readings are right.

    Args:
        scores: probabilities in 0..1, at least one.
        right: whether the reading is.
        metric: what the share of right ones is called.

    Returns:
        `n`; `log_loss` (in nats), `brier` (mean squared error of the score) and `ece` (expected calibration error:
        mean distance of score and share right over the bins), all better when lower; `auroc`, the probability that a
        right reading has a higher score than a wrong one, None where there are only right or only wrong ones; `bins`
        of equal width without the empty ones: `bin`, `n`, mean `score`, share `right`; and `at_least`: for each
        threshold of the `score`, the `coverage` (share of readings that reach it), their `n` and the `metric` (None
        where there are none).
    """
    scores, right = np.asarray(scores, dtype=float), np.asarray(right, dtype=bool)
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    bins = [
        {
            "bin": f"{index / BINS:.1f}-{(index + 1) / BINS:.1f}",
            "n": int((place == index).sum()),
            "score": scores[place == index].mean().item(),
            "right": right[place == index].mean().item(),
        }
        for index in np.unique(place).tolist()
    ]
    chosen = {threshold: right[scores >= threshold] for threshold in THRESHOLDS}
    return {
        "n": len(scores),
        **losses(scores, right),
        "auroc": _auroc(scores, right),
        "bins": bins,
        "at_least": [
            {
                "score": threshold,
                "coverage": len(kept) / len(scores),
                "n": len(kept),
                metric: kept.mean().item() if len(kept) else None,
            }
            for threshold, kept in chosen.items()
        ],
    }


def losses(scores: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """`log_loss`, `brier` and `ece` of `reliability`."""
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    gaps = np.bincount(place, weights=scores - right, minlength=BINS)  # n of the bin times its distance
    given = np.where(right, scores, 1 - scores).clip(1e-12)
    return {
        "log_loss": -np.log(given).mean().item(),
        "brier": ((scores - right) ** 2).mean().item(),
        "ece": np.abs(gaps).sum().item() / len(scores),
    }


def _auroc(scores: np.ndarray, right: np.ndarray) -> float | None:
    """Ties count half."""
    if right.all() or not right.any():
        return None
    below = np.searchsorted(np.sort(scores[~right]), scores[right], "left")
    up_to = np.searchsorted(np.sort(scores[~right]), scores[right], "right")
    return ((below + up_to) / 2).mean().item() / (~right).sum().item()


def _log_odds(log_probabilities) -> np.ndarray:
    logs = np.minimum(np.asarray(log_probabilities, dtype=float), _CERTAIN)
    return logs - np.log(-np.expm1(logs))


def _logistic(values: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(values))  # never overflows
    return np.where(values >= 0, 1, small) / (1 + small)


def _likelihood(values: np.ndarray, targets: np.ndarray) -> float:
    return -(np.logaddexp(0, values) - targets * values).sum().item()


__all__ = ["characters_right", "cross_validated", "fit", "losses", "outcomes", "probabilities", "reliability"]
