"""Model cards: prose (`model_cards/<name>.md`) whose blocks are filled with what was measured.

A card has front matter in YAML and two empty blocks, `<!-- results -->` and `<!-- curve -->`, filled from
`model_cards/results/<name>.json` and from what lies in the model folder. No number is ever typed into a card. A model
that was measured on several data sets has a file for each, the others named `<name>.<data>.json`; what was measured of
other weights, earlier ones or an ablation's, lies beside them in `other` as `<name>.<which>.<data>.json`. What other
scripts measured stands in `<name>.<block>.json` or `<name>.<block>.<data>.json` and fills the block of that name,
where a card has one (`BLOCKS`).
"""

import hashlib
import json
import re
from pathlib import Path

from huggingface_hub import DatasetCardData, EvalResult, ModelCard, ModelCardData

SECTIONS = ["Use", "Results", "Training", "Limits", "Licence", "Citation"]
ADAPTER_CARD = """---
{front}
---
# {repo}

An adapter of [{base}](https://huggingface.co/{base}), trained with epigraph.

## Use

```python
import epigraph

print(epigraph.read("{image}", model="{repo}").text)
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
DATASET_CARD = """---
{front}
---
# {title}

{rows:,} rows in {shards} shards, drawn by epigraph {version}. {about}

## Use

```python
from datasets import load_dataset

rows = load_dataset("{path}", split="train", streaming=True)
```

## How it was made

```bash
epigraph synth --recipe recipe.yaml --out FOLDER
```

with this recipe (`manifest.json` holds it too, with the digests of all inputs, the versions of the libraries and the
sha256 of every shard):

```yaml
{recipe}```

| | |
|---|---|
{inputs}| attempts that were rejected and drawn again | {rejected} |
| samples left out | {skipped} |

{reasons}## Licence

{licence}
"""
POOL_CARD = """---
{front}
---
# {title}

{entries:,} word images with their texts: examples in context for E2STR, found by likeness to what is to be read.

## Use

```python
from epigraph.context_pool import ContextPool

pool = ContextPool.load("{repo}", encode)
```

`encode` must be the encoder of the model that the pool was made with (weights {encoder}, keys of width {width}); for
another one, `ContextPool.load("{repo}").reencode(encode)`. The rows are a data set, too:

```python
from datasets import load_dataset

rows = load_dataset("{repo}", split="train")
```

## Sources

| source | entries |
|---|---:|
{sources}

## Licence

{licence}
"""
# Blocks of a card that are filled from a file of their own, and the script that writes it.
BLOCKS = {
    "writers": "scripts/adapt_writers.py",
    "peers": "scripts/peers.py",
    "context": "scripts/evaluate.py",
    "adaptation": "scripts/compare_adaptation.py",
}
METRIC_NAMES = {
    "exprate": "ExpRate",
    "exprate_1": "≤ 1 error",
    "exprate_2": "≤ 2 errors",
    "exprate_3": "≤ 3 errors",
    "exprate_symlg": "ExpRate (symLG)",
    "word_accuracy": "word accuracy",
    "accuracy": "accuracy",
    "accuracy_5": "accuracy (best 5)",
    "ned": "1-NED",
    "cer": "CER",
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


def shown(metric: str, value: float | None) -> str:
    """A value as tables show it: rates in per cent, PSNR in dB, SSIM as it is, "" where nothing was measured."""
    if value is None:
        return ""
    if metric == "psnr":
        return f"{value:.2f} dB"
    return f"{value:.3f}" if metric == "ssim" else f"{100 * value:.2f} %"


def metrics_table(results: dict) -> str:
    """Markdown: a line per (source, split, variant, protocol), a column per metric, in the order of the results' rows.

    How images were changed before they were read stands in a column of its own, where any were, after the others;
    so do, where rows say it, which weights were measured, which half of the words, and what they were read with.
    """
    rows = sorted(results["rows"], key=lambda row: bool(row.get("variant")))
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    names = {"source": "data", "split": "split", "variant": "images", "protocol": "protocol", "n": "n"}
    if any(row.get("half") for row in rows):
        names = {"source": "data", "split": "split", "half": "half", **names}
    if not any(row.get("variant") for row in rows):
        names.pop("variant")
    if any(row.get("pool_size") is not None for row in rows):
        names |= {"context": "context", "k": "k", "pool_size": "pool", "pool_seed": "seed"}
    if any(row.get("weights") for row in rows):
        names = {"weights": "weights", **names}
    lines = {}
    for row in rows:
        values = (row.get(name) if row.get(name) != "" else None for name in names)
        key = tuple(("as they are" if n == "variant" else "") if v is None else str(v) for n, v in zip(names, values))
        lines.setdefault(key, {})[row["metric"]] = shown(row["metric"], row["value"])
    header = [*names.values(), *(METRIC_NAMES.get(metric, metric) for metric in metrics)]
    table = ["| " + " | ".join(header) + " |", "|" + "---|" * len(names) + "---:|" * len(metrics)]
    for key, values in lines.items():
        table.append("| " + " | ".join([*key, *(values.get(metric, "") for metric in metrics)]) + " |")
    return "\n".join(table)


def reliability_table(results: dict) -> str:
    """Markdown: how often readings, and characters of words, were right by their score; "" where there are no scores,
    as in older results."""
    breakdowns = results.get("breakdowns", {})
    tables = (
        _reliability(breakdowns.get("reliability"), "score", "readings", "Scores"),
        _reliability(
            breakdowns.get("char_reliability"), "score of the character", "characters", "Scores of characters"
        ),
    )
    return "\n\n".join(table for table in tables if table)


def _reliability(found: dict | None, score: str, things: str, scores: str) -> str:
    if not found:
        return ""
    table = [f"| {score} | n | mean score | right |", "|---|---:|---:|---:|"]
    for row in found["bins"]:
        table.append(f"| {row['bin']} | {row['n']} | {100 * row['score']:.1f} % | {100 * row['right']:.1f} % |")
    metric = list(found["at_least"][0])[-1]
    table += ["", f"| {things} with a score of at least | share of all | {METRIC_NAMES.get(metric, 'right')} |",
              "|---|---:|---:|"]  # fmt: skip
    for row in found["at_least"]:
        rate = "" if row[metric] is None else f"{100 * row[metric]:.1f} %"
        table.append(f"| {row['score']} | {100 * row['coverage']:.1f} % | {rate} |")
    auroc = "" if found["auroc"] is None else f", AUROC {found['auroc']:.3f}"
    calibrated = "calibrated" if found["calibration"] else "not calibrated"
    table += ["", f"{scores} ({calibrated}): log-loss {found['log_loss']:.4f}, Brier {found['brier']:.4f}, "
                  f"ECE {found['ece']:.4f}{auroc}."]  # fmt: skip
    return "\n".join(table)


def class_table(results: dict) -> str:
    """Markdown: how often each class was told, and what it is most often taken for; "" where there are no classes."""
    found = results.get("breakdowns", {}).get("class")
    if not found:
        return ""
    lines = ["| class | n | accuracy | most often taken for |", "|---|---:|---:|---|"]
    for row in found:
        value = shown("accuracy", row["accuracy"])
        name, taken_for = ((text or "").replace("|", r"\|") for text in (row["class"], row["taken_for"]))
        lines.append(f"| {name} | {row['n']} | {value} | {taken_for} |")
    return "\n".join(lines)


def results_section(measured: list[dict], others: list[tuple[str, dict]] = ()) -> str:
    """Everything that evaluation measured, with the commands, weights, data and versions that produced it.

    The tables of scores or classes are those of the first results; `others` are results of other weights, each with
    their name.
    """
    parts = [metrics_table({"rows": [row for results in measured for row in results["rows"]]})]
    if others:
        rows = [{**row, "weights": which} for which, results in others for row in results["rows"]]
        digests = {which: f"{which} `{results['weights_sha256']}`" for which, results in others}
        parts += [f"Other weights (sha256: {', '.join(digests.values())}):", metrics_table({"rows": rows})]
    parts += [reliability_table(measured[0]), class_table(measured[0])]
    commands = "\n".join(results["command"] for results in measured)
    data = ", ".join(dict.fromkeys(f"`{results['data_sha256']}`" for results in measured))
    versions = dict.fromkeys(", ".join(f"{k} {v}" for k, v in results["versions"].items()) for results in measured)
    parts.append(
        f"Produced by\n\n```bash\n{commands}\n```\n\nWeights sha256 `{measured[0]['weights_sha256']}`; "
        f"data sha256 {data}; {'; '.join(versions)}."
    )
    return "\n\n".join(part for part in parts if part)


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


def writers_section(results: dict) -> str:
    """The table with the command that produced it."""
    return (
        f"{writers_table(results)}\n\nIn brackets the 95 % interval of the difference, drawn over expressions; the "
        f"last column, read greedily, is {results['others']} expressions of other writers, averaged over the adapted "
        f"models. Produced by\n\n```bash\n{results['command']}\n```"
    )


def block_section(block: str, paths: list[str | Path], weights: str) -> str:
    """What fills the block from these files; ValueError where one was measured on other weights."""
    from . import card_words

    section = writers_section if block == "writers" else getattr(card_words, f"{block}_section")
    sections = []
    for path in paths:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        known = {of.get("weights_sha256") for of in [results, *results.get("readers", {}).values()]}
        if weights not in known:
            raise ValueError(f"the results {path} were measured on other weights; run {BLOCKS[block]} again")
        sections.append(section(results))
    return "\n\n".join(sections)


def results_files(name: str, folder: str | Path = "model_cards/results") -> list[Path]:
    """What was measured of the model called `name`: `<name>.json` and any `<name>.<data>.json`."""
    blocks = {path for paths in block_files(name, folder).values() for path in paths}
    others = sorted(path for path in Path(folder).glob(f"{name}.*.json") if path not in blocks)
    return [Path(folder) / f"{name}.json", *others]


def block_files(name: str, folder: str | Path = "model_cards/results") -> dict[str, list[Path]]:
    """What fills the blocks of a card, each from `<name>.<block>.json` and any `<name>.<block>.<data>.json`."""
    found = {block: sorted(Path(folder).glob(f"{name}.{block}.*json")) for block in BLOCKS}
    return {block: paths for block, paths in found.items() if paths}


def other_files(name: str, folder: str | Path = "model_cards/results") -> list[Path]:
    """What was measured of other weights of the model called `name`: `other/<name>.<which>[.<data>].json`."""
    return sorted(Path(folder, "other").glob(f"{name}.*.json"))


def render_card(
    card: str | Path,
    results: list[str | Path],
    model_dir: str | Path,
    blocks: dict[str, list[str | Path]] | None = None,
    others: list[str | Path] = (),
) -> str:
    """The README.md of a model folder: the prose with its blocks filled, and front matter with a model index.

    `blocks` are the `block_files` of the model, for a card with such blocks, and `others` its `other_files`.

    Raises ValueError where the prose has no licence, lacks a section or a block, or where the results were measured
    on weights other than those in `model_dir`.
    """
    card, model_dir = Path(card), Path(model_dir)
    if not card.is_file():
        raise ValueError(f"there is no card {card}; write one (those of model_cards are examples) or name it")
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
    for block in BLOCKS:
        if f"<!-- {block} -->" in rendered.text:
            section = block_section(block, (blocks or {}).get(block, []), weights)
            rendered.text = fill(rendered.text, block, section)
    try:
        named = [(Path(path).name.split(".")[1], read_results(path)) for path in others]
        rendered.text = fill(rendered.text, "results", results_section([*measured.values()], named))
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
            metric_args={name: row[name] for name in ("protocol", "n", "half") if row.get(name) is not None},
        )
        for content in measured.values()
        for row in content["rows"]
        if not row.get("variant")
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


def adapter_card(repo_id: str, base_repo: str, results: dict, base_card: Path | None) -> str:
    """The README.md of an adapter; its licence is that of the base model."""
    from .finetuning import table

    words = results.get("unit") == "words"
    text = base_card.read_text(encoding="utf-8") if base_card else ""
    data = ModelCardData(
        license=ModelCard(text).data.license,
        library_name="peft",
        pipeline_tag="image-to-text",
        base_model=base_repo,
        tags=["epigraph", "lora", *(["scene-text-recognition"] if words else ["handwriting", "mathematics", "latex"])],
    )
    return ADAPTER_CARD.format(
        front=data.to_yaml(),
        repo=repo_id,
        base=base_repo,
        results=table(results),
        command=results["command"],
        image="word.png" if words else "formula.png",
    )


_DRAWN = (
    "Every row is {} with labels that are exact, because they come from the very record that it was drawn from, in "
    "the column `{}`, and from the text{}."
)


def _about(recipe: dict) -> str:
    """What a row of synthetic data is, in a sentence or two."""
    kind = recipe["kind"]
    if kind == "formulas":
        hand = "the pen strokes of an ink set" if recipe.get("ink") else "the skeletons of fonts"
        return f"Every row is a formula as ink, put together from {hand}: strokes, LaTeX, and whose stroke is whose."
    if kind == "crops":
        return "Every row is the crop of a word with a quad around each of its characters."
    pictures = "; some of the backgrounds are pictures, which are not in it" if recipe.get("backgrounds") else ""
    return _DRAWN.format(*("a page", "styles") if kind == "scenes" else ("words in one style", "style"), pictures)


def dataset_card(manifest: dict, path: str = "FOLDER") -> str:
    """The README.md of shards that `epigraph synth` wrote, made from their manifest.

    `path` is what `load_dataset` is to be given: the repository, once there is one.
    """
    from huggingface_hub.utils import yaml_dump

    recipe, inputs = manifest["recipe"], manifest.get("inputs", {})
    settings = {**recipe, **{name: manifest[name] for name in ("num_samples", "shard_size", "seed", "format")}}
    kind, rows = recipe["kind"], manifest["rows"]
    bounds = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}
    data = DatasetCardData(
        license=recipe.get("license"),
        pretty_name=f"Synthetic {kind}",
        size_categories=next((name for bound, name in bounds.items() if rows < bound), "n>10M"),
        task_categories=["image-to-text"],
        tags=["epigraph", "synthetic", "ocr", kind],
        # No `configs`: `datasets` finds data/train-*, and with them takes any folder of this name for the same data.
    )
    attempts = rows + sum(manifest["rejected"].values())

    def count(values):
        return values["count"] if isinstance(values, dict) else len(values)

    reasons = "".join(f"* {number} x {reason}\n" for reason, number in manifest["rejected"].items())
    return DATASET_CARD.format(
        front=data.to_yaml().rstrip(),
        title=f"Synthetic {kind}",
        about=_about(recipe),
        rows=rows,
        shards=len(manifest["shards"]),
        version=manifest["versions"].get("epigraph", ""),
        path=path,
        recipe=yaml_dump(settings),
        inputs="".join(f"| {name} | {count(values):,} |\n" for name, values in inputs.items()),
        rejected=f"{100 * sum(manifest['rejected'].values()) / attempts:.2f} %",
        skipped=sum(manifest["skipped"].values()),
        reasons=f"Why attempts were rejected:\n\n{reasons}\n" if reasons else "",
        licence=f"{recipe['license']}." if recipe.get("license") else (
            "Not stated by whoever made it. The fonts, words and backgrounds that it was drawn with have licences of "
            "their own, which this folder does not restate."
        ),
    )  # fmt: skip


def pool_card(
    repo_id: str, license: str | None, sources: dict[str, int], width: int | None, encoder: str | None
) -> str:
    """The README.md of a context pool.

    Args:
        repo_id: `owner/name`.
        license: of the images, as the Hub names licences; None where nobody said.
        sources: how many entries came from where.
        width: of the keys.
        encoder: hash of the weights that made them.
    """
    data = DatasetCardData(
        license=license,
        pretty_name=repo_id.split("/")[-1],
        task_categories=["image-to-text"],
        tags=["epigraph", "context-pool", "ocr", "scene-text-recognition"],
        configs=[{"config_name": "default", "data_files": "shard-*.parquet"}],
    )
    names = {name: " ".join(name.replace("|", " ").split()) or "not stated" for name in sources}
    rows = "\n".join(f"| {names[name]} | {count:,} |" for name, count in sources.items())
    return POOL_CARD.format(
        front=data.to_yaml().rstrip(),
        title=repo_id.split("/")[-1],
        repo=repo_id,
        entries=sum(sources.values()),
        encoder=f"`{encoder}`" if encoder else "of unknown hash",
        width=width,
        sources=rows,
        licence=f"{license}." if license else "Not stated by whoever made it; the images have licences of their own.",
    )
