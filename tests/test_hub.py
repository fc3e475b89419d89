"""Publishing against the in-process Hub: one commit, checked first, loadable without the package."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

import epigraph
from epigraph import PixelViTConfig, PixelViTForImageClassification, PixelViTImageProcessor, cards
from epigraph import hub as publishing
from epigraph.models.modeling_comer import CoMERForConditionalGeneration
from epigraph.models.processing import comer_processor

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def published(tiny_comer, tmp_path):
    """(model folder, card, results) that fit each other."""
    model_dir = shutil.copytree(tiny_comer, tmp_path / tiny_comer.name)
    (tmp_path / "metrics.jsonl").write_text('{"step": 50, "loss": 2.0}\n{"step": 100, "loss": 1.0}\n')
    card = tmp_path / "tiny-hme.md"
    card.write_text((ROOT / "model_cards" / "comer-hme.md").read_text())
    row = {"source": "made-up", "split": "test", "protocol": "standard", "n": 8}
    measured = {
        "model": "tiny-hme",
        "command": "python scripts/evaluate.py --model tiny-hme --data made_up.parquet",
        "versions": {"torch": "2.13.0"},
        "weights_sha256": cards.weights_sha256(model_dir),
        "data_sha256": "0" * 64,
        "rows": [{"metric": "exprate", "value": 0.125, **row}, {"metric": "exprate_1", "value": 0.5, **row}],
        "breakdowns": {},
    }
    results = tmp_path / "tiny-hme.json"
    results.write_text(json.dumps(measured))
    return model_dir, card, results


@pytest.fixture
def published_classifier(tmp_path):
    """The same of a model that knows no text: (model folder, card, results)."""
    model_dir, results = tmp_path / "pixelvit-tiny", tmp_path / "pixelvit-tiny.json"
    torch.manual_seed(0)
    config = PixelViTConfig(num_channels=1, hidden_size=16, num_hidden_layers=1, intermediate_size=16,
                            num_attention_heads=2, id2label={0: "shirt", 1: "trouser", 2: "bag"})  # fmt: skip
    PixelViTForImageClassification(config).save_pretrained(model_dir)
    PixelViTImageProcessor(num_channels=1).save_pretrained(model_dir)
    row = {"source": "garments", "split": "test", "protocol": "standard", "n": 8}
    measured = {
        "model": "pixelvit-tiny",
        "command": "python scripts/evaluate.py --model pixelvit-tiny --data garments.parquet",
        "versions": {"torch": "2.13.0"},
        "weights_sha256": cards.weights_sha256(model_dir),
        "data_sha256": "0" * 64,
        "rows": [{"metric": "accuracy", "value": 0.875, **row}],
        "breakdowns": {"class": [{"class": "shirt", "n": 8, "accuracy": 0.875, "taken_for": "bag"}]},
    }
    results.write_text(json.dumps(measured))
    return model_dir, ROOT / "model_cards" / "pixelvit-tiny.md", results


@pytest.fixture
def no_hub(monkeypatch):
    """Any contact with a Hub fails the test."""

    def contact(*args, **kwargs):
        pytest.fail("a Hub was contacted")

    monkeypatch.setattr(publishing, "HfApi", contact)


def drawing():
    image = Image.new("L", (96, 48))
    ImageDraw.Draw(image).line([(8, 8), (40, 40), (40, 8), (88, 24)], fill=255, width=3)
    return image


def test_pushed_model_loads_where_epigraph_cannot_be_imported(published, hub, hub_env, run_python, tmp_path):
    model_dir, card, results = published
    arguments = [str(model_dir), "org/tiny-hme", "--card", str(card), "--results", str(results)]
    arguments += ["--code-repo", "org/code", "--push-code"]
    run_python([str(ROOT / "scripts" / "push_to_hub.py"), *arguments], hub_env)

    repo = hub.model("org/tiny-hme")
    assert len(repo.commits) == 2, "one commit after the initial one"
    assert not [path for path in repo.files if path.endswith((".py", ".bin"))]
    assert repo.files["results/tiny-hme.json"] == results.read_bytes()
    config = json.loads(repo.files["config.json"])
    assert config["auto_map"]["AutoModel"] == "org/code--modeling_comer.CoMERForConditionalGeneration"
    assert "auto_map" not in json.loads((model_dir / "config.json").read_text())

    model = CoMERForConditionalGeneration.from_pretrained(model_dir).eval()
    inputs = comer_processor()(images=[drawing()], text=["x ^ { 2 }"], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    labels = inputs.pop("labels")
    sequences = model.generate(**inputs, num_beams=3, max_length=8)
    save_file({"logits": logits, "labels": labels, "sequences": sequences}, tmp_path / "expected.safetensors")
    drawing().save(tmp_path / "drawing.png")
    load = f"""
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

how = dict(trust_remote_code=True)
expected = load_file({str(tmp_path / "expected.safetensors")!r})
image = Image.open({str(tmp_path / "drawing.png")!r})
assert AutoConfig.from_pretrained("org/tiny-hme", **how).model_type == "comer"
processor = AutoProcessor.from_pretrained("org/tiny-hme", **how)
inputs = processor(images=[image], text=["x ^ {{ 2 }}"], return_tensors="pt")
assert torch.equal(inputs["labels"], expected["labels"])
tokenizer = AutoTokenizer.from_pretrained("org/tiny-hme", **how)
assert tokenizer.get_vocab() == processor.tokenizer.get_vocab()
alone = AutoImageProcessor.from_pretrained("org/tiny-hme", **how)([image], return_tensors="pt")
assert torch.equal(alone["pixel_values"], inputs["pixel_values"])
for auto in (AutoModel, AutoModelForImageTextToText):
    model = auto.from_pretrained("org/tiny-hme", **how).eval()
    assert model.__module__.startswith(PREFIX), model.__module__
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected["logits"])
labels = inputs.pop("labels")
assert torch.equal(model.generate(**inputs, num_beams=3, max_length=8), expected["sequences"])
"""
    run_python(load.replace("PREFIX", repr("transformers_modules")), hub_env, without=["epigraph"])
    # Where the package is there it wins, and nobody is asked to trust anything.
    here = load.replace("PREFIX", repr("epigraph.models")).replace("how = dict(trust_remote_code=True)", "how = {}")
    run_python("import epigraph\n" + here, hub_env)


def test_pushed_classifier_loads_where_epigraph_cannot_be_imported(
    published_classifier, hub, hub_env, run_python, tmp_path
):
    model_dir, card, results = published_classifier
    arguments = [str(model_dir), "epigraph/pixelvit-tiny", "--card", str(card), "--results", str(results)]
    arguments += ["--code-repo", "org/code", "--push-code"]
    run_python([str(ROOT / "scripts" / "push_to_hub.py"), *arguments], hub_env)
    found = hub.model("epigraph/pixelvit-tiny").files
    settings = json.loads(found["preprocessor_config.json"])["auto_map"]
    assert settings == {"AutoImageProcessor": "org/code--image_processing_pixelvit.PixelViTImageProcessor"}
    auto_map = json.loads(found["config.json"])["auto_map"]
    assert auto_map["AutoModelForImageClassification"] == "org/code--modeling_pixelvit.PixelViTForImageClassification"

    drawing().save(tmp_path / "shirt.png")
    model = PixelViTForImageClassification.from_pretrained(model_dir).eval()
    inputs = PixelViTImageProcessor.from_pretrained(model_dir)([drawing()], return_tensors="pt")
    with torch.no_grad():
        save_file({**inputs, "logits": model(**inputs).logits}, tmp_path / "expected.safetensors")
    load = f"""
import torch
from safetensors.torch import load_file
from transformers import AutoBackbone, AutoModel, AutoModelForImageClassification, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

how, name = dict(trust_remote_code=True), "epigraph/pixelvit-tiny"
expected = load_file({str(tmp_path / "expected.safetensors")!r})
processor = AutoImageProcessor.from_pretrained(name, **how)
inputs = processor([{str(tmp_path / "shirt.png")!r}], return_tensors="pt")
assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
for auto in (AutoModel, AutoBackbone, AutoModelForImageClassification):
    model = auto.from_pretrained(name, **how).eval()
    assert model.__module__.startswith(PREFIX), model.__module__
with torch.no_grad():
    torch.testing.assert_close(model(**inputs).logits, expected["logits"])
best = pipeline("image-classification", model=name, **how)({str(tmp_path / "shirt.png")!r})[0]
assert best["label"] == model.config.id2label[int(expected["logits"].argmax())]
torch.testing.assert_close(torch.tensor(best["score"]), expected["logits"].softmax(-1).max())
"""
    run_python(load.replace("PREFIX", repr("transformers_modules")), hub_env, without=["epigraph"])
    here = load.replace("PREFIX", repr("epigraph.models")).replace(
        "how, name = dict(trust_remote_code=True)", "how, name = {}"
    )
    # What the card tells its reader to type works as it stands.
    snippets = re.findall("```python\n(.*?)```", found["README.md"].decode(), re.DOTALL)
    assert len(snippets) == 3
    run_python("\n".join(["import epigraph", here, f"import os; os.chdir({str(tmp_path)!r})", *snippets]), hub_env)


@pytest.mark.parametrize(
    "repo_id, code_repo, message",
    [
        ("org/x", "org/nothing", "code repository org/nothing does not exist"),
        ("org/x/y", "org/code", "org/x/y"),
        ("org/x", "org/code", "org/x was not pushed .*refused"),
    ],
)
def test_a_hub_that_refuses_is_one_sentence(published, hub, monkeypatch, repo_id, code_repo, message):
    model_dir, card, results = published

    class Refusing(publishing.HfApi):
        def create_commit(self, *args, **kwargs):
            raise RuntimeError("refused\nwith many more lines")

    api = Refusing(endpoint=hub.url, token="test-token")
    api.create_repo("org/code")
    monkeypatch.setattr(publishing, "HfApi", lambda: api)
    with pytest.raises((ValueError, ConnectionError), match=message) as caught:
        publishing.push(model_dir, repo_id, card, [results], code_repo)
    assert "\n" not in str(caught.value)
    assert ("model", "org/x") not in hub.repos or not hub.model("org/x").files


def test_card_is_complete(published, no_hub, capsys):
    model_dir, card, results = published
    publishing.push(model_dir, "org/tiny-hme", card, [results], dry_run=True)
    printed = capsys.readouterr().out
    assert "model.safetensors" in printed and "training_curve.png" in printed and "README.md" in printed

    written = ModelCard((model_dir / "README.md").read_text())
    assert written.data.license == "cc-by-nc-sa-3.0"
    values = {(e.dataset_name, e.dataset_split, e.metric_type): e.metric_value for e in written.data.eval_results}
    assert values == {("made-up", "test", "exprate"): 0.125, ("made-up", "test", "exprate_1"): 0.5}
    assert "| made-up | test | standard | 8 | 12.50 % | 50.00 % |" in written.text
    assert "python scripts/evaluate.py --model tiny-hme --data made_up.parquet" in written.text
    assert "![Training curve](training_curve.png)" in written.text
    assert re.findall(r"^## (.+)$", written.text, re.MULTILINE) == cards.SECTIONS


def test_card_of_a_classifier(published_classifier, no_hub, capsys):
    model_dir, card, results = published_classifier
    publishing.push(model_dir, "org/pixelvit-tiny", card, [results], dry_run=True)
    printed = capsys.readouterr().out
    assert "preprocessor_config.json" in printed and "tokenizer" not in printed
    written = ModelCard((model_dir / "README.md").read_text())
    (result,) = written.data.eval_results
    assert written.data.pipeline_tag == result.task_type == "image-classification"
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("accuracy", 0.875, "garments")
    assert "| garments | test | standard | 8 | 87.50 % |" in written.text
    assert "| shirt | 8 | 87.50 % | bag |" in written.text


def test_readme_has_a_table_for_each_model(published, published_classifier, tmp_path, monkeypatch):
    """Whose columns are its own metrics'."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import render_cards

    for model_dir, card, results in (published, published_classifier):
        for path, folder in ((model_dir, "checkpoints"), (card, "model_cards"), (results, "model_cards/results")):
            (tmp_path / "tree" / folder).mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, tmp_path / "tree" / folder / path.name)
    (tmp_path / "tree" / "README.md").write_text("# epigraph\n<!-- results -->\n<!-- /results -->\n")
    monkeypatch.setattr(render_cards, "ROOT", tmp_path / "tree")
    readme = render_cards.rendered()[tmp_path / "tree" / "README.md"]
    assert "| data | split | protocol | n | ExpRate | ≤ 1 error |" in readme
    assert "| data | split | protocol | n | accuracy |" in readme and "| garments | test |" in readme


def test_every_results_file_has_its_table(published, no_hub):
    model_dir, card, results = published
    other = results.with_name("tiny-hme.bitmaps.json")
    other.write_text(results.read_text().replace("made-up", "drawn").replace("made_up", "drawn"))
    assert cards.results_files("tiny-hme", results.parent) == [results, other]
    rendered = cards.render_card(card, [results, other], model_dir)
    for source, data in (("made-up", "made_up.parquet"), ("drawn", "drawn.parquet")):
        assert f"| {source} | test | standard | 8 | 12.50 % | 50.00 % |" in rendered and data in rendered
    assert len(ModelCard(rendered).data.eval_results) == 4


def test_changed_images_and_other_weights_stand_beside_but_not_in_the_model_index(published, tmp_path):
    model_dir, card, results = published
    found = json.loads(results.read_text())
    inverted = {**found, "rows": [{**row, "variant": "inverted", "value": 0.25} for row in found["rows"]]}
    results.with_name("tiny-hme.inverted.json").write_text(json.dumps(inverted))
    (results.parent / "other").mkdir()
    before = {**found, "weights_sha256": "1" * 64, "rows": [{**row, "value": 0.0625} for row in found["rows"]]}
    (results.parent / "other" / "tiny-hme.first.ink.json").write_text(json.dumps(before))
    files, others = cards.results_files("tiny-hme", results.parent), cards.other_files("tiny-hme", results.parent)
    rendered = cards.render_card(card, files, model_dir, others=others)
    assert "| data | split | images | protocol | n |" in rendered
    assert "| made-up | test | as they are | standard | 8 | 12.50 % | 50.00 % |" in rendered
    assert "| made-up | test | inverted | standard | 8 | 25.00 % | 25.00 % |" in rendered
    assert "| first | made-up | test | standard | 8 | 6.25 % | 6.25 % |" in rendered and "1" * 64 in rendered
    assert {row.metric_value for row in ModelCard(rendered).data.eval_results} == {0.125, 0.5}


def truncate_weights(model_dir, card, results):
    path = model_dir / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_a_weight(model_dir, card, results):
    weights = load_file(model_dir / "model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, model_dir / "model.safetensors", {"format": "pt"})


def add_a_weight(model_dir, card, results):
    weights = load_file(model_dir / "model.safetensors") | {"stray": torch.zeros(2)}
    save_file(weights, model_dir / "model.safetensors", {"format": "pt"})


def change_a_weight(model_dir, card, results):
    weights = load_file(model_dir / "model.safetensors")
    weights[sorted(weights)[0]] += 1
    save_file(weights, model_dir / "model.safetensors", {"format": "pt"})


def edit(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


MISTAKES = {
    "no card": (lambda m, c, r: c.unlink(), "there is no card .*tiny-hme.md"),
    "no licence": (lambda m, c, r: edit(c, "license: cc-by-nc-sa-3.0\n", ""), "names no license"),
    "no limits": (lambda m, c, r: edit(c, "## Limits", "## Other"), "needs .*'Limits'"),
    "no block": (lambda m, c, r: edit(c, "<!-- curve -->", ""), "cannot be filled.*curve"),
    "no results": (lambda m, c, r: r.unlink(), "no results at .*tiny-hme.json"),
    "results without rows": (lambda m, c, r: edit(r, '"rows"', '"row"'), "tiny-hme.json lack rows"),
    "results half written": (lambda m, c, r: r.write_text('{"rows": ['), "tiny-hme.json are not JSON"),
    "other weights measured": (change_a_weight, "measured on other weights"),
    "no config": (lambda m, c, r: (m / "config.json").unlink(), "not a model folder"),
    "unknown model": (lambda m, c, r: edit(m / "config.json", '"comer"', '"bert"'), "model type 'bert'"),
    "impossible config": (lambda m, c, r: edit(m / "config.json", '"hidden_size": 16', '"hidden_size": 15'), "15"),
    "other shape": (lambda m, c, r: edit(m / "config.json", '"hidden_size": 16', '"hidden_size": 32'), "do not fit"),
    "no weights": (lambda m, c, r: (m / "model.safetensors").unlink(), "holds no model.safetensors"),
    "truncated weights": (truncate_weights, "model.safetensors is damaged"),
    "missing weight": (drop_a_weight, "do not fit its config: 1 missing"),
    "unknown weight": (add_a_weight, r"1 unknown or of another shape \['stray'\]"),
    "no processor": (lambda m, c, r: (m / "processor_config.json").unlink(), "tiny-hme has no processor_config.json"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_before_anything_is_uploaded(published, no_hub, name):
    damage, message = MISTAKES[name]
    damage(*published)
    model_dir, card, results = published
    with pytest.raises(ValueError, match=message):
        publishing.push(model_dir, "org/tiny-hme", card, [results])


def test_a_classifier_without_its_processor_is_not_pushed(published_classifier, no_hub):
    model_dir, card, results = published_classifier
    (model_dir / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="pixelvit-tiny has no preprocessor_config.json; save the processor"):
        publishing.push(model_dir, "org/pixelvit-tiny", card, [results])


def test_reading_with_a_classifier_says_what_it_is_for(published_classifier):
    model_dir, *_ = published_classifier
    with pytest.raises(ValueError, match=r"classifies images.*pipeline\('image-classification'") as caught:
        epigraph.read(drawing(), model=model_dir)
    assert "\n" not in str(caught.value) and str(model_dir) in str(caught.value)


def test_results_in_the_documents_are_up_to_date(run_python):
    run_python([str(ROOT / "scripts" / "render_cards.py"), "--check"])


def test_fill_is_idempotent_and_keeps_the_rest():
    text = "before\n<!-- results -->\nold\n<!-- /results -->\nafter"
    once = cards.fill(text, "results", r"| \1 |")
    assert once == "before\n<!-- results -->\n| \\1 |\n<!-- /results -->\nafter"
    assert cards.fill(once, "results", r"| \1 |") == once
    with pytest.raises(ValueError, match="exactly one block"):
        cards.fill("nothing", "results", "x")


def writers_results(weights: str) -> dict:
    rates = {"exprate": 0.25, "exprate_1": 0.5, "token_error_rate": 0.3, "n": 40, "others_exprate": 0.4}
    intervals = {"exprate": [-0.05, 0.15], "exprate_1": [0.0, 0.2], "token_error_rate": [-0.1, 0.0]}
    adapted = {**rates, "exprate": 0.3, "intervals": intervals, "share": 0.125, "cpu_seconds": 14.4}
    return {
        "command": "python scripts/adapt_writers.py --model tiny-hme",
        "versions": {"torch": "2.13.0"},
        "weights_sha256": weights,
        "data_sha256": "0" * 64,
        "others": 150,
        "rows": [{"method": "before", **rates}, {"method": "LoRA", **adapted}],
        "writers": [{}, {}],
    }


PEERS_RESULTS = {
    "command": "python scripts/peers.py --model tiny-hme",
    "readers": {"tesseract": {"version": "5.3"}, "tiny": {"model": "tiny-hme", "batch_size": 8}},
    "skipped": {"rapidocr": "there is none"},
    "rows": [
        {"source": "shop", "split": "train", "half": "queries", "reader": reader, "protocol": "36", "n": 9, **values}
        for reader, accuracy, seconds in (("tesseract", 0.25, 0.5), ("tiny", 0.75, 0.01))
        for values in ({"metric": "word_accuracy", "value": accuracy}, {"metric": "cpu_seconds", "value": seconds})
    ],
}
ADAPTATION = {"source": "shop", "half": "queries", "protocol": "36", "n": 9, "ned": 0.75, "seeds": [0, 1]}
ADAPTATION_RESULTS = {
    "command": "python scripts/compare_adaptation.py --model tiny-hme",
    "k": 2,
    "rows": [
        {**ADAPTATION, "method": "as it is", "examples": 0, "word_accuracy": 0.5, "new_labels": None},
        {**ADAPTATION, "method": "LoRA", "examples": 300, "word_accuracy": 0.625, "new_labels": 0.5, "share": 0.0625,
         "interval": [0.0, 0.25], "cpu_seconds": 61.2},
    ],
}  # fmt: skip


def interval(value):
    return {"value": value, "plus_minus": 0.01}


def swept(context, k, size, value):
    """A line of a sweep."""
    entry = {"context": context, "k": k, "pool_size": size, "seeds": [0, 1], "n": 9, "word_accuracy": interval(value)}
    new = {"n": 4, "word_accuracy": interval(0.5), "plain": interval(0.25), "gain": interval(0.25)}
    return entry if context == "none" else {**entry, "gain": interval(value - 0.5), "label_not_in_pool": new}


CONTEXT_RESULTS = {
    "command": "python scripts/evaluate.py --model tiny-hme --context none knn copy",
    "rows": [{"source": "shop", "split": "train", "protocol": "36"}],
    "breakdowns": {
        "sweep": {
            "summary": [swept("none", None, None, 0.5), swept("knn", 2, 300, 0.75), swept("knn", 1, 300, 0.625),
                        swept("knn", 2, 30, 0.6), swept("copy", 1, 300, 0.25), swept("copy", 1, 30, 0.2)]
        }
    },
}  # fmt: skip


def test_words_fill_their_blocks(published, tmp_path):
    model_dir, card, results = published
    weights = cards.weights_sha256(model_dir)
    filled = card.read_text()
    measured = {"peers": PEERS_RESULTS, "context": CONTEXT_RESULTS, "adaptation": ADAPTATION_RESULTS}
    for block, found in measured.items():
        filled = filled.replace("## Training", f"<!-- {block} -->\n<!-- /{block} -->\n\n## Training")
        found = {**found, "weights_sha256": weights}
        if block == "peers":  # its file is about several models
            found = {**PEERS_RESULTS, "readers": {**found["readers"], "tiny": {"weights_sha256": weights}}}
        (tmp_path / f"tiny-hme.{block}{'.shop' * (block == 'context')}.json").write_text(json.dumps(found))
    card.write_text(filled)
    blocks = cards.block_files("tiny-hme", tmp_path)
    assert list(blocks) == list(measured) and cards.results_files("tiny-hme", tmp_path) == [results]
    rendered = cards.render_card(card, [results], model_dir, blocks)
    assert "| shop | train | queries | 9 | 25.00 % | 75.00 % | 0.5000 | 0.0100 |" in rendered
    assert "tesseract (version 5.3)" in rendered and "rapidocr was left out: there is none" in rendered
    assert "| shop | LoRA | 9 | 300 | 62.50 % | +12.50 (+0.0 … +25.0) | 75.00 % | 50.00 % | 6.2 % | 61 |" in rendered
    assert "mean of 2 draws of the examples, seeds 0, 1" in rendered
    assert "| knn | 2 | 300 |" in rendered and "| copy | 1 | 300 |" in rendered and "| none |" in rendered
    assert "| 30 |" not in rendered and "| knn | 1 |" not in rendered and CONTEXT_RESULTS["command"] in rendered
    for block, (path,) in blocks.items():
        path.write_text(path.read_text().replace(weights, "1" * 64))
        with pytest.raises(ValueError, match=f"{path.name} were measured on other weights; run scripts/"):
            cards.render_card(card, [results], model_dir, {block: [path]})


def test_halves_of_words_stand_in_a_column(published):
    _, _, results = published
    rows = [{**row, "half": half} for half in ("queries", None) for row in json.loads(results.read_text())["rows"]]
    table = cards.metrics_table({"rows": rows})
    assert table.startswith("| data | split | half | protocol | n |")
    assert "| made-up | test | queries | standard | 8 |" in table and "| made-up | test |  | standard | 8 |" in table


def test_writers_fill_their_block_and_are_no_results_of_the_model(published, tmp_path):
    model_dir, card, results = published
    measured = writers_results(cards.weights_sha256(model_dir))
    writers = tmp_path / "tiny-hme.writers.json"
    writers.write_text(json.dumps(measured))
    assert writers not in cards.results_files("tiny-hme", tmp_path)
    rendered = cards.render_card(card, [results], model_dir, {"writers": [writers]})
    assert "| 2 writers, 40 expressions |" in rendered and "| before | 25.00 % | 50.00 % |" in rendered
    assert "| LoRA | 30.00 % (-5.0 … +15.0) |" in rendered and "| 12.5 % | 14 | 40.00 % |" in rendered
    assert "python scripts/adapt_writers.py --model tiny-hme" in rendered
    assert {row.metric_type for row in ModelCard(rendered).data.eval_results} == {"exprate", "exprate_1"}
    writers.write_text(json.dumps({**measured, "weights_sha256": "1" * 64}))
    with pytest.raises(ValueError, match="writers.json were measured on other weights; run scripts/adapt_writers.py"):
        cards.render_card(card, [results], model_dir, {"writers": [writers]})
    assert "writers, 40" not in cards.render_card(card, [results], model_dir)
