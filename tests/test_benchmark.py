"""The benchmark script: its rows and that both sides of a ratio do the same work."""

import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(SCRIPTS))
    try:
        import benchmark
    finally:
        sys.path.remove(str(SCRIPTS))
    return benchmark


@pytest.fixture(scope="module")
def small(benchmark):
    return benchmark.comer_model(
        "cpu", hidden_size=32, num_attention_heads=4, intermediate_size=32, growth_rate=4, dense_layers=[2, 2, 2]
    )  # fmt: skip


@pytest.mark.parametrize("batch, beams, length", [(1, 1, 8), (2, 3, 7)])
def test_baseline_and_search_agree(benchmark, small, batch, beams, length):
    images = benchmark.comer_images(batch, "cpu")
    read = benchmark.comer_cached(small, images, beams, length)
    assert read == benchmark.comer_uncached(small, images, beams, length)
    assert all(len(tokens) == length - 1 for tokens in read)


def test_plain_encoder_is_the_encoder(benchmark, small):
    images = benchmark.comer_images(1, "cpu")
    with torch.no_grad():
        expected = small.encoder(images).last_hidden_state
        for fold in (False, True):
            plain = benchmark.comer_encode_plainly(small.encoder, images, fold).last_hidden_state
            torch.testing.assert_close(plain, expected, atol=2e-5, rtol=1e-4)


@pytest.fixture
def pixelvit(benchmark, monkeypatch):
    """The rows of PixelViT at a size that takes no time."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import benchmark_pixelvit

    monkeypatch.setattr(benchmark_pixelvit, "ROUNDS", 1)
    monkeypatch.setattr(benchmark_pixelvit, "SIDES", (5,))
    monkeypatch.setattr(benchmark_pixelvit, "BATCH", {"cpu": 2})
    monkeypatch.setattr(benchmark_pixelvit, "MATMUL_SIZES", {"cpu": (16, 32)})
    return benchmark_pixelvit


def test_pixelvit_rows(benchmark, pixelvit):
    rows = {row.name: row for row in benchmark.pixelvit_rows(lambda name: True, "cpu")}
    assert all(row.value > 0 for row in rows.values())
    for kind in ("tiny", "stock"):
        fp32 = [rows[f"pixelvit/{kind}/n25/fp32/{name}"].value for name in ("sdpa/train", "matmul", "peak_fraction")]
        assert fp32[0] / fp32[1] == pytest.approx(fp32[2])
        for attention in ("sdpa", "eager", "blocked"):
            assert {f"pixelvit/{kind}/n25/bf16/{attention}/{run}" for run in ("forward", "train")} <= rows.keys()
    for name in ("attention", "attention_train"):
        blocked, sdpa = (rows[f"pixelvit/tiny/n25/bf16/{name}/{way}"].value for way in ("blocked", "sdpa"))
        assert blocked / sdpa == pytest.approx(rows[f"pixelvit/tiny/n25/bf16/{name}_speedup"].value)
    assert len(rows) == 2 * (3 + 6) + 6
    only = list(benchmark.pixelvit_rows(lambda name: name.endswith("stock/n25/bf16/blocked/train"), "cpu"))
    assert [row.name for row in only] == ["pixelvit/stock/n25/bf16/blocked/train"]


def test_pixelvit_measures_the_stock_model_of_its_sizes(pixelvit):
    ours, flop = pixelvit.tiny("tiny", 5)
    stock, same = pixelvit.tiny("stock", 5)
    assert flop == same == 12 * (24 * 25 * 192**2 + 4 * 25**2 * 192)
    count = [sum(x.numel() for x in model.parameters()) for model in (ours, stock)]
    assert count[0] == count[1]


@pytest.mark.parametrize("kind", ["tiny", "stock"])
@pytest.mark.parametrize("attention", ["sdpa", "blocked"])
def test_pixelvit_runs_what_it_names(pixelvit, kind, attention, monkeypatch):
    from epigraph.models import attention_blocked

    calls = []
    function = attention_blocked._BlockedAttention.apply
    monkeypatch.setattr(attention_blocked._BlockedAttention, "apply", lambda *x: calls.append(x) or function(*x))
    subject = pixelvit.Subject(kind, 5, "bf16", attention, "cpu")
    subject.step()
    assert len(calls) == (12 if attention == "blocked" else 0)
    assert all(x.dtype == torch.bfloat16 for call in calls for x in call[:3])


def test_script(run_python, tmp_path):
    script = str(SCRIPTS / "benchmark.py")
    done = run_python([script, "comer", "--only", "comer/b1/beam1/len20/cached/*", "--json", str(tmp_path / "b.json")])
    report = json.loads((tmp_path / "b.json").read_text())
    assert report.keys() == {"machine", "matmul_gflop_per_cpu_second", "versions", "threads", "rows"}
    (row,) = report["rows"]
    assert row["name"] == "comer/b1/beam1/len20/cached/cpu_seconds" and row["value"] > 0 and row["unit"] == "CPU s"
    assert row["name"] in done.stdout and report["matmul_gflop_per_cpu_second"] > 0
    failed = run_python([script, "comer", "--only", "nothing"], ok=False)
    assert failed.returncode == 2 and "no row of comer matches 'nothing'" in failed.stderr
