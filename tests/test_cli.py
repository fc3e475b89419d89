"""The `epigraph` command."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

import epigraph
from epigraph_cli import app, main

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def files(tmp_path):
    """Two drawings and a damaged file between them."""
    paths = []
    for index in range(2):
        image = Image.new("L", (64, 40), "white")
        ImageDraw.Draw(image).line([(8, 8 + 9 * index), (30, 32), (56, 6)], fill=0, width=3)
        paths.append(tmp_path / f"formula {index}.png")
        image.save(paths[-1])
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(paths[0].read_bytes()[:60])
    return [str(paths[0]), str(damaged), str(paths[1])]


def read(*arguments):
    return CliRunner().invoke(app, ["read", *map(str, arguments)])


def test_read_prints_what_the_function_returns_and_reports_bad_files(files, tiny_comer):
    done = read(*files, "--model", tiny_comer)
    expected = epigraph.read([files[0], files[2]], model=tiny_comer)
    assert done.stdout.splitlines() == [f"{r.name}\t{r.score:.3f}\t{r.text}" for r in expected]
    assert len(done.stderr.strip().splitlines()) == 1 and files[1] in done.stderr
    assert done.exit_code == 1

    fine = read(files[0], "--model", tiny_comer)
    assert fine.exit_code == 0 and fine.stdout.splitlines() == done.stdout.splitlines()[:1]


def test_read_prints_json_and_passes_its_options_on(files, tiny_comer):
    done = read(*files, "--model", tiny_comer, "--json", "--n-best", 2, "--direction", "l2r", "--batch-size", 1)
    readings = [json.loads(line) for line in done.stdout.splitlines()]
    assert [reading["name"] for reading in readings] == files
    assert readings[0]["error"] is None and files[1] in readings[1]["error"]
    assert len(readings[0]["n_best"]) == 2 and readings[0]["n_best"][0]["reverse_score"] is None


def test_doubtful_readings_are_marked_in_text_and_json(files, tiny_comer):
    unmarked = read(files[0], "--model", tiny_comer, "--n-best", 2).stdout.splitlines()
    every = read(files[0], "--model", tiny_comer, "--n-best", 2, "--min-score", 1)
    assert every.exit_code == 0 and every.stdout.splitlines() == [f"?\t{line}" for line in unmarked]
    none = read(files[0], "--model", tiny_comer, "--n-best", 2, "--min-score", 0)
    assert none.stdout.splitlines() == [f"\t{line}" for line in unmarked], "the columns stay where they are"
    for limit, doubtful in ((1, True), (0, False)):
        done = read(files[0], "--model", tiny_comer, "--json", "--min-score", limit)
        assert json.loads(done.stdout)["doubtful"] is doubtful
    assert read(files[0], "--model", tiny_comer, "--min-score", 90).exit_code == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "nowhere"], "nowhere"),
        (["--task", "poetry"], "poetry"),
        (["--dtype", "int4"], "int4"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_read_refuses_what_it_cannot_do(files, tiny_comer, arguments, message):
    done = read(files[0], "--model", tiny_comer, *arguments)
    assert done.exit_code == 1 and isinstance(done.exception, ValueError) and message in str(done.exception)


@pytest.mark.parametrize("arguments", [["--help"], ["read", "--help"], ["pool", "build", "--help"]])
def test_cli_help_imports_neither_torch_nor_transformers(run_python, arguments):
    code = (
        "import sys, epigraph_cli\n"
        f"sys.argv = ['epigraph', *{arguments}]\n"
        "try:\n    epigraph_cli.main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'torch', 'transformers', 'epigraph', 'numpy'} & set(sys.modules), 'heavy import'\n"
    )
    assert "Usage" in run_python(code).stdout


@pytest.mark.parametrize("command", ["eval", "train", "convert", "push"])
def test_cli_passes_help_through(monkeypatch, command):
    monkeypatch.setattr("sys.argv", ["epigraph"])
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0 and f"usage: epigraph {command}" in done.stdout


def test_cli_reports_an_error_in_one_sentence(monkeypatch, tmp_path):
    missing = str(tmp_path / "nothing")
    monkeypatch.setattr("sys.argv", ["epigraph", "push", missing, "owner/name", "--dry-run"])
    with pytest.raises(SystemExit) as end:
        main()
    assert str(end.value).startswith("epigraph: ") and missing in str(end.value) and "\n" not in str(end.value)


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        ("pretrain.py", ["--recipe", "gone.yaml"], "gone.yaml: cannot be read"),
        ("pretrain.py", ["--recipe", "typo.yaml"], "typo.yaml: unknown key learning_speed"),
        (
            "pretrain.py",
            ["--recipe", "unset.yaml"],
            "${UNSET_FOLDER}/ink.parquet: the environment variable UNSET_FOLDER is not set",
        ),
        ("push_to_hub.py", ["gone", "owner/name", "--dry-run"], "gone is not a model folder"),
    ],
)
def test_scripts_report_an_error_in_one_sentence(run_python, tmp_path, script, arguments, message):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "typo.yaml").write_text("{output_dir: run, train_data: ink.parquet, learning_speed: 3}")
    tiny = "{model_type: comer, hidden_size: 16, num_attention_heads: 2, growth_rate: 4, dense_layers: [1, 1, 1]}"
    (folder / "unset.yaml").write_text(
        f"output_dir: run\ntrain_data: '${{UNSET_FOLDER}}/ink.parquet'\nmodel: {tiny}\n"
    )
    done = run_python([str(ROOT / "scripts" / script), *arguments], ok=False, cwd=folder)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: {message}")


def test_python_in_the_documents_runs(run_python, tiny_comer, tmp_path):
    """README and card, word for word; a small model and a wheel's font stand in for what is not there."""
    folder = tmp_path / "work"
    shutil.copytree(tiny_comer, folder / "checkpoints" / "comer-hme")
    image = Image.new("L", (64, 40), "white")
    ImageDraw.Draw(image).line([(8, 8), (30, 32), (56, 6)], fill=0, width=3)
    image.save(folder / "formula.png")
    strokes = "<trace>0 0, 10 10, 20 0</trace><trace>30 5, 40 5</trace>"
    for name in ("formula", "notes"):
        (folder / f"{name}.inkml").write_text(f'<ink xmlns="http://www.w3.org/2003/InkML">{strokes}</ink>')
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "model_cards/comer-hme.md")]
    blocks = [
        block for text in texts for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]
    assert len(blocks) == 7
    # Pillow's own font stands in for the system's, which a machine of tests may lack.
    code = "\n".join(blocks).replace("epigraph/comer-hme", "checkpoints/comer-hme")
    assert code.count("find_fonts()") == 1
    code = code.replace("find_fonts()", "find_fonts(['built-in'])")
    code += "\nprint(model.config.model_type, *pairs[41].images.shape, len(pairs[41].char_quads))"
    lines = run_python(code, cwd=folder).stdout.splitlines()
    assert len(lines) == 6 and lines[-1] == "comer 2 32 128 3 2", lines
    assert lines[4] == str([lines[2].rsplit(" ", 1)[0]]), "both ways of the card read the same"
