"""The card of e2str-small, with a small model in its place: what is measured fills it, and what it says works."""

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from word_drawings import WORDS, draw

from epigraph import cards
from epigraph import hub as publishing
from epigraph.evaluation import main as evaluate

datasets = pytest.importorskip("datasets")
pytest.importorskip("faiss")
ROOT = Path(__file__).resolve().parent.parent
CARD = ROOT / "model_cards" / "e2str-small.md"


@pytest.fixture(scope="module")
def measured(word_reader, tmp_path_factory):
    """Model folder and results, as scripts/evaluate.py writes them of two sources, and of a sweep."""
    folder = tmp_path_factory.mktemp("measured")
    model = shutil.copytree(word_reader, folder / "e2str-small")
    rows = [
        {"id": f"{source}{place}", "text": word, "source": source, "split": "test", "image": draw(word, variant)}
        for variant, source in enumerate(("street", "shop"), start=1)
        for place, word in enumerate(WORDS * 3)
    ]
    data = folder / "words.parquet"
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(data)
    given = ["--model", str(model), "--data", str(data), "--source"]
    sweep = ["--context", "none", "knn", "copy", "--k", "1", "2", "--pool", str(data), "--pool_source", "shop"]
    evaluate([*given, "street", "--output", str(folder / "e2str-small.json")])
    evaluate([*given, "shop", "--half", "queries", "--output", str(folder / "e2str-small.shop.json")])
    evaluate([*given, "street", *sweep, "--output", str(folder / "e2str-small.context.street.json")])
    return model, folder


def test_what_evaluation_writes_fills_the_card(measured):
    model, folder = measured
    results, blocks = cards.results_files("e2str-small", folder), cards.block_files("e2str-small", folder)
    assert [path.name for path in results] == ["e2str-small.json", "e2str-small.shop.json"]
    rendered = cards.render_card(CARD, results, model, blocks)
    assert "| street | test |  | 36 | 12 | 100.00 % |" in rendered
    count = next(row["n"] for row in json.loads(results[1].read_text())["rows"])
    assert f"| shop | test | queries | 36 | {count} | 100.00 % |" in rendered and 0 < count < 12
    assert "| knn | 2 | all |" in rendered and "| copy | 1 | all |" in rendered and "| knn | 1 |" not in rendered
    data = ModelCard(rendered).data
    assert data.license == "cc-by-nc-4.0" and {row.dataset_name for row in data.eval_results} == {"street", "shop"}
    assert not re.search(r"<!-- (\w+) -->\n<!-- /(?!\1)", rendered)


def test_the_licence_in_the_folder_is_that_of_the_card():
    text = (ROOT / "checkpoints" / "e2str-small" / "LICENSE").read_text(encoding="utf-8")
    assert "CC-BY-NC-4.0" in text and "IIIT 5K-Word" in text and "Street View Text" in text


def test_what_the_card_says_works(measured, hub, hub_env, run_python, tmp_path):
    model, folder = measured
    results = [str(path) for path in cards.results_files("e2str-small", folder)]
    arguments = [str(model), "epigraph/e2str-small", "--card", str(CARD), "--results", *results]
    run_python([str(ROOT / "scripts" / "push_to_hub.py"), *arguments, "--push-code"], hub_env)
    found = hub.model("epigraph/e2str-small").files
    assert "results/e2str-small.context.street.json" in found
    snippets = re.findall("```python\n(.*?)```", found["README.md"].decode(), re.DOTALL)
    assert len(snippets) == 3
    folder = tmp_path / "here"
    folder.mkdir()
    for name, word in {"word.png": "Exit", "sign.jpg": "cat", "misread.png": "SIGN", "another.png": "42"}.items():
        draw(word).save(folder / name, **({"quality": 95} if name.endswith("jpg") else {}))
    printed = run_python("\n".join(snippets), hub_env, cwd=folder).stdout.splitlines()
    assert printed[0].startswith("Exit ") and printed[-1] == "['Exit']" and (folder / "signs").is_dir()
    alone = (
        snippets[2].replace("import epigraph\n", "").replace('e2str-small")', 'e2str-small", trust_remote_code=True)')
    )
    assert run_python(alone, hub_env, cwd=folder, without=["epigraph"]).stdout.splitlines()[-1] == "['Exit']"


def test_a_dry_run_shows_what_would_be_pushed(measured, capsys, monkeypatch):
    model, folder = measured
    monkeypatch.setattr(publishing, "HfApi", lambda: pytest.fail("a Hub was contacted"))
    publishing.push(model, "org/words", CARD, cards.results_files("e2str-small", folder), dry_run=True)
    printed = capsys.readouterr().out
    assert "results/e2str-small.shop.json" in printed and "model.safetensors" in printed
