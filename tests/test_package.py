"""The promises of the package as a whole: what it imports, what it depends on, that its documents are true."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers.dynamic_module_utils import get_imports, get_relative_imports

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "epigraph"
MODEL_FILES = sorted((PACKAGE / "models").glob("*.py"))
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "src").glob("*.py"), *(ROOT / "scripts").glob("*.py")])
# tokenizers is no choice: without it there is no transformers.
ALLOWED_IN_MODELS = {
    "tokenizers",
    "torch",
    "transformers",
    "safetensors",
    "PIL",
    "numpy",
    "huggingface_hub",
    *sys.stdlib_module_names,
}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def tracked_files():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.name)
def test_models_import_only_what_remote_code_may(path):
    """One stray import here would break `trust_remote_code=True` for every model."""
    assert set(get_imports(path)) <= ALLOWED_IN_MODELS
    for name in get_relative_imports(path):
        assert (path.parent / f"{name}.py").is_file(), f"{path.name} imports .{name}, which is not beside it"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):  # the Hub's loader copies neither `from ..x` nor `from . import x`
            assert node.level <= 1 and node.module, f"{path.name}:{node.lineno}"
            if not node.level and node.module.startswith("huggingface_hub"):
                assert node.module == "huggingface_hub.dataclasses"


def test_models_import_nothing_of_ours():
    for path in MODEL_FILES:
        assert "import epigraph" not in path.read_text() and "from epigraph" not in path.read_text(), path.name


def test_importing_epigraph_loads_no_optional_package(run_python):
    heavy = ["datasets", "peft", "gradio", "faiss", "cv2", "evaluate", "torchvision", "timm"]
    done = run_python(f"import sys, epigraph; print([name for name in {heavy} if name in sys.modules])")
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_public_names_are_documented():
    import epigraph

    for name in epigraph.__all__:
        assert getattr(epigraph, name).__doc__, name
    bare = []
    for path in SOURCES:
        module = ast.parse(path.read_text())
        public = [node for node in module.body if getattr(node, "name", "_")[0] != "_" and node.name != "main"]
        documented = (ast.ClassDef, ast.FunctionDef)
        if path.parent.name != "scripts":  # what scripts define is for themselves
            bare += [f"{path.name}:{n.name}" for n in public if isinstance(n, documented) and not ast.get_docstring(n)]
        if module.body and path.name != "__init__.py" and not ast.get_docstring(module):
            bare.append(path.name)
    assert not bare


def test_files_stay_readable():
    for path in [*SOURCES, *(ROOT / "tests").glob("*.py")]:
        assert len(path.read_text().splitlines()) <= 650, f"{path.name} is long enough to be two files"


def test_no_dependency_pulls_torchvision_or_timm():
    """With a CPU build of torch they break transformers, so nothing we ask for may bring them, directly or not."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    pending = [Requirement(text) for text in sum(extras.values(), PYPROJECT["project"]["dependencies"])]
    seen = set()
    while pending:
        wanted = pending.pop()
        name, key = canonicalize_name(wanted.name), (wanted.name, frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        assert name not in {"torchvision", "timm"}
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        for requirement in map(Requirement, required):
            environments = [{"extra": extra} for extra in wanted.extras] or [{"extra": ""}]
            if not requirement.marker or any(requirement.marker.evaluate(env) for env in environments):
                pending.append(requirement)
    assert len(seen) > 20


def test_documents_name_things_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        text = path.read_text()
        for command in re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE):
            assert command in targets, f"{path.name} names `make {command}`"
        for name in re.findall(r"\b((?:scripts|recipes|docs|model_cards|tests|checkpoints)/[\w./-]*\w)", text):
            assert (ROOT / name).exists(), f"{path.name} names {name}"
        for name in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (path.parent / name).exists(), f"{path.name} links to {name}"


def test_readme_states_the_versions_of_pyproject():
    project = PYPROJECT["project"]
    bounds = {"Python": project["requires-python"]}
    for text in sum(project["optional-dependencies"].values(), project["dependencies"]):
        requirement = Requirement(text)
        if requirement.specifier:
            bounds[requirement.name] = text.removeprefix(requirement.name)
    section = (ROOT / "README.md").read_text().split("## Versions")[1].split("\n## ")[0]
    stated = dict(re.findall(r"^\| ([\w-]+) \| `([^`]+)` \|", section, re.MULTILINE))
    for name, bound in stated.items():
        assert bounds[name] == bound, f"README says {name} {bound}"
    assert {"Python", "torch", "transformers", "huggingface-hub"} <= set(stated)


def test_no_tracked_file_names_a_place_on_one_machine():
    places = re.compile("|".join(["/" + name + "/" for name in ("home", "root", "Users", "work", "opt", "tmp")]))
    for path in tracked_files():
        if path.suffix in {".md", ".py", ".toml", ".yaml", ".yml", ".json", ".cff", ""}:
            for number, line in enumerate(path.read_text(errors="ignore").splitlines(), 1):
                found = places.search(line)
                preceded = line[found.start() - 1 : found.start()] if found else ""
                assert not found or preceded.isalnum() or preceded == ".", f"{path.relative_to(ROOT)}:{number} {line}"


def plan(folder, *arguments, virtual_env=None):
    """The commands that make would run in a folder without any environment."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    environment = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "MAKEFLAGS", "TORCH")}
    environment |= {"VIRTUAL_ENV": str(virtual_env)} if virtual_env else {}
    command = ["make", "--no-print-directory", "--dry-run", *arguments]  # the tests themselves run under make
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def test_make_installs_torch_first_and_only_what_a_target_needs(tmp_path):
    commands = plan(tmp_path, "demo", "TORCH=torch==9.9")
    assert (
        commands.index("python3 -m venv") < commands.index('pip install "torch==9.9"') < commands.index('-e ".[html]"')
    )
    assert commands.index("several GB") < commands.index('pip install "torch==9.9"'), "the size is said before"
    assert commands.strip().endswith("scripts/demo.py")
    assert '-e ".[html,train,cluster,evaluate,demo,dev]"' in plan(tmp_path, "test")


def test_make_uses_an_active_environment_that_has_torch(tmp_path):
    python = tmp_path / "active" / "bin" / "python"
    python.parent.mkdir(parents=True)
    for has_torch in (True, False):
        python.write_text(f"#!/bin/sh\nexit {0 if has_torch else 1}\n")
        python.chmod(0o755)
        uses = f"{python} scripts/demo.py" in plan(tmp_path, "demo", virtual_env=python.parent.parent)
        assert uses == has_torch


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, source]
    subprocess.run(command, check=True)
    names = zipfile.ZipFile(next(tmp_path.glob("epigraph-*.whl"))).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"epigraph", "epigraph_cli.py"}
    expected = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    assert expected <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_knows_every_key_of_our_configurations(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    kinds = {"cpu": "NO", "single_gpu": "NO", "multi_gpu": "MULTI_GPU"}
    assert config.distributed_type == kinds[path.stem] and config.use_cpu == (path.stem == "cpu")
    assert config.mixed_precision is None, "the recipe says the precision"
