"""Scores that mean something: from the log-probability of a reading to the probability that it is right.

A network's probabilities say too little or too much; two numbers, fitted on formulas that the model was not trained
on, mend that (Platt, 1999). They stand in `config.score_calibration` and so travel with the weights.
"""

import math


def probability(log_probability: float, calibration: dict[str, float] | None) -> float:
    """The probability that a reading is right, in 0..1.

    Args:
        log_probability: natural logarithm of what the model itself gives to the whole reading.
        calibration: `slope` and `intercept` of the logistic function of it; None for the model's own probability.
    """
    if calibration is None:
        return math.exp(min(log_probability, 0.0))
    return _logistic(calibration["intercept"] + calibration["slope"] * log_probability)


def _logistic(value: float) -> float:
    """1 / (1 + exp(-value)), which does not overflow."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))


__all__ = ["probability"]
