"""Publishing: a model folder, its card and its results become one commit on the Hub.

An adapter is pushed without its base model, which its card and its adapter_config.json name by repository.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, HfApi
from safetensors import SafetensorError, safe_open
from transformers import AutoImageProcessor, AutoProcessor

from . import models
from .adapters import ADAPTER_CONFIG, ADAPTER_RESULTS, base_of, is_adapter
from .cards import adapter_card, block_files, other_files, render_card, results_files, weights_files
from .reading import DEFAULT_CHECKPOINTS, HUB_ORGANISATION, default_checkpoint, load
from .training_curve import draw_training_curve

CODE_REPO = f"{HUB_ORGANISATION}/epigraph-code"
PUSHED = ["*.json", "*.safetensors", "LICENSE*", "training_curve.*"]


def entry_of(model_type: str, model_dir: str | Path) -> tuple:
    """The entry of `MODELS` for a model type; ValueError naming the folder where there is none."""
    for entry in models.MODELS:
        if entry[0].model_type == model_type:
            return entry
    known = ", ".join(entry[0].model_type for entry in models.MODELS)
    raise ValueError(f"{model_dir}/config.json has the model type {model_type!r}; epigraph publishes {known}")


def processor_file(processor: type | None) -> str:
    """Where a model's processor keeps its settings; a model without text, and so without one, has those of images."""
    return "processor_config.json" if processor else "preprocessor_config.json"


def check_model(model_dir: str | Path) -> dict:
    """Check that a folder loads completely and return its config.json; ValueError saying what is wrong with it."""
    model_dir = Path(model_dir)
    try:
        config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{model_dir} is not a model folder: its config.json cannot be read ({error})") from None
    config_class, classes, _, processor = entry_of(config.get("model_type"), model_dir)
    settings = processor_file(processor)
    if not (model_dir / settings).is_file():
        raise ValueError(f"{model_dir} has no {settings}; save the processor beside the model")
    name = (config.get("architectures") or [None])[0]
    model_class = next((cls for cls in classes.values() if cls.__name__ == name), None)
    if model_class is None:
        raise ValueError(
            f"{model_dir}/config.json names the architecture {name!r}; save the model with save_pretrained"
        )
    try:
        with torch.device("meta"):
            model_class(config_class.from_dict(config))
        (AutoProcessor if processor else AutoImageProcessor).from_pretrained(model_dir)
    except Exception as error:  # whatever the config or the processor raises, the folder is what is wrong
        raise ValueError(f"{model_dir} does not load: {error}") from error
    for path in weights_files(model_dir):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}); save the model again") from None
    # Names in a file may differ from the model's; transformers knows which ones go together.
    _, report = model_class.from_pretrained(
        model_dir, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
    )
    missing = sorted(report["missing_keys"])
    wrong = sorted({*report["unexpected_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if missing or wrong:
        raise ValueError(
            f"the weights in {model_dir} do not fit its config: "
            f"{len(missing)} missing {missing[:3]}, {len(wrong)} unknown or of another shape {wrong[:3]}"
        )
    return config


def with_auto_map(model_dir: Path, config: dict, code_repo: str) -> dict[str, bytes]:
    """The two JSON files that `trust_remote_code=True` reads, with Auto class -> `code_repo--module.Class` added."""
    config_class, classes, image_processor, processor = entry_of(config["model_type"], model_dir)

    def located(**classes):
        return {auto: f"{code_repo}--{cls.__module__.split('.')[-1]}.{cls.__name__}" for auto, cls in classes.items()}

    # transformers looks for the processors beside their own settings before it looks into config.json.
    settings = json.loads((model_dir / processor_file(processor)).read_text(encoding="utf-8"))
    of_images = settings["image_processor"] if processor else settings
    of_images["auto_map"] = located(AutoImageProcessor=image_processor)
    if processor:
        settings["auto_map"] = located(AutoProcessor=processor)
    config = {**config, "auto_map": located(AutoConfig=config_class, **classes)}
    files = {"config.json": config, processor_file(processor): settings}
    return {name: (json.dumps(content, indent=2, sort_keys=True) + "\n").encode() for name, content in files.items()}


def commit(
    api: HfApi, repo_id: str, files: dict, message: str, private: bool = False, repo_type: str = "model"
) -> str:
    """Create the repository if needed and commit {path in the repository: Path or bytes} at once; the commit's URL."""
    api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type)
    operations = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in files.items()
    ]
    return api.create_commit(repo_id, operations, commit_message=message, repo_type=repo_type).commit_url


def push_code(repo_id: str = CODE_REPO) -> str:
    """Push the flat `models/` folder, which is the code `trust_remote_code=True` runs; the commit's URL."""
    folder = Path(models.__file__).parent
    readme = (
        "---\nlicense: apache-2.0\ntags:\n- epigraph\n---\n# Code of the epigraph models\n\n"
        "Weight repositories point here in `auto_map` for `from_pretrained(..., trust_remote_code=True)`\n"
        "without the package. `pip install epigraph` and `import epigraph` run the same files.\n"
    )
    files = {path.name: path for path in sorted(folder.glob("*.py"))} | {"README.md": readme.encode()}
    return commit(HfApi(), repo_id, files, f"epigraph {version('epigraph')}")


def push(
    model_dir: str | Path,
    repo_id: str,
    card: str | Path | None = None,
    results: list[str | Path] | None = None,
    code_repo: str = CODE_REPO,
    private: bool = False,
    dry_run: bool = False,
    with_code: bool = False,
) -> str | None:
    """Publish a model folder as one commit: weights, config with `auto_map`, processor, results and rendered card.

    Everything is checked before anything is uploaded: the folder loads and its weights fit, the card is complete, the
    results were measured on these weights, `code_repo` exists. The training curve is drawn into the folder if training
    left a metrics.jsonl there or beside it.

    Args:
        model_dir: what `save_pretrained` wrote, processor (or image processor) included.
        repo_id: `owner/name`; created if it does not exist.
        card: the prose; `model_cards/<name of model_dir>.md` if None.
        results: files that `scripts/evaluate.py` wrote; `results_files(<name of model_dir>)` if None.
        code_repo: repository of the code, which `push_code` fills.
        private: create the repository as private.
        dry_run: write `model_dir/README.md`, print what would be pushed, and contact no Hub.
        with_code: call `push_code(code_repo)` before, once everything has been checked.

    Returns the commit's URL, None for a dry run. Raises ValueError with one sentence that says what is wrong, or
    ConnectionError where the Hub refuses or cannot be reached; nothing of the model has been committed then.
    """
    model_dir = Path(model_dir)
    name = model_dir.resolve().name
    config = check_model(model_dir)
    results = [Path(path) for path in results or results_files(name)]
    log = next(
        (path for path in (model_dir / "metrics.jsonl", model_dir.parent / "metrics.jsonl") if path.is_file()), None
    )
    if log and not list(model_dir.glob("training_curve.*")):
        draw_training_curve(log, model_dir / "training_curve.png")
    blocks, others = block_files(name, results[0].parent), other_files(name, results[0].parent)
    readme = render_card(card or f"model_cards/{name}.md", results, model_dir, blocks, others)

    files = {path.name: path for pattern in PUSHED for path in sorted(model_dir.glob(pattern))}
    files |= with_auto_map(model_dir, config, code_repo)
    files["README.md"] = readme.encode()
    files |= {f"results/{path.name}": path for path in [*results, *sum(blocks.values(), [])]}
    if dry_run:
        return show(model_dir, repo_id, code_repo, files)

    def upload(api: HfApi) -> str:
        if with_code:
            push_code(code_repo)
        elif not api.repo_exists(code_repo):
            raise ValueError(f"the code repository {code_repo} does not exist; push it once with --push-code")
        return commit(api, repo_id, files, f"Push {name}", private)

    return reaching(repo_id, upload)


def show(model_dir: Path, repo_id: str, code_repo: str, files: dict) -> None:
    """A dry run: the card into the folder, and what would be pushed."""
    (model_dir / "README.md").write_bytes(files["README.md"])
    print(f"would push to {repo_id}, with the code in {code_repo}:")
    for path, content in sorted(files.items()):
        print(f"  {len(content) if isinstance(content, bytes) else content.stat().st_size:>12,} bytes  {path}")


def reaching(repo_id: str, upload) -> str:
    """`upload(api)`, every failure of which is one sentence: ValueError of ours, ConnectionError of the Hub's."""
    try:
        return upload(HfApi())
    except ValueError:
        raise
    except Exception as error:  # each version of huggingface_hub has the errors of another HTTP client
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConnectionError(
            f"{repo_id} was not pushed ({reason}); see that the Hub can be reached and that `hf auth login` was run"
        ) from error


def push_adapter(
    adapter_dir: str | Path,
    repo_id: str,
    base_repo: str | None = None,
    code_repo: str = CODE_REPO,
    private: bool = False,
    dry_run: bool = False,
) -> str | None:
    """Publish an adapter that fine-tuning saved as one commit: adapter, processor, results and a card made from them.

    Args:
        adapter_dir: the folder with adapter_config.json.
        repo_id: `owner/name`; created if it does not exist.
        base_repo: repository of the base model; by default what the adapter names, or that of the shipped checkpoint.
        code_repo, private, dry_run: as for `push`.

    Returns the commit's URL, None for a dry run. Raises ValueError with one sentence where the adapter does not load,
    nobody else could load its base model, or the base's weights on the Hub are others than it was trained on; or
    ConnectionError as `push`.
    """
    adapter_dir = Path(adapter_dir)
    base = base_of(adapter_dir)
    base_repo = base_repo or published_base(base, adapter_dir)
    model, _ = load(adapter_dir, None, "cpu")
    results = adapter_results(adapter_dir)
    config = json.loads((adapter_dir / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_repo
    files = {path.name: path for pattern in PUSHED for path in sorted(adapter_dir.glob(pattern))}
    files.pop("generation_config.json", None)  # the base has it
    described = with_auto_map(adapter_dir, {"model_type": model.config.model_type}, code_repo)
    files["processor_config.json"] = described["processor_config.json"]
    files[ADAPTER_CONFIG] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    card = Path(base) / "README.md"
    if dry_run:
        files["README.md"] = adapter_card(repo_id, base_repo, results, card if card.is_file() else None).encode()
        return show(adapter_dir, repo_id, code_repo, files)

    def upload(api: HfApi) -> str:
        if not api.repo_exists(base_repo):
            raise ValueError(f"the base model {base_repo} is not on the Hub; push it first, or name it by --base-repo")
        published = api.get_paths_info(base_repo, ["model.safetensors"])
        if published and published[0].lfs and published[0].lfs.sha256 != results["base_weights_sha256"]:
            raise ValueError(f"{base_repo} holds other weights than {adapter_dir} was trained on; push {base} there")
        found = card if card.is_file() else None
        if found is None and api.file_exists(base_repo, "README.md"):
            found = Path(api.hf_hub_download(base_repo, "README.md"))
        files["README.md"] = adapter_card(repo_id, base_repo, results, found).encode()
        return commit(api, repo_id, files, f"Push {repo_id.split('/')[-1]}", private)

    return reaching(repo_id, upload)


def published_base(base: str, adapter_dir: Path) -> str:
    """The repository of an adapter's base model; ValueError where it is a folder that only its owner has."""
    if not Path(base).is_absolute() and base.count("/") == 1:
        return base
    for task, name in DEFAULT_CHECKPOINTS.items():
        if Path(base).resolve() == Path(default_checkpoint(task)).resolve():
            return f"{HUB_ORGANISATION}/{name}"
    raise ValueError(
        f"{adapter_dir} was trained on the folder {base}, which nobody else has; push that model first and name its "
        "repository by --base-repo"
    )


def adapter_results(adapter_dir: Path) -> dict:
    """What fine-tuning measured; ValueError where the file is not there."""
    try:
        return json.loads((adapter_dir / ADAPTER_RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{adapter_dir} has no {ADAPTER_RESULTS} to make a card from ({error})") from None


def main(args: list[str] | None = None):
    """`epigraph push` and scripts/push_to_hub.py."""
    parser = argparse.ArgumentParser(description="Push a model, its card and its results to the Hub in one commit.")
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="folder that save_pretrained wrote")
    parser.add_argument("repo_id", metavar="REPO_ID", help="where to push it: owner/name")
    parser.add_argument("--card", help="prose of the card (default: model_cards/NAME.md, NAME being the folder's)")
    parser.add_argument(
        "--results",
        nargs="+",
        help="what scripts/evaluate.py wrote (default: model_cards/results/NAME.json and NAME.*.json)",
    )
    parser.add_argument(
        "--code-repo",
        default=CODE_REPO,
        help="repository of the code that trust_remote_code=True runs (default: %(default)s)",
    )
    parser.add_argument(
        "--push-code", dest="with_code", action="store_true", help="first push this package's code there"
    )
    parser.add_argument("--private", action="store_true", help="create the repository as private")
    parser.add_argument(
        "--dry-run", action="store_true", help="write MODEL_DIR/README.md, list the files, push nothing"
    )
    parser.add_argument("--base-repo", help="of an adapter: the repository of its base model, owner/name")
    arguments = vars(parser.parse_args(args))
    base_repo = arguments.pop("base_repo")
    if is_adapter(arguments["model_dir"]):
        for name in ("card", "results", "with_code"):
            if arguments.pop(name):
                option = "push-code" if name == "with_code" else name
                raise ValueError(f"--{option} is for whole models, and {arguments['model_dir']} is an adapter")
        arguments["adapter_dir"] = arguments.pop("model_dir")
        url = push_adapter(**arguments, base_repo=base_repo)
    elif base_repo:
        raise ValueError(f"--base-repo is for adapters, but {arguments['model_dir']} holds no {ADAPTER_CONFIG}")
    else:
        url = push(**arguments)
    if url:
        print(url)
