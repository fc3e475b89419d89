"""scripts/benchmark_reading.py: it measures a small model, and finds what a batch would change."""

import json
from pathlib import Path

import numpy as np
import pytest
from fake_samples import png
from word_drawings import WORDS, draw

datasets = pytest.importorskip("datasets")
pytest.importorskip("faiss", reason="faiss-cpu is not installed")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import benchmark_reading

    monkeypatch.setattr(benchmark_reading, "BATCHES", (1, 2))
    return benchmark_reading


def test_rows_of_a_small_model(script, word_reader, tmp_path, monkeypatch, capsys):
    rows = {"image": [png(np.asarray(draw(word))) for word in WORDS], "text": WORDS, "id": list("abcd")}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "words.parquet")
    monkeypatch.setattr(script, "ProcessPoolExecutor", Here)
    output = tmp_path / "rows.json"
    given = ["--model", word_reader, "--data", tmp_path / "words.parquet", "--limit", 3, "--beams", 1, "--rounds", 1]
    script.main([str(argument) for argument in (*given, "--json", output)])
    found = json.loads(output.read_text())["rows"]
    assert [(row["batch_size"], row["words"], row["differ"]) for row in found] == [(1, 3, 0), (2, 3, 0)]
    assert all(row["words_per_cpu_second"] > 0 and row["score_difference"] < 1e-5 for row in found)
    assert all(row["peak_mib"] >= row["loaded_mib"] > 50 for row in found), "of this process, on Linux"
    assert "| 1 | 2 | float32 | 0 |" in capsys.readouterr().out


class Here:
    """Runs it in this process: starting others takes seconds."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        self.found = function(*arguments)
        return self

    def result(self):
        return self.found


def test_differences_are_found(script):
    kind = {"num_beams": 1, "dtype": "float32", "examples": 0}
    rows = [
        {**kind, "readings": [("a", 0.5), ("b", 0.7), ("", None)]},
        {**kind, "readings": [("a", 0.4), ("c", 0.1), ("", None)]},
        {**kind, "examples": 2, "readings": [("z", 0.9)]},
    ]
    script.compare(rows)
    assert [row["differ"] for row in rows] == [0, 1, 0]
    assert [row["score_difference"] for row in rows] == [0, pytest.approx(0.1), 0]
