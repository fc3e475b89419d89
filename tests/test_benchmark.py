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
