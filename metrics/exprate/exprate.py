"""``evaluate.load("metrics/exprate")``: expression rates of formula recognition, computed by ``epigraph.metrics``."""

import datasets
import evaluate

from epigraph.metrics import formula_metrics

_DESCRIPTION = """
Share of formulas that were read right: exactly (`exprate`), with at most 1, 2 or 3 token edits (`exprate_1`,
`exprate_2`, `exprate_3`), and with the right symbols at the right places whatever the LaTeX spelling (`exprate_symlg`,
CROHME's symbolic evaluation).
"""

_INPUTS = """
Args:
    predictions: list of strings, space-separated LaTeX tokens.
    references: list of strings, the captions in the same order.
Returns:
    a dict of five rates in 0..1.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class ExpRate(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references):
        return formula_metrics(predictions, references)
