"""Publishing: a model folder, its card and its results become one commit on the Hub.

A card is prose (`model_cards/<name>.md`, YAML front matter included) with two empty blocks, `<!-- results -->` and
`<!-- curve -->`, which are filled from `model_cards/results/<name>.json` and from what lies in the model folder. No
number is ever typed into a card. A model that was measured on several data sets has a file for each, the others named
`<name>.<data>.json`. What scripts/adapt_writers.py measured stands in `<name>.writers.json` and fills the block
`<!-- writers -->`, where a card has one.

An adapter is pushed without its base model, which its card and its adapter_config.json name by repository.
"""

import argparse
import hashlib
import json
import re
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCard, ModelCardData
from safetensors import SafetensorError, safe_open
from transformers import AutoProcessor

from . import models
from .adapters import ADAPTER_CONFIG, base_of, is_adapter
from .reading import DEFAULT_CHECKPOINTS, HUB_ORGANISATION, default_checkpoint, load
from .training_curve import draw_training_curve

CODE_REPO = f"{HUB_ORGANISATION}/epigraph-code"
SECTIONS = ["Use", "Results", "Training", "Limits", "Licence", "Citation"]
PUSHED = ["*.json", "*.safetensors", "LICENSE*", "training_curve.*"]
ADAPTER_RESULTS = "finetuning.json"
ADAPTER_CARD = """---
{front}
---
# {repo}

An adapter of [{base}](https://huggingface.co/{base}), trained with epigraph.

## Use

```python
import epigraph

print(epigraph.read("formula.png", model="{repo}").text)
```

The same through transformers; needs peft:

```python
import epigraph
from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained("{repo}")
model = AutoModel.from_pretrained("{repo}").eval()
```

## Results

{results}

## Training

```bash
{command}
```

## Licence

That of the base model.
"""
METRIC_NAMES = {
    "exprate": "ExpRate",
    "exprate_1": "≤ 1 error",
    "exprate_2": "≤ 2 errors",
    "exprate_3": "≤ 3 errors",
    "exprate_symlg": "ExpRate (symLG)",
    "word_accuracy": "word accuracy",
    "ned": "1-NED",
    "psnr": "PSNR",
    "ssim": "SSIM",
}


def fill(text: str, block: str, content: str) -> str:
    """Put `content` between `<!-- block -->` and `<!-- /block -->`; ValueError where `text` has no such block."""
    pattern = re.compile(rf"(<!-- {block} -->).*?(<!-- /{block} -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"the text needs exactly one block <!-- {block} --> ... <!-- /{block} -->")
    return pattern.sub(lambda match: f"{match[1]}\n{content}\n{match[2]}", text)


def read_results(path: str | Path) -> dict:
    """What scripts/evaluate.py wrote; ValueError naming the file where it is not that."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"there are no results at {path}; write them with scripts/evaluate.py --output {path}"
        ) from None
    except ValueError as error:
        raise ValueError(
            f"the results {path} are not JSON ({error}); write them again with scripts/evaluate.py"
        ) from None
    missing = {"command", "versions", "weights_sha256", "data_sha256", "rows"} - set(results)
    if missing or not results["rows"]:
        lacking = ", ".join(sorted(missing)) or "any row"
        raise ValueError(f"the results {path} lack {lacking}; write them again with scripts/evaluate.py")
    return results


def shown(metric: str, value: float) -> str:
    """A value as tables show it: rates in per cent, PSNR in dB, SSIM as it is."""
    if metric == "psnr":
        return f"{value:.2f} dB"
    return f"{value:.3f}" if metric == "ssim" else f"{100 * value:.2f} %"


def metrics_table(results: dict) -> str:
    """Markdown: a line per (source, split, protocol), a column per metric, in the order of the results' rows."""
    metrics = list(dict.fromkeys(row["metric"] for row in results["rows"]))
    lines = {}
    for row in results["rows"]:
        key = (row["source"], row["split"], row["protocol"], row["n"])
        lines.setdefault(key, {})[row["metric"]] = shown(row["metric"], row["value"])
    header = ["data", "split", "protocol", "n", *(METRIC_NAMES.get(metric, metric) for metric in metrics)]
    table = ["| " + " | ".join(header) + " |", "|" + "---|" * 4 + "---:|" * len(metrics)]
    for key, values in lines.items():
        cells = [str(part if part is not None else "") for part in key] + [
            values.get(metric, "") for metric in metrics
        ]
        table.append("| " + " | ".join(cells) + " |")
    return "\n".join(table)


def reliability_table(results: dict) -> str:
    """Markdown: how often readings were right by their score; "" for results without scores, as older ones are."""
    found = results.get("breakdowns", {}).get("reliability")
    if not found:
        return ""
    table = ["| score | n | mean score | right |", "|---|---:|---:|---:|"]
    for row in found["bins"]:
        table.append(f"| {row['bin']} | {row['n']} | {100 * row['score']:.1f} % | {100 * row['right']:.1f} % |")
    table += ["", "| readings with a score of at least | share of all | ExpRate |", "|---|---:|---:|"]
    for row in found["at_least"]:
        rate = "" if row["exprate"] is None else f"{100 * row['exprate']:.1f} %"
        table.append(f"| {row['score']} | {100 * row['coverage']:.1f} % | {rate} |")
    auroc = "" if found["auroc"] is None else f", AUROC {found['auroc']:.3f}"
    scores = "calibrated" if found["calibration"] else "not calibrated"
    table += ["", f"Scores ({scores}): log-loss {found['log_loss']:.4f}, Brier {found['brier']:.4f}, "
                  f"ECE {found['ece']:.4f}{auroc}."]  # fmt: skip
    return "\n".join(table)


def results_section(results: dict) -> str:
    """The tables of metrics and of scores with the command, weights, data and versions that produced them."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    changed = any(row.get("variant") for row in results["rows"])  # images changed on purpose say little of scores
    tables = [table for table in (metrics_table(results), "" if changed else reliability_table(results)) if table]
    return (
        "\n\n".join(tables) + f"\n\nProduced by\n\n```bash\n{results['command']}\n```\n\n"
        f"Weights sha256 `{results['weights_sha256']}`; data sha256 `{results['data_sha256']}`; {versions}."
    )


def writers_table(results: dict) -> str:
    """Markdown of what scripts/adapt_writers.py wrote: before, and with each way of fine-tuning."""
    names = {"exprate": "ExpRate", "exprate_1": "≤ 1 error", "token_error_rate": "token errors"}
    lines = [
        f"| {len(results['writers'])} writers, {results['rows'][0]['n']} expressions | {' | '.join(names.values())} | "
        "weights trained | CPU seconds | ExpRate of others |",
        "|---|" + "---:|" * (len(names) + 3),
    ]
    for row in results["rows"]:
        cells = [row["method"]]
        for metric in names:
            interval = [f"{100 * bound:+.1f}" for bound in row.get("intervals", {}).get(metric, [])]
            cells.append(shown(metric, row[metric]) + (f" ({' … '.join(interval)})" if interval else ""))
        cells += [f"{100 * row['share']:.1f} %" if "share" in row else ""]
        cells += [f"{row['cpu_seconds']:.0f}" if "cpu_seconds" in row else "", shown("", row["others_exprate"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def writers_section(path: str | Path, weights: str) -> str:
    """The table with the command that produced it; ValueError where it was measured on other weights."""
    results = read_results(path)
    if results["weights_sha256"] != weights:
        raise ValueError(f"the results {path} were measured on other weights; run scripts/adapt_writers.py again")
    return (
        f"{writers_table(results)}\n\nIn brackets the 95 % interval of the difference, drawn over expressions; the "
        f"last column, read greedily, is {results['others']} expressions of other writers, averaged over the adapted "
        f"models. Produced by\n\n```bash\n{results['command']}\n```"
    )


def results_files(name: str, folder: str | Path = "model_cards/results") -> list[Path]:
    """What was measured of the model called `name`: `<name>.json` and any `<name>.<data>.json`."""
    others = sorted(path for path in Path(folder).glob(f"{name}.*.json") if not path.name.endswith(".writers.json"))
    return [Path(folder) / f"{name}.json", *others]


def render_card(
    card: str | Path, results: list[str | Path], model_dir: str | Path, writers: str | Path | None = None
) -> str:
    """The README.md of a model folder: the prose with its blocks filled, and front matter with a model index.

    `writers` is a file that scripts/adapt_writers.py wrote, for a card with that block; it need not exist.

    Raises ValueError where the prose has no licence, lacks a section or a block, or where the results were measured
    on weights other than those in `model_dir`.
    """
    card, model_dir = Path(card), Path(model_dir)
    if not card.is_file():
        raise ValueError(f"there is no card {card}; write one (model_cards/comer-hme.md is an example) or name it")
    rendered = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=False)
    if not rendered.data.license:
        raise ValueError(f"the card {card} names no license in its front matter; say under what terms the weights are")
    headings = re.findall(r"^## (.+)$", rendered.text, re.MULTILINE)
    if headings != SECTIONS:
        raise ValueError(f"the card {card} has the sections {headings}; it needs {SECTIONS}, in this order")
    weights = weights_sha256(model_dir)
    measured = {path: read_results(path) for path in results}
    for path, content in measured.items():
        if content["weights_sha256"] != weights:
            raise ValueError(
                f"the results {path} were measured on other weights than those in {model_dir}; evaluate again"
            )

    curve = next((path.name for path in sorted(model_dir.glob("training_curve.*"))), None)
    if "<!-- writers -->" in rendered.text:
        measured_writers = writers is not None and Path(writers).is_file()
        section = writers_section(writers, weights) if measured_writers else ""
        rendered.text = fill(rendered.text, "writers", section)
    try:
        rendered.text = fill(rendered.text, "results", "\n\n".join(map(results_section, measured.values())))
        rendered.text = fill(rendered.text, "curve", f"![Training curve]({curve})" if curve else "")
    except ValueError as error:
        raise ValueError(f"the card {card} cannot be filled: {error}") from None
    rendered.data.model_name = card.stem
    rendered.data.eval_results = [
        EvalResult(
            task_type=rendered.data.pipeline_tag or "image-to-text",
            dataset_type=row["source"] or "local",
            dataset_name=row["source"] or "local",
            dataset_split=row["split"],
            metric_type=row["metric"],
            metric_name=METRIC_NAMES.get(row["metric"], row["metric"]),
            metric_value=row["value"],
            metric_args={"protocol": row["protocol"], "n": row["n"]},
        )
        for content in measured.values()
        for row in content["rows"]
    ]
    return rendered.content


def weights_files(model_dir: str | Path) -> list[Path]:
    """The safetensors files of a model folder, sorted; ValueError where there is none."""
    files = sorted(Path(model_dir).glob("*.safetensors"))
    if not files:
        raise ValueError(f"{model_dir} holds no model.safetensors; name a folder that save_pretrained wrote")
    return files


def weights_sha256(model_dir: str | Path) -> str:
    """The sha256 of the weights in a model folder, over its safetensors files in the order of their names."""
    digest = hashlib.sha256()
    for path in weights_files(model_dir):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def entry_of(model_type: str, model_dir: str | Path) -> tuple:
    """The entry of `MODELS` for a model type; ValueError naming the folder where there is none."""
    for entry in models.MODELS:
        if entry[0].model_type == model_type:
            return entry
    known = ", ".join(entry[0].model_type for entry in models.MODELS)
    raise ValueError(f"{model_dir}/config.json has the model type {model_type!r}; epigraph publishes {known}")


def check_model(model_dir: str | Path) -> dict:
    """Check that a folder loads completely and return its config.json; ValueError saying what is wrong with it."""
    model_dir = Path(model_dir)
    try:
        config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{model_dir} is not a model folder: its config.json cannot be read ({error})") from None
    config_class, classes, *_ = entry_of(config.get("model_type"), model_dir)
    if not (model_dir / "processor_config.json").is_file():
        raise ValueError(f"{model_dir} has no processor_config.json; save the processor beside the model")
    name = (config.get("architectures") or [None])[0]
    model_class = next((cls for cls in classes.values() if cls.__name__ == name), None)
    if model_class is None:
        raise ValueError(
            f"{model_dir}/config.json names the architecture {name!r}; save the model with save_pretrained"
        )
    try:
        with torch.device("meta"):
            model = model_class(config_class.from_dict(config))
        AutoProcessor.from_pretrained(model_dir)
    except Exception as error:  # whatever the config or the processor raises, the folder is what is wrong
        raise ValueError(f"{model_dir} does not load: {error}") from error
    wanted = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    found = {}
    for path in weights_files(model_dir):
        try:
            with safe_open(path, framework="pt") as file:
                found |= {key: file.get_slice(key).get_shape() for key in file.keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}); save the model again") from None
    missing = sorted(set(wanted) - set(found) - set(model.all_tied_weights_keys))
    wrong = sorted(key for key in found if wanted.get(key) != found[key])
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
    settings = json.loads((model_dir / "processor_config.json").read_text(encoding="utf-8"))
    settings["auto_map"] = located(AutoProcessor=processor)
    settings["image_processor"]["auto_map"] = located(AutoImageProcessor=image_processor)
    config = {**config, "auto_map": located(AutoConfig=config_class, **classes)}
    files = {"config.json": config, "processor_config.json": settings}
    return {name: (json.dumps(content, indent=2, sort_keys=True) + "\n").encode() for name, content in files.items()}


def commit(api: HfApi, repo_id: str, files: dict, message: str, private: bool = False) -> str:
    """Create the repository if needed and commit {path in the repository: Path or bytes} at once; the commit's URL."""
    api.create_repo(repo_id, private=private, exist_ok=True)
    operations = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in files.items()
    ]
    return api.create_commit(repo_id, operations, commit_message=message).commit_url


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
        model_dir: what `save_pretrained` wrote, processor included.
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
    writers = results[0].with_name(f"{name}.writers.json")
    readme = render_card(card or f"model_cards/{name}.md", results, model_dir, writers)

    files = {path.name: path for pattern in PUSHED for path in sorted(model_dir.glob(pattern))}
    files |= with_auto_map(model_dir, config, code_repo)
    files["README.md"] = readme.encode()
    files |= {f"results/{path.name}": path for path in [*results, writers] if path in results or path.is_file()}
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


def adapter_card(repo_id: str, base_repo: str, results: dict, base_card: Path | None) -> str:
    """The README.md of an adapter; its licence is that of the base model."""
    from .finetuning import table

    text = base_card.read_text(encoding="utf-8") if base_card else ""
    data = ModelCardData(
        license=ModelCard(text).data.license,
        library_name="peft",
        pipeline_tag="image-to-text",
        base_model=base_repo,
        tags=["epigraph", "lora", "handwriting", "mathematics", "latex"],
    )
    return ADAPTER_CARD.format(
        front=data.to_yaml(), repo=repo_id, base=base_repo, results=table(results), command=results["command"]
    )


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
