"""Fine-tuning on words: the adapter alone is trained, on the words that were named, and reads what it was taught."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from word_drawings import WORDS, draw

import epigraph
from epigraph import cards
from epigraph.context_pool import ContextPool
from epigraph.finetuning import main
from epigraph.models.configuration_e2str import E2STRConfig
from epigraph.models.modeling_e2str import E2STRForTextRecognition
from epigraph.reading import load
from epigraph.training import RecipeError, parse_recipe

pytest.importorskip("peft")
datasets = pytest.importorskip("datasets")
ROOT = Path(__file__).resolve().parent.parent
# Other texts than the model reads in these drawings, of characters that it has learnt to write.
NEW = {"cat": "taxi", "42": "24"}


def write_folder(folder: Path, labels: dict[str, str], copies: int = 1) -> Path:
    """Drawings with a metadata.csv; the label may be another than what is drawn."""
    folder.mkdir()
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text", "source"])
        for word, text in labels.items():
            for copy in range(copies):
                draw(word, copy).save(folder / f"{word}{copy}.png")
                table.writerow([f"{word}{copy}.png", text, "shop" if copy % 2 == 0 else "street"])
    return folder


def run(*arguments):
    main([str(argument) for argument in arguments])


def quick(model, data, folder, *more):
    """A run of two steps."""
    run("--model", model, "--train_data", data, "--output_dir", folder, "--max_steps", 2, "--save_steps", 2,
        "--warmup_steps", 1, "--num_workers", 0, *more)  # fmt: skip


def results_of(folder: Path) -> dict:
    return json.loads((folder / "final" / "finetuning.json").read_text())


@pytest.fixture(scope="module")
def taught(word_reader, tmp_path_factory):
    """Output folder of a LoRA run that has learnt `NEW`, from images that are not varied; merged, too."""
    folder = tmp_path_factory.mktemp("taught")
    data = write_folder(folder / "mine", NEW)
    run("--lora", "--merge", "--model", word_reader, "--train_data", data, "--output_dir", folder / "run",
        "--eval_data", data, "--learning_rate", 0.01, "--max_steps", 60, "--augmentation", "{}")  # fmt: skip
    return folder / "run"


def test_the_adapter_reads_what_it_was_taught(taught, word_reader):
    results = results_of(taught)
    assert results["unit"] == "words" and results["examples"] == 2 and results["new_symbols"] == []
    before, after = results["held_out"]["before"], results["held_out"]["after"]
    assert before["word_accuracy"] == 0 and after["word_accuracy"] == after["ned"] == 1
    for word, text in NEW.items():
        assert epigraph.read(draw(word), taught / "final").text == text
        assert epigraph.read(draw(word), taught / "merged").text == text
        assert epigraph.read(draw(word), word_reader).text == word, "the base is as it was"
    readings = [json.loads(line) for line in (taught / "readings.jsonl").read_text().splitlines()]
    assert {row["text"]: (row["before"], row["after"]) for row in readings} == {v: (k, v) for k, v in NEW.items()}


def test_nothing_but_the_adapter_is_trained(taught, word_reader):
    saved = load_file(taught / "final" / "adapter_model.safetensors")
    assert all("lora_" in name for name in saved) and not (taught / "final" / "model.safetensors").exists()
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "fc1", "fc2")
    parts = ("vision_model", "resampler", "cross_attention", "self_attn")
    for name in (*kinds, *parts):
        assert any(name in key and tensor.any() for key, tensor in saved.items() if "lora_B" in key), name
    weights = results_of(taught)["weights"]
    assert weights["trained"] == sum(tensor.numel() for tensor in saved.values())
    assert weights["parameters"] == load(word_reader)[0].num_parameters()


def test_an_adapter_loads_by_auto_model_and_reads_the_same(taught):
    adapted, processor = load(taught / "final")
    by_auto = AutoModel.from_pretrained(taught / "final").eval()
    batch = processor([draw("cat"), draw("42")], ["taxi", "24"])
    with torch.no_grad():
        expected = by_auto(**batch).logits
        torch.testing.assert_close(adapted(**batch).logits, expected, atol=1e-4, rtol=1e-3)
    assert epigraph.read(draw("cat"), by_auto, processor=processor).text == "taxi"


def test_an_adapter_reads_with_a_pool_of_its_own_encoder(taught, word_reader):
    model, processor = load(taught / "final")
    pool = ContextPool(epigraph.encoder(model, processor))
    pool.add([draw("SIGN", 1)], ["XY"])
    result = epigraph.read(draw("SIGN"), model, processor=processor, pool=pool)
    assert [example.text for example in result.examples] == ["XY"]
    with pytest.raises(ValueError, match="made by another encoder"):
        epigraph.read(draw("SIGN"), word_reader, pool=pool)


def test_training_goes_on_from_an_adapter_of_words(taught):
    from epigraph.pretraining import task_of
    from epigraph.training import PretrainArguments

    assert task_of(PretrainArguments(output_dir="x", train_data="y", model=str(taught / "final"))) == "words"


def test_a_pool_belongs_to_the_stem_too():
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = E2STRConfig(
        stem_channels=[4, 16],
        vision_config={"image_size": [8, 32], "patch_size": 4, "intermediate_size": 16, **sizes},
        resampler_config={"num_hidden_layers": 1, "num_latents": 2, "num_attention_heads": 2, "head_dim": 8},
        text_config={"ffn_dim": 16, **sizes},
    )
    model = E2STRForTextRecognition(config)
    before = epigraph.encoder(model, None).weights_sha256
    assert epigraph.encoder(model, None).weights_sha256 == before
    with torch.no_grad():
        next(model.model.stem.parameters()).add_(1)
    assert epigraph.encoder(model, None).weights_sha256 != before


def test_evaluation_takes_an_adapter(taught, tmp_path):
    from epigraph.evaluation import main as evaluate

    data = write_folder(tmp_path / "data", NEW)
    evaluate(["--model", str(taught / "final"), "--data", str(data), "--output", str(tmp_path / "results.json")])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["weights_sha256"] == cards.weights_sha256(taught / "final")
    assert next(row["value"] for row in results["rows"] if row["metric"] == "word_accuracy") == 1


def test_a_base_that_has_changed_since_is_named(taught, word_reader, tmp_path):
    other = shutil.copytree(word_reader, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    name = next(name for name in weights if name.endswith("attention_gate"))
    save_file({**weights, name: weights[name] + 1}, other / "model.safetensors", {"format": "pt"})
    adapter = shutil.copytree(taught / "final", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(other)}))
    with pytest.warns(UserWarning, match="was trained on other weights than"):
        load(adapter)


def test_the_card_of_an_adapter_is_about_words(taught):
    card = cards.adapter_card("me/shop", "epigraph/e2str-small", results_of(taught), None)
    assert 'epigraph.read("word.png", model="me/shop")' in card
    assert "| 2 held-out words | word accuracy | 1-NED |" in card
    assert "scene-text-recognition" in card and "latex" not in card


def test_source_half_and_limit_choose_the_words(word_reader, tmp_path):
    data = write_folder(tmp_path / "data", {word: word for word in WORDS}, copies=6)
    rows = epigraph.data.words.load_words(data, source="shop")
    assert len(rows) == 12
    pool = [name for name in rows["id"] if int(hashlib.sha1(name.encode()).hexdigest(), 16) % 2 == 0]
    assert 1 < len(pool) < 12
    quick(word_reader, data, tmp_path / "half", "--lora", "--source", "shop", "--half", "pool", "--eval_share", 0)
    assert results_of(tmp_path / "half")["examples"] == len(pool)
    quick(word_reader, data, tmp_path / "few", "--lora", "--source", "shop", "--train_limit", 5, "--eval_share", 0.2)
    assert (results_of(tmp_path / "few")["examples"], results_of(tmp_path / "few")["held_out"]["n"]) == (4, 1)


def test_full_fine_tuning_trains_everything(word_reader, tmp_path):
    data = write_folder(tmp_path / "data", NEW)
    quick(word_reader, data, tmp_path / "run", "--eval_share", 0)
    base, trained = (load_file(folder / "model.safetensors") for folder in (word_reader, tmp_path / "run" / "final"))
    moved = {name for name in base if not torch.equal(base[name], trained[name])}
    assert any("vision_model" in name for name in moved) and any("embed_tokens" in name for name in moved)
    assert results_of(tmp_path / "run")["weights"]["share"] == 1


def test_damaged_images_are_left_out_and_named(word_reader, tmp_path, caplog):
    data = write_folder(tmp_path / "data", NEW)
    whole = (data / "420.png").read_bytes()
    (data / "420.png").write_bytes(whole[: len(whole) // 2])
    quick(word_reader, data, tmp_path / "run", "--lora", "--eval_share", 0)
    assert results_of(tmp_path / "run")["examples"] == 1 and "420" in caplog.text


def test_labels_that_the_model_cannot_write_are_left_out(word_reader, tmp_path, caplog):
    data = write_folder(tmp_path / "data", {"cat": "猫", "42": "24"})
    quick(word_reader, data, tmp_path / "run", "--lora", "--eval_share", 0)
    assert results_of(tmp_path / "run")["examples"] == 1 and "outside the character set" in caplog.text


def test_the_recipe_writes_the_defaults_out(word_reader, tmp_path):
    from epigraph.finetuning import FinetuneArguments
    from epigraph.finetuning_words import WordTuning

    more = ["--train_data", str(write_folder(tmp_path / "data", NEW)), "--output_dir", "out", "--model", "words"]
    args = parse_recipe(["--recipe", str(ROOT / "recipes" / "e2str_lora.yaml"), *more], FinetuneArguments)
    plain = parse_recipe(["--lora", *more], FinetuneArguments)
    tuning = WordTuning(plain, *load(word_reader))
    assert args.augmentation == tuning.augmentation
    assert args.learning_rate == plain.scaled_to(1).learning_rate
    same = {"augmentation": None, "learning_rate": 0.0}
    assert {**vars(args), **same} == vars(plain)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--new_symbols", "auto"], "new_symbols: for formulas only"),
        (["--zoom", "1", "2"], "zoom: for formulas only"),
        (["--augmentation", '{"geometri": 1}'], "augmentation: unknown key geometri"),
        (["--source", "nowhere"], "no source 'nowhere'; there are shop"),
        (["--lora", "--target_modules", "queries"], "target_modules: .*queries"),
    ],
)
def test_mistakes_are_one_sentence(word_reader, tmp_path, arguments, message):
    data = write_folder(tmp_path / "data", NEW)
    with pytest.raises((RecipeError, ValueError), match=message):
        quick(word_reader, data, tmp_path / "run", *arguments)
    assert not (tmp_path / "run" / "final").exists()
