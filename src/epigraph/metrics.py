"""Metrics as plain functions over lists of strings; rates are in 0..1.

Formulas are space-separated LaTeX tokens, as ``tokenizer.decode`` gives them for a token dictionary. Two protocols:

* tokens: edit distance between token lists, the protocol of HME100K and of most training logs. ``exprate`` is exact
  match, ``exprate_1``, ``_2``, ``_3`` allow up to that many edits;
* symLG: CROHME's symbolic evaluation, on which the CROHME tables of published papers stand. It compares layout graphs
  (:func:`epigraph.data.latex.layout_graph`), so spellings of one formula are equal.
"""

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from .data.latex import LatexError, layout_graph

LENGTH_BINS = (0, 1, 6, 11, 21, 31, 51)  # first length of each bin, in tokens
DEPTH_BINS = (0, 1, 2, 3, 4)  # first depth of each bin, in nested brace pairs


def token_errors(prediction: str, reference: str) -> int:
    """Insertions, deletions and substitutions of tokens that turn the prediction into the reference."""
    return Levenshtein.distance(prediction.split(), reference.split())


def symlg_errors(prediction: str, reference: str) -> int | None:
    """Wrong node and edge labels of the prediction's layout graph; None for a prediction that is not a formula.

    A reference that is no well-formed formula has no graph: its exact tokens are then the only right answer.
    An exact match therefore always has 0 errors. Raw LaTeX is compared as well as space-separated tokens.
    """
    if prediction.split() == reference.split():
        return 0
    try:
        expected = layout_graph(reference)
        return layout_graph(prediction).errors(expected)
    except LatexError:
        return None


def exprate(predictions: Sequence[str], references: Sequence[str], max_errors: int = 0) -> float:
    """Share of formulas with at most ``max_errors`` token errors.

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    pairs = _pairs(predictions, references)
    return sum(token_errors(*pair) <= max_errors for pair in pairs) / len(pairs)


def token_error_rate(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Token errors of a whole set, per token of its references: above 1 where more is wrong than there was to read.

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    pairs = _pairs(predictions, references)
    return sum(token_errors(*pair) for pair in pairs) / max(1, sum(len(text.split()) for _, text in pairs))


def exprate_symlg(predictions: Sequence[str], references: Sequence[str], max_errors: int = 0) -> float:
    """Share of formulas with at most ``max_errors`` label errors under symLG (``ExpRate`` and ``<= k`` of CROHME).

    A prediction that is not a formula is wrong whatever ``max_errors`` allows.

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    pairs = _pairs(predictions, references)
    errors = [symlg_errors(*pair) for pair in pairs]
    return sum(count is not None and count <= max_errors for count in errors) / len(pairs)


def formula_metrics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """``exprate``, ``exprate_1``, ``exprate_2``, ``exprate_3`` and ``exprate_symlg`` of a whole set.

    Args:
        predictions: one string of space-separated tokens per formula; an empty string is a wrong answer, not an error.
        references: captions in the same order.

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    errors = [token_errors(*pair) for pair in _pairs(predictions, references)]
    within = {k: sum(count <= k for count in errors) / len(errors) for k in range(4)}
    return {
        "exprate": within[0],
        "exprate_1": within[1],
        "exprate_2": within[2],
        "exprate_3": within[3],
        "exprate_symlg": exprate_symlg(predictions, references),
    }


def formula_breakdowns(predictions: Sequence[str], references: Sequence[str]) -> dict[str, list[dict]]:
    """The metrics of :func:`formula_metrics` by length and by nesting depth of the reference.

    Length is counted in tokens, depth in nested brace pairs (``x ^ { 2 }`` has depth 1). Bins without a formula are
    left out.

    Returns:
        ``{"length": [{"bin": "1-5", "n": 12, "exprate": 0.5, ...}, ...], "depth": [{"bin": "0", ...}, ...]}``

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    pairs = _pairs(predictions, references)
    lengths = [len(reference.split()) for _, reference in pairs]
    depths = [_brace_depth(reference) for _, reference in pairs]
    return {"length": _by_bin(pairs, lengths, LENGTH_BINS), "depth": _by_bin(pairs, depths, DEPTH_BINS)}


def _by_bin(pairs: list[tuple[str, str]], values: list[int], starts: tuple[int, ...]) -> list[dict]:
    rows = []
    for start, stop in zip(starts, (*starts[1:], None)):
        inside = [pair for pair, value in zip(pairs, values) if value >= start and (stop is None or value < stop)]
        if inside:
            name = f"{start}+" if stop is None else str(start) if stop == start + 1 else f"{start}-{stop - 1}"
            rows.append({"bin": name, "n": len(inside), **formula_metrics(*zip(*inside))})
    return rows


def _brace_depth(caption: str) -> int:
    depth = deepest = 0
    for token in caption.split():
        depth += (token == "{") - (token == "}")
        deepest = max(deepest, depth)
    return deepest


def _pairs(predictions: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    if isinstance(predictions, str) or isinstance(references, str):
        raise ValueError(
            "predictions and references are lists of strings, one per example; wrap a single one in a list"
        )
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions for {len(references)} references: pass one prediction per reference"
        )
    if not len(references):
        raise ValueError("predictions and references are empty: there is nothing to measure")
    return list(zip(predictions, references))
