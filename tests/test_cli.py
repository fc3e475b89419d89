"""The `epigraph` command."""

import json

import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

import epigraph
from epigraph_cli import app, main


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


@pytest.mark.parametrize("arguments", [["--help"], ["read", "--help"]])
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
