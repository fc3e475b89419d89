"""Metrics as plain functions over lists of strings; rates are in 0..1. Formulas first, then words.

Formulas are space-separated LaTeX tokens, as ``tokenizer.decode`` gives them for a token dictionary. Two protocols:

* tokens: edit distance between token lists, the protocol of HME100K and of most training logs. ``exprate`` is exact
  match, ``exprate_1``, ``_2``, ``_3`` allow up to that many edits;
* symLG: CROHME's symbolic evaluation, on which the CROHME tables of published papers stand. It compares layout graphs
  (:func:`epigraph.data.latex.layout_graph`), so spellings of one formula are equal.

Words are compared by the protocols of :mod:`epigraph.data.protocols`, which say what counts as the same text and which
labels are left out.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from rapidfuzz.distance import Levenshtein

from .data.latex import LatexError, layout_graph
from .data.protocols import DEFAULT_PROTOCOL, check_protocol, comparable_answer, comparable_label

LENGTH_BINS = (0, 1, 6, 11, 21, 31, 51)  # first length of each bin, in tokens
DEPTH_BINS = (0, 1, 2, 3, 4)  # first depth of each bin, in nested brace pairs
WORD_LENGTH_BINS = (0, 1, 4, 7, 11, 16, 26)  # first length of each bin, in characters


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
    return {
        "length": _by_bin(pairs, lengths, LENGTH_BINS, formula_metrics),
        "depth": _by_bin(pairs, depths, DEPTH_BINS, formula_metrics),
    }


def word_accuracy(predictions: Sequence[str], references: Sequence[str], protocol: str = DEFAULT_PROTOCOL) -> float:
    """Share of words that are right under a protocol, of those labels that it does not leave out.

    Raises:
        ValueError: no such protocol, the lists differ in length or are empty, or the protocol leaves out every label.
    """
    pairs = _compared(predictions, references, protocol)
    return sum(prediction == reference for prediction, reference in pairs) / len(pairs)


def ned(predictions: Sequence[str], references: Sequence[str], protocol: str = DEFAULT_PROTOCOL) -> float:
    """1-N.E.D. of ICDAR 2019: the mean over words of 1 - edits / length of the longer text. Higher is better.

    Raises:
        ValueError: as in :func:`word_accuracy`.
    """
    pairs = _compared(predictions, references, protocol)
    return 1 - sum(Levenshtein.normalized_distance(*pair) for pair in pairs) / len(pairs)


def cer(predictions: Sequence[str], references: Sequence[str], protocol: str = "standard") -> float:
    """Character error rate: edits of a whole set per character of its labels; it may be above 1.

    By default texts stand as they are, case and spaces included, as in the handwriting literature.

    Raises:
        ValueError: as in :func:`word_accuracy`.
    """
    pairs = _compared(predictions, references, protocol)
    return sum(Levenshtein.distance(*pair) for pair in pairs) / max(1, sum(len(text) for _, text in pairs))


WORD_METRICS = {"word_accuracy": word_accuracy, "ned": ned, "cer": cer}


def word_metrics(
    predictions: Sequence[str], references: Sequence[str], protocol: str = DEFAULT_PROTOCOL
) -> dict[str, float]:
    """``word_accuracy``, ``ned`` and ``cer`` of a whole set under one protocol.

    Raises:
        ValueError: as in :func:`word_accuracy`.
    """
    return {metric: measure(predictions, references, protocol) for metric, measure in WORD_METRICS.items()}


def word_breakdowns(
    predictions: Sequence[str], references: Sequence[str], sources: Sequence[str], protocol: str = DEFAULT_PROTOCOL
) -> dict[str, list[dict]]:
    """The metrics of :func:`word_metrics` by length of the label and by source, over all splits.

    Lengths are counted in characters of the label as the protocol compares it. Bins without a word that counts are
    left out.

    Returns:
        ``{"length": [{"bin": "1-3", "n": 12, "word_accuracy": 0.5, ...}, ...], "source": [{"source": "svt", ...}]}``

    Raises:
        ValueError: no such protocol, the lists differ in length or are empty.
    """
    groups, pairs, lengths = {}, [], []
    for pair, source in zip(_pairs(predictions, references), sources):
        label, _ = comparable_label(pair[1], protocol)
        if label is not None:
            pairs.append(pair)
            lengths.append(len(label))
            groups.setdefault(source, []).append(pair)

    def measure(predictions, references):
        return word_metrics(predictions, references, protocol)

    by_source = [{"source": source, "n": len(own), **measure(*zip(*own))} for source, own in groups.items()]
    return {"length": _by_bin(pairs, lengths, WORD_LENGTH_BINS, measure), "source": by_source}


def left_out(references: Sequence[str], protocol: str = DEFAULT_PROTOCOL) -> dict[str, int]:
    """How many labels a protocol leaves out, by reason; empty where it counts all of them.

    Raises:
        ValueError: no such protocol.
    """
    check_protocol(protocol)
    reasons = (comparable_label(reference, protocol)[1] for reference in references)
    return dict(Counter(reason for reason in reasons if reason))


def word_rows(
    predictions: Sequence[str],
    references: Sequence[str],
    sources: Sequence[str],
    splits: Sequence[str],
    protocol: str = DEFAULT_PROTOCOL,
) -> list[dict]:
    """Results of every source and split, as they stand in a results file: one row per metric, naming its protocol.

    Args:
        predictions, references, sources, splits: one value per word, in the same order.

    Returns:
        ``{"metric", "value", "n", "source", "split", "protocol"}``, where ``n`` counts the words that the protocol
        compares; with ``left_out``, the number of others by reason, where it leaves some out; of ``cer`` also with
        ``characters``, those of the labels. A group of which nothing is left has ``n`` 0 and ``value`` None.

    Raises:
        ValueError: no such protocol, the lists differ in length or are empty.
    """
    pairs = _pairs(predictions, references)
    if not len(sources) == len(splits) == len(pairs):
        raise ValueError(f"{len(pairs)} words, but {len(sources)} sources and {len(splits)} splits: pass one per word")
    groups = {}
    for source, split, pair in zip(sources, splits, pairs):
        groups.setdefault((source, split), []).append(pair)
    rows = []
    for (source, split), group in groups.items():
        dropped = left_out([reference for _, reference in group], protocol)
        count = len(group) - sum(dropped.values())
        measured = word_metrics(*zip(*group), protocol) if count else dict.fromkeys(WORD_METRICS)
        characters = sum(len(comparable_label(reference, protocol)[0] or "") for _, reference in group)
        for metric, value in measured.items():
            row = {"metric": metric, "value": value, "n": count, "source": source, "split": split}
            row |= {"protocol": protocol, **({"left_out": dropped} if dropped else {})}
            rows.append(row | ({"characters": characters} if metric == "cer" else {}))
    return rows


def averages(rows: Iterable[dict]) -> list[dict]:
    """Averages over sets of what :func:`word_rows` gives, one of each metric and protocol.

    Returns:
        ``{"metric", "protocol", "sets", "n", "arithmetic", "weighted"}``: ``arithmetic`` is the plain mean of the sets
        (most tables of papers), ``weighted`` that of all words together (PARSeq's "combined"; of ``cer`` by
        characters). Sets without a word that counts enter neither.
    """
    groups = {}
    for row in rows:
        if row["n"]:
            groups.setdefault((row["metric"], row["protocol"]), []).append(row)
    return [
        {
            "metric": metric,
            "protocol": protocol,
            "sets": len(group),
            "n": sum(row["n"] for row in group),
            "arithmetic": sum(row["value"] for row in group) / len(group),
            "weighted": _weighted(group),
        }
        for (metric, protocol), group in groups.items()
    ]


def _weighted(rows: list[dict]) -> float:
    weights = [row.get("characters", row["n"]) for row in rows]
    return sum(row["value"] * weight for row, weight in zip(rows, weights)) / max(1, sum(weights))


def _compared(predictions: Sequence[str], references: Sequence[str], protocol: str) -> list[tuple[str, str]]:
    """Answers and labels in the protocol's form, of the labels that it keeps."""
    pairs = [
        (comparable_answer(prediction, protocol), label)
        for prediction, reference in _pairs(predictions, references)
        if (label := comparable_label(reference, protocol)[0]) is not None
    ]
    if not pairs:
        raise ValueError(f"protocol '{protocol}' leaves out all of the {len(references)} labels: nothing to measure")
    return pairs


def _by_bin(pairs: list[tuple[str, str]], values: list[int], starts: tuple[int, ...], measure: Callable) -> list[dict]:
    rows = []
    for start, stop in zip(starts, (*starts[1:], None)):
        inside = [pair for pair, value in zip(pairs, values) if value >= start and (stop is None or value < stop)]
        if inside:
            name = f"{start}+" if stop is None else str(start) if stop == start + 1 else f"{start}-{stop - 1}"
            rows.append({"bin": name, "n": len(inside), **measure(*zip(*inside))})
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
