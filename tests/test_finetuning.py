"""Fine-tuning: what is trained and what stays, new symbols from folder to reading, adapters on disk and on the Hub."""

import csv
import importlib.util
import io
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from drawings import BAR, TEXTS, WAVE
from huggingface_hub import ModelCard, constants
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import epigraph
from epigraph import cards
from epigraph import hub as publishing
from epigraph.data.ink import render
from epigraph.finetuning import FinetuneArguments, drawn, hold_out, main
from epigraph.finetuning_formulas import FormulaTuning, as_read, usable_images
from epigraph.models.processing import comer_processor
from epigraph.reading import load
from epigraph.training import RecipeError, parse_recipe

pytest.importorskip("peft")
datasets = pytest.importorskip("datasets")
ROOT = Path(__file__).resolve().parent.parent
# Two drawings get names that the model, which calls them "1" and "\sin x", has never seen.
NEW = {r"\Omega": BAR, r"\Omega + x": WAVE}
LABELS = {**{text: TEXTS[text] for text in ("+", "a ^ { 2 }")}, **NEW}


def write_folder(folder: Path, labels: dict) -> Path:
    """Images with a metadata.csv."""
    folder.mkdir()
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text"])
        for number, (text, strokes) in enumerate(labels.items()):
            render(strokes).save(folder / f"{number}.png")
            table.writerow([f"{number}.png", text])
    return folder


@pytest.fixture(scope="module")
def formulas(tmp_path_factory):
    """The example formulas as parquet of ink."""
    rows = []
    for file in sorted((ROOT / "examples" / "handwritten-math").glob("*.json")):
        ink = json.loads(file.read_text())
        if "text" in ink:
            rows.append({"id": file.stem, "text": ink["text"], "strokes": ink["strokes"]})
    path = tmp_path_factory.mktemp("formulas") / "formulas.parquet"
    datasets.Dataset.from_list(rows).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def taught(reader, tmp_path_factory):
    """Output folder of a LoRA run that has learnt \\Omega from a folder of images; merged, too."""
    folder = tmp_path_factory.mktemp("taught")
    data = write_folder(folder / "mine", LABELS)
    run("--lora", "--merge", "--model", reader, "--train_data", data, "--output_dir", folder / "run",
        "--new_symbols", "auto", "--eval_share", 0, "--eval_data", data, "--learning_rate", 0.02,
        "--max_steps", 45, "--rank", 8)  # fmt: skip
    return folder / "run"


def run(*arguments):
    main([str(argument) for argument in arguments])


def quick(model, data, folder, *more):
    """A run of four steps."""
    run("--model", model, "--train_data", data, "--output_dir", folder, "--max_steps", 4, "--save_steps", 2,
        "--logging_steps", 1, "--warmup_steps", 1, *more)  # fmt: skip


def trained_state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint-4" / "model.safetensors")


def losses(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def test_lora_changes_nothing_but_the_adapter(tiny_comer, formulas, tmp_path):
    quick(tiny_comer, formulas, tmp_path / "run", "--lora", "--eval_share", 0)
    base, state = load_file(tiny_comer / "model.safetensors"), trained_state(tmp_path / "run")
    plain = {name.replace(".base_layer", ""): tensor for name, tensor in state.items() if "lora_" not in name}
    assert plain.keys() == base.keys()
    assert all(torch.equal(plain[name], base[name]) for name in base)
    assert [name for name in base if name.endswith("running_var")], "BatchNorm's statistics are among them"
    # B starts at zero, so that what differs has been trained.
    moved = {name.split(".lora_B")[0] for name, tensor in state.items() if "lora_B" in name and tensor.any()}
    kinds = ("q_proj", "o_proj", "fc1", "fc2", "stem.conv", "bottleneck.conv", "growth.conv", "projection.conv")
    for kind in (*kinds, "feature_proj"):
        assert any(name.endswith(kind) for name in moved), kind
    saved = load_file(tmp_path / "run" / "final" / "adapter_model.safetensors")
    assert all("lora_" in name for name in saved)
    assert not list((tmp_path / "run" / "final").glob("*.bin"))
    results = json.loads((tmp_path / "run" / "final" / "finetuning.json").read_text())
    assert results["weights"]["trained"] == sum(tensor.numel() for tensor in saved.values())
    assert results["weights"]["parameters"] == load(tiny_comer)[0].num_parameters()


def test_full_fine_tuning_leaves_batch_norm_alone(tiny_comer, formulas, tmp_path):
    quick(tiny_comer, formulas, tmp_path / "run", "--eval_share", 0)
    base, state = load_file(tiny_comer / "model.safetensors"), trained_state(tmp_path / "run")
    changed = {name for name in base if not torch.equal(base[name], state[name])}
    still = set(base) - changed
    assert "lm_head.weight" in changed and "encoder.stem.conv.weight" in changed
    norms = {name.rsplit(".", 1)[0] for name in base if name.endswith("running_mean")}
    assert norms and all(name.rsplit(".", 1)[0] in norms for name in still)
    assert all(f"{norm}.{part}" in still for norm in norms for part in ("running_mean", "running_var", "weight"))
    assert (tmp_path / "run" / "final" / "config.json").is_file(), "a model of its own"


def test_resumed_run_takes_the_same_steps(tiny_comer, formulas, tmp_path):
    arguments = (tiny_comer, formulas, tmp_path / "run", "--lora", "--eval_share", 0)
    quick(*arguments)
    whole = losses(tmp_path / "run")
    adapter = load_file(tmp_path / "run" / "final" / "adapter_model.safetensors")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    shutil.rmtree(tmp_path / "run" / "final")
    quick(*arguments, "--resume")
    assert losses(tmp_path / "run") == pytest.approx(whole, abs=1e-6) and sorted(whole) == [1, 2, 3, 4]
    again = load_file(tmp_path / "run" / "final" / "adapter_model.safetensors")
    assert all(torch.allclose(again[name], tensor, atol=1e-6) for name, tensor in adapter.items())


def test_new_symbol_is_read(taught, reader):
    results = json.loads((taught / "final" / "finetuning.json").read_text())
    assert results["new_symbols"] == [r"\Omega"]
    assert results["held_out"]["before"]["exprate"] < results["held_out"]["after"]["exprate"] == 1
    assert epigraph.read(BAR, model=taught / "final").text == r"\Omega"
    assert epigraph.read(BAR, model=taught / "merged").text == r"\Omega"
    assert epigraph.read(BAR, model=reader).text == "1", "the base is as it was"
    changes = [json.loads(line) for line in (taught / "readings.jsonl").read_text().splitlines()]
    assert {row["text"]: row["after"] for row in changes} == {text: text for text in LABELS}


def test_a_base_that_has_changed_since_is_named(taught, tmp_path):
    shutil.copytree(taught / "final", tmp_path / "adapter")
    results = tmp_path / "adapter" / "finetuning.json"
    results.write_text(json.dumps({**json.loads(results.read_text()), "base_weights_sha256": "0" * 64}))
    with pytest.warns(UserWarning, match="adapter was trained on other weights than .* now has; train it again"):
        load(tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(taught / "final")


def test_adapter_with_new_symbols_loads_by_auto_model(taught, reader):
    adapted, processor = load(taught / "final")
    by_auto = AutoModel.from_pretrained(taught / "final").eval()
    merged = AutoModel.from_pretrained(taught / "merged").eval()
    assert by_auto.config.vocab_size == len(processor.tokenizer) == load(reader)[0].config.vocab_size + 1
    assert by_auto.config.grammar == adapted.config.grammar == merged.config.grammar
    batch = processor(images=[render(BAR), render(WAVE)], text=list(NEW))
    with torch.no_grad():
        expected = by_auto(**batch).logits
        assert expected.shape[-1] == len(processor.tokenizer)
        for model in (adapted, merged):
            torch.testing.assert_close(model(**batch).logits, expected, atol=2e-4, rtol=1e-3)
    assert epigraph.read(BAR, model=by_auto, processor=processor).text == r"\Omega"
    with pytest.raises(ValueError, match="writes symbols that its processor lacks"):
        epigraph.read(BAR, model=by_auto)
    assert epigraph.read(BAR, model=adapted).text == r"\Omega", "a loaded adapter knows its processor"


def test_new_command_enters_the_grammar(tiny_comer, tmp_path):
    data = write_folder(tmp_path / "mine", {r"\hat { x }": BAR, "x": WAVE})
    quick(tiny_comer, data, tmp_path / "run", "--lora", "--new_symbols", r"\hat", "--eval_share", 0)
    model, processor = load(tmp_path / "run" / "final")
    assert model.config.grammar["one"] == [processor.tokenizer.get_vocab()[r"\hat"]]


def test_labels_with_unknown_symbols_are_left_out_with_a_hint(tiny_comer, tmp_path, caplog):
    data = write_folder(tmp_path / "mine", {r"\Omega": BAR, "x": WAVE})
    quick(tiny_comer, data, tmp_path / "run", "--eval_share", 0)
    assert "add --new_symbols auto" in caplog.text
    assert json.loads((tmp_path / "run" / "final" / "finetuning.json").read_text())["examples"] == 1


def test_inkml_folder(tiny_comer, tmp_path):
    for number, x in enumerate((10, 20, 30)):
        (tmp_path / f"{number}.inkml").write_text(
            '<ink xmlns="http://www.w3.org/2003/InkML"><annotation type="truth">$x^2$</annotation>'
            f"<trace>0 0, {x} 40</trace><trace>{x} 0, 0 40</trace></ink>"
        )
    quick(tiny_comer, tmp_path, tmp_path / "run", "--lora")
    results = json.loads((tmp_path / "run" / "final" / "finetuning.json").read_text())
    assert (results["examples"], results["held_out"]["n"]) == (2, 1)


def test_damaged_images_of_parquet_are_left_out_and_named(caplog):
    buffer = io.BytesIO()
    render(BAR).save(buffer, "PNG")
    images = [{"bytes": content, "path": None} for content in (b"no image", buffer.getvalue())]
    rows = datasets.Dataset.from_dict({"id": ["bad", "good"], "text": ["x", "1"], "image": images})
    rows = rows.cast_column("image", datasets.Image())
    assert usable_images(rows)["id"][:] == ["good"] and "left out: bad: not an image" in caplog.text
    with pytest.raises(ValueError, match="none of the 1 images can be opened"):
        usable_images(rows.select([0]))


def test_large_images_are_shrunk_not_left_out(tiny_comer, tmp_path):
    data = write_folder(tmp_path / "mine", {"x": BAR})
    Image.open(data / "0.png").resize((1600, 1200)).save(data / "0.png")
    quick(tiny_comer, data, tmp_path / "run", "--eval_share", 0)
    assert json.loads((tmp_path / "run" / "final" / "finetuning.json").read_text())["examples"] == 1


def test_images_train_at_the_size_that_they_are_read_at():
    page = Image.new("L", (1200, 900), 255)
    ink = render(WAVE)
    page.paste(ImageOps.invert(ink), (700, 500))
    pages = datasets.Dataset.from_dict({"id": ["page"], "text": ["x"], "image": [page]}).cast_column(
        "image", datasets.Image()
    )
    trained = as_read(pages, comer_processor(clean=True, symbol_height=28.0, crop_margin=4))[0]["image"]
    # As high as the ink was drawn, but for the margin and the accuracy of the estimate.
    height, drawn = ImageOps.crop(trained, 4).height, ImageOps.crop(ink, 12).height
    assert abs(height - drawn) < 0.2 * drawn and trained.width < 100


def test_hold_out_is_of_the_asked_size_and_repeats():
    rows = datasets.Dataset.from_dict({"id": [str(number) for number in range(10)]})
    kept, held = hold_out(rows, 0.3, seed=5)
    assert len(held) == 3 and sorted(kept["id"][:] + held["id"][:]) == rows["id"][:]
    assert held["id"][:] == hold_out(rows, 0.3, seed=5)[1]["id"][:] != hold_out(rows, 0.3, seed=6)[1]["id"][:]
    assert hold_out(rows, 0, seed=5) == (rows, None)


def test_words_of_a_receipt_are_held_out_together():
    rows = datasets.Dataset.from_dict({"id": [f"{receipt}#{word}" for receipt in "abcd" for word in range(3)]})
    kept, held = hold_out(rows, 0.25, seed=1)
    assert len({name[0] for name in held["id"]}) == 1 and len(held) == 3 and len(kept) == 9
    with pytest.raises(ValueError, match="one example cannot be trained on and measured with"):
        hold_out(rows.select(range(3)), 0.25, seed=1)


def test_rows_are_drawn_in_their_order_and_again():
    rows = datasets.Dataset.from_dict({"id": list("abcdefgh")})
    some = drawn(rows, 3, seed=1)["id"][:]
    assert len(set(some)) == 3 and some == sorted(some) == drawn(rows, 3, seed=1)["id"][:]
    assert some != drawn(rows, 3, seed=2)["id"][:]
    assert drawn(rows, None, seed=1) is rows and drawn(rows, 9, seed=1) is rows


def test_settings_follow_the_amount_of_data():
    args = FinetuneArguments(output_dir="x", train_data="y", lora=True)
    few, many = args.scaled_to(10), args.scaled_to(100_000)
    assert (few.max_steps, many.max_steps) == (40, 2000) and args.scaled_to(100).max_steps == 260
    assert few.learning_rate > FinetuneArguments(output_dir="x", train_data="y").scaled_to(10).learning_rate


def test_recipe_and_command_line(tmp_path):
    recipe = ROOT / "recipes" / "comer_lora.yaml"
    more = ["--train_data", "mine", "--output_dir", "out", "--lora", "--rank", "4"]
    args = parse_recipe(["--recipe", str(recipe), *more], FinetuneArguments)
    plain = FinetuneArguments(output_dir="out", train_data="mine", lora=True, rank=4, augmentation=args.augmentation)
    assert args == plain.scaled_to(1).__class__(**{**vars(plain), "learning_rate": args.learning_rate})
    assert args.learning_rate == plain.scaled_to(1).learning_rate, "the recipe writes the defaults out"
    assert args.augmentation == FormulaTuning.augmentation


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--lora", "--target_modules", "queries"], "target_modules: .*queries"),
        (["--new_symbols", "omega"], "new_symbols: 'omega' is not one token"),
        (["--eval_share", "1"], "eval_share must be at least 0 and below 1, not 1.0"),
        (["--freeze_norms_at", "5"], "fine-tuning never moves BatchNorm"),
        (["--augmentation", '{"rotatoin": 2}'], "augmentation: unknown key rotatoin"),
        (["--train_data", "nowhere"], "nowhere: no such file or folder"),
        (["--source", "shop", "--half", "pool"], "source, half: for words only"),
        (["--train_limit", "0"], "train_limit must be at least 1, not 0"),
        (["--train_data", '{"path": "x"}'], "train_data takes paths alone"),
    ],
)
def test_mistakes_are_one_sentence(tiny_comer, formulas, tmp_path, arguments, message):
    with pytest.raises((RecipeError, FileNotFoundError), match=message):
        quick(tiny_comer, formulas, tmp_path / "run", *arguments)
    assert not (tmp_path / "run" / "final").exists()


def test_runs_and_adapters_are_not_built_upon_by_mistake(taught, formulas, tmp_path):
    with pytest.raises(RecipeError, match="already holds checkpoints; add --resume"):
        quick(taught / "merged", formulas, taught)
    with pytest.raises(ValueError, match="final is an adapter; start from its base model"):
        quick(taught / "final", formulas, tmp_path / "run", "--lora")
    one = write_folder(tmp_path / "one", {"x": BAR})
    with pytest.raises(ValueError, match="one example cannot be trained on and measured with"):
        quick(taught / "merged", one, tmp_path / "run")


# ---------------------------------------------------------------------------------------------- reading with adapters


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.pop("base_model_name_or_path"), "adapter_config.json cannot be used .KeyError"),
        (lambda c: c.update(base_model_name_or_path=""), "names no base_model_name_or_path"),
        (lambda c: c.update(base_model_name_or_path="/no/such"), "its base model cannot be loaded: /no/such: no such"),
        (lambda c: c.update(r=3), "the adapter does not fit its base model"),
        (lambda c: c.update(target_modules=["fc1", "fc2"]), "weights are missing or unknown to the base, as base_mod"),
        (lambda c: c.update(target_modules=["layers"]), "the adapter does not fit its base model"),
        (lambda c: c.update(base_model_name_or_path="ITSELF"), "is an adapter, too; merge that one first"),
    ],
)
def test_damaged_adapter_is_one_sentence(taught, tmp_path, change, message):
    folder = shutil.copytree(taught / "final", tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    change(config)
    text = json.dumps(config).replace("ITSELF", str(folder))
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_pickled_adapter_is_never_opened(taught, tmp_path):
    folder = shutil.copytree(taught / "final", tmp_path / "adapter")
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="an adapter without adapter_model.safetensors"):
        load(folder)


def test_evaluation_takes_an_adapter(taught, tmp_path):
    from epigraph.evaluation import main as evaluate

    data = write_folder(tmp_path / "data", NEW)
    evaluate(["--model", str(taught / "final"), "--data", str(data), "--output", str(tmp_path / "results.json")])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["weights_sha256"] == cards.weights_sha256(taught / "final")
    assert next(row["value"] for row in results["rows"] if row["metric"] == "exprate") == 1


# -------------------------------------------------------------------------------------------------------- publishing


def test_adapter_of_a_folder_is_not_pushed_without_a_repository(taught, monkeypatch):
    monkeypatch.setattr(publishing, "HfApi", lambda: pytest.fail("a Hub was contacted"))
    with pytest.raises(ValueError, match="which nobody else has; push that model first and name its repository by"):
        publishing.main([str(taught / "final"), "org/mine"])
    with pytest.raises(ValueError, match="--card is for whole models"):
        publishing.main([str(taught / "final"), "org/mine", "--card", "card.md"])
    with pytest.raises(ValueError, match="--base-repo is for adapters"):
        publishing.main([str(taught / "merged"), "org/mine", "--base-repo", "org/base"])


def test_shipped_checkpoint_is_known_by_its_repository(taught):
    folder = str(Path(epigraph.reading.default_checkpoint("maths")).resolve())
    assert publishing.published_base(folder, taught) == "epigraph/comer-hme"
    assert publishing.published_base("someone/model", taught) == "someone/model"


@pytest.fixture
def api(hub, monkeypatch):
    """Publishing goes to the test Hub."""
    api = publishing.HfApi(endpoint=hub.url, token="test-token")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(publishing, "HfApi", lambda: api)
    return api


def test_adapter_from_the_hub_is_the_adapted_model(taught, reader, api, hub, hub_env, run_python, tmp_path):
    api.create_repo("org/base")
    api.upload_folder(repo_id="org/base", folder_path=reader)
    publishing.main([str(taught / "final"), "org/mine", "--base-repo", "org/base"])
    files = hub.model("org/mine").files
    assert "model.safetensors" not in files and "config.json" not in files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    assert str(reader.parent) not in "".join(files[name].decode() for name in files if not name.endswith("tensors"))
    card = ModelCard(files["README.md"].decode())
    assert (card.data.base_model, card.data.library_name) == ("org/base", "peft")
    assert "| after | 100.0 %" in card.text and "new symbols: \\Omega" in card.text

    model, processor = load(taught / "final")
    batch = processor(images=[render(BAR)], text=[r"\Omega"])
    with torch.no_grad():
        save_file({**batch, "logits": model(**batch).logits}, tmp_path / "expected.safetensors")
    run_python(
        rf"""
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor
import epigraph
batch = load_file({str(tmp_path / "expected.safetensors")!r})
expected = batch.pop("logits")
model = AutoModel.from_pretrained("org/mine").eval()
with torch.no_grad():
    torch.testing.assert_close(model(**batch).logits, expected, atol=2e-4, rtol=1e-3)
assert len(AutoProcessor.from_pretrained("org/mine").tokenizer) == model.config.vocab_size == expected.shape[-1]
assert epigraph.read({BAR!r}, model="org/mine").text == r"\Omega"
""",
        hub_env,
    )


def test_adapter_is_pushed_onto_its_own_base_only(taught, tiny_comer, api, hub):
    with pytest.raises(ValueError, match="the base model org/base is not on the Hub; push it first"):
        publishing.push_adapter(taught / "final", "org/mine", "org/base")
    api.create_repo("org/base")
    api.upload_folder(repo_id="org/base", folder_path=tiny_comer)
    with pytest.raises(ValueError, match="org/base holds other weights than .* was trained on"):
        publishing.push_adapter(taught / "final", "org/mine", "org/base")
    assert ("model", "org/mine") not in hub.repos


# ----------------------------------------------------------------------------------------- scripts/adapt_writers.py


@pytest.mark.slow
def test_adapt_writers_measures_halves_and_goes_on(reader, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("adapt_writers", ROOT / "scripts" / "adapt_writers.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    names = ["many", "some", "one", "unknown"]
    drawings = [(text, [list(sum(stroke, ())) for stroke in strokes]) for text, strokes in TEXTS.items()]
    rows = [
        {"id": f"{name}-{number}", "writer": name, "split": "test", "text": text, "strokes": strokes}
        for name, count in zip(names, (4, 3, 1, 4))
        for number, (text, strokes) in enumerate(drawings[:count])
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data.parquet")
    arguments = [
        "adapt_writers.py",
        "--model",
        str(reader),
        "--data",
        str(tmp_path / "data.parquet"),
        "--split",
        "test",
    ]
    arguments += ["--writers", "2", "--unknown", "unknown", "--output_dir", str(tmp_path / "runs")]
    monkeypatch.setattr("sys.argv", [*arguments, "--output", str(tmp_path / "out.json")])
    script.main()
    results = json.loads((tmp_path / "out.json").read_text())
    assert [(writer["trained_on"], writer["n"]) for writer in results["writers"]] == [(2, 2), (1, 2)]
    assert [row["method"] for row in results["rows"]] == ["before", "LoRA", "full fine-tuning"]
    assert results["others"] == 5 and results["rows"][0]["n"] == 4 and results["rows"][0]["exprate"] == 1
    low, high = results["rows"][1]["intervals"]["exprate"]
    assert low <= results["rows"][1]["exprate"] - 1 <= high <= 0
    halves = [tmp_path / "runs" / "0" / f"{half}.parquet" for half in ("train", "measured")]
    trained, measured = (set(datasets.Dataset.from_parquet(str(half))["id"]) for half in halves)
    assert trained | measured == {f"many-{number}" for number in range(4)} and not trained & measured

    monkeypatch.setattr(script, "finetune", lambda *_: pytest.fail("it had been trained"))
    script.main()
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == results["rows"]
    other = shutil.copytree(reader, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({**weights, "lm_head.bias": weights["lm_head.bias"] + 1}, other / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr("sys.argv", [*arguments, "--output", str(tmp_path / "out.json"), "--model", str(other)])
    with pytest.raises(SystemExit, match="was adapted from other weights; name another --output_dir"):
        script.main()
