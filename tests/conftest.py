"""What every test shares: skips with a reason, a Hub in the process, subprocesses, one thread per process."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

# Set before anything imports torch, so that subprocesses and xdist workers do not fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from minihub import serve

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"data": "EPIGRAPH_DATA", "goldens": "EPIGRAPH_GOLDENS"}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("browser"):
            # A page of a busy machine may lose an answer; a test that passes the second time is counted as a rerun.
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=["TimeoutError"]))
    for marker, variable in FOLDERS.items():
        value = os.environ.get(variable)
        if value and not Path(value).is_dir():
            raise pytest.UsageError(f"{variable}={value} is not a folder; unset it or point it at one")
        if not value:
            skip = pytest.mark.skip(reason=f"{variable} is not set")
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(skip)


def pytest_terminal_summary(terminalreporter):
    reasons = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    terminalreporter.section("skipped tests by reason")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:5d}  {reason}")
    terminalreporter.write_line(f"{reasons.total():5d}  in all")


@pytest.fixture(scope="session")
def data_dir():
    """The folder of shared data sets; a test that asks for it is marked `data`."""
    return Path(os.environ["EPIGRAPH_DATA"])


@pytest.fixture(scope="session")
def goldens_dir():
    """The folder of recorded reference tensors; a test that asks for it is marked `goldens`."""
    return Path(os.environ["EPIGRAPH_GOLDENS"])


@pytest.fixture(scope="session")
def tiny_comer(tmp_path_factory):
    """Folder of a CoMER with random weights and its processor, small enough for any test; damage only copies."""
    import torch

    from epigraph.models.configuration_comer import CoMERConfig
    from epigraph.models.modeling_comer import CoMERForConditionalGeneration
    from epigraph.models.processing import comer_processor

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16}
    config = CoMERConfig(**sizes, growth_rate=4, dense_layers=(1, 1, 1), coverage_channels=4)
    folder = tmp_path_factory.mktemp("models") / "tiny-hme"
    CoMERForConditionalGeneration(config).save_pretrained(folder)
    comer_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reader(tmp_path_factory):
    """Folder of a small CoMER that has learnt the four drawings of `drawings.py` by heart, and reads them right."""
    import torch
    from drawings import TEXTS

    from epigraph.data.ink import render
    from epigraph.models.configuration_comer import CoMERConfig
    from epigraph.models.generation_comer import grammar_from_vocabulary
    from epigraph.models.modeling_comer import CoMERForConditionalGeneration
    from epigraph.models.processing import comer_processor

    torch.manual_seed(0)
    processor = comer_processor(scale=0.6)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32}
    sizes |= {"growth_rate": 4, "dense_layers": (1, 1, 1), "coverage_channels": 4}
    grammar = grammar_from_vocabulary(processor.tokenizer.get_vocab())
    model = CoMERForConditionalGeneration(CoMERConfig(**sizes, dropout=0.0, encoder_dropout=0.0, grammar=grammar))
    batch = processor(images=[render(strokes) for strokes in TEXTS.values()], text=list(TEXTS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("models") / "reader-hme"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def word_reader(tmp_path_factory):
    """Folder of a small E2STR that has learnt the words of `word_drawings.py` by heart, and to learn from examples."""
    import torch
    from word_drawings import prompts

    from epigraph.models.configuration_e2str import E2STRConfig
    from epigraph.models.modeling_e2str import E2STRForTextRecognition
    from epigraph.models.processing_e2str import e2str_processor

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2}
    resampler = {"num_hidden_layers": 1, "num_latents": 8, "num_attention_heads": 2, "head_dim": 16}
    text = {"num_hidden_layers": 2, "ffn_dim": 64, "max_position_embeddings": 256, "dropout": 0.0, **sizes}
    config = E2STRConfig(
        vision_config={"num_hidden_layers": 1, "intermediate_size": 64, "patch_size": 8, **sizes},
        resampler_config=resampler,
        text_config=text,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
    )
    model, processor = E2STRForTextRecognition(config), e2str_processor()
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):  # they open slowly
            torch.nn.init.ones_(parameter)
    batch = processor(*zip(*prompts()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    folder = tmp_path_factory.mktemp("models") / "reader-words"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def hub():
    """A Hub of its own for one test: `.url`, `.repos`, `.requests`."""
    with serve() as server:
        yield server


@pytest.fixture
def hub_env(hub, tmp_path):
    """Environment variables that send huggingface_hub to the test Hub.

    They are read when huggingface_hub is imported, so they act on subprocesses (`run_python`), not on the test itself.
    """
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_TOKEN": "test-token",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "0",
    }


@pytest.fixture
def run_python(tmp_path):
    """Call `run_python(code_or_argv, env={}, ok=True)`: a Python subprocess in an empty folder.

    With `ok` a failing subprocess fails the test and shows its output. `without=["epigraph"]` hides modules from it.
    """

    def run(code, env=None, ok=True, without=(), cwd=None, timeout=300):
        command = [sys.executable, *code] if isinstance(code, list) else [sys.executable, "-c", code]
        if without:
            blocked = f"import sys\nfor name in {list(without)!r}: sys.modules[name] = None\n"
            command = [sys.executable, "-c", blocked + code]
        workdir = cwd or tmp_path / "work"
        Path(workdir).mkdir(exist_ok=True)
        done = subprocess.run(
            command, env={**os.environ, **(env or {})}, cwd=workdir, capture_output=True, text=True, timeout=timeout
        )
        if ok and done.returncode:
            pytest.fail(f"subprocess exited with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; closed after the module, as playwright keeps an event loop running meanwhile."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed")
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()
