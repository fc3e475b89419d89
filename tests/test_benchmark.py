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


# --------------------------------------------------------------------------------------------------------------- E2STR


@pytest.fixture
def e2str(benchmark, monkeypatch):
    """What measures E2STR, of fewer queries."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import benchmark_e2str

    monkeypatch.setattr(benchmark_e2str, "QUERIES", 3)
    monkeypatch.setattr(benchmark_e2str, "OFFICIAL_QUERIES", 2)
    monkeypatch.setattr(benchmark_e2str, "ROUNDS", 1)
    return benchmark_e2str


@pytest.fixture
def tiny_e2str():
    from epigraph.models.configuration_e2str import E2STRConfig

    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32}
    return E2STRConfig(vision_config=vision, text_config=text, resampler_config={"num_hidden_layers": 1})


def test_e2str_rows(benchmark, e2str, tiny_e2str, monkeypatch):
    found = list(e2str.e2str_rows(lambda name: True, "cpu", tiny_e2str, new_tokens=7))
    rows = {name: value for name, value, _ in found}
    prefix = "e2str/b3/k2/beam3"
    cached, official = rows[f"{prefix}/cached/cpu_seconds"], rows[f"{prefix}/official/cpu_seconds"]
    assert rows[f"{prefix}/ratio"] == pytest.approx(official / cached)
    for way, stages in (
        ("cached", ("open", "encode", "context", "decode")),
        ("official", ("open", "key", "plain_encode", "plain_decode", "encode", "decode")),
    ):
        parts = [rows[f"{prefix}/{way}/{stage}/cpu_seconds"] for stage in stages]
        assert sum(parts) == pytest.approx(rows[f"{prefix}/{way}/cpu_seconds"]) and min(parts) > 0
    assert rows[f"{prefix}/score_difference"] < 1e-4
    assert rows[f"{prefix}/ratio_without_plain"] < rows[f"{prefix}/ratio"] > rows[f"{prefix}/ratio_cold"]
    assert {
        f"{prefix}/bf16/ratio",
        "e2str/b1/k2/beam3/cached/ratio",
        "e2str/b1/k2/beam3/cached/cpu_seconds",
    } <= rows.keys()
    assert len(rows) == len(found)
    model = e2str.e2str_model("cpu", tiny_e2str)
    monkeypatch.setattr(e2str, "e2str_model", lambda device, config: model)
    (only,) = benchmark.METHODS["e2str"](lambda name: name == f"{prefix}/cached/cpu_seconds", "cpu")
    assert only.name == f"{prefix}/cached/cpu_seconds" and only.unit == "CPU s" and only.value > 0


def test_e2str_official_loop_makes_the_passes_that_are_said(e2str, tiny_e2str, tmp_path):
    model = e2str.e2str_model("cpu", tiny_e2str)
    task, passes, projected = e2str.e2str_task(tmp_path, tiny_e2str, 3), [], []
    model.model.vision_model.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    for layer in model.model.text_model.layers:
        layer.cross_attention.attention.k_proj.register_forward_hook(
            lambda _, inputs, __: projected.append(tuple(inputs[0].shape[:2]))
        )
    known = e2str.pool_latents(model, task, e2str.Clock("cpu"))
    assert passes == [6]
    ours = e2str.read_cached(model, task, known, e2str.Clock("cpu"), 5)
    assert passes == [6, 3]
    # Of each layer once for the examples, and once for the queries.
    assert sorted(projected) == 2 * [(3, 64)] + 2 * [(6, 64)]
    passes.clear(), projected.clear()
    plain, read = e2str.read_officially(model, task, 1, e2str.Clock("cpu"), 5)
    assert passes == [1, 3, 9]
    assert projected == 2 * 5 * [(3, 64)] + 2 * 5 * [(3, 3 * 64)]
    assert torch.equal(read.ids[0], ours.ids[1]) and not torch.equal(read.ids, plain.ids)
    torch.testing.assert_close(read.scores[0], ours.scores[1], atol=1e-5, rtol=1e-5)


def test_e2str_different_readings_are_an_error(e2str, tiny_e2str, tmp_path):
    measured = e2str.Measured(e2str.e2str_model("cpu", tiny_e2str), tmp_path, new_tokens=5)
    measured.cached[1].ids[1, 3] += 1
    with pytest.raises(SystemExit, match="query 1 is read differently from token 3 on"):
        assert measured.official
    closed = measured.model
    for name, weight in closed.named_parameters():
        if name.endswith("_gate"):
            torch.nn.init.zeros_(weight)
    with pytest.raises(SystemExit, match="do not depend on images"):
        assert e2str.Measured(closed, tmp_path, new_tokens=5).official
