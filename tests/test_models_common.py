"""What every model promises, as one suite: a new model adds a `Spec` to `model_specs.SPECS` and nothing else.

That a pushed model loads through the Hub, with and without the package, is in test_hub.py; adapters are pushed here.
"""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from model_specs import SPECS
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, Trainer, TrainingArguments
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import epigraph
from epigraph import models
from epigraph.hub import check_model, entry_of
from epigraph.models.attention_blocked import _BlockedAttention


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


# What takes a process of its own is asked of one model of each type.
ONE_OF_EACH_TYPE = {spec.model.config_class.model_type: name for name, spec in SPECS.items()}.values()


@pytest.fixture
def saved(spec, tmp_path):
    """Folder of a model with its processor."""
    folder = tmp_path / "saved"
    spec.build().save_pretrained(folder)
    spec.processor().save_pretrained(folder)
    return folder


def forward(spec, model, batch):
    with torch.no_grad():
        return spec.outputs(model.eval(), batch)


def assert_same(found, expected):
    """Equal, but for the last bit of products with weights that lie elsewhere in memory."""
    torch.testing.assert_close(found, expected, atol=2e-7, rtol=0)


def take_steps(model, batch, steps, learning_rate=1e-2, train=True):
    """Losses of so many steps on one batch."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], learning_rate)
    losses = []
    model.train(train)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# --------------------------------------------------------------------------------------------- configuration


def test_every_model_is_here():
    """But for the bodies, which have no loss; `test_other_heads_take_the_same_body` has them."""
    found = {spec.model for spec in SPECS.values()}
    bodies = {models.PixelViTModel, models.PixelViTBackbone}
    assert {cls for _, classes, *_ in models.MODELS for cls in classes.values()} == found | bodies


def test_config_round_trip(spec, tmp_path):
    config_class = spec.model.config_class
    config = config_class(**{**spec.config, **spec.others})
    config.save_pretrained(tmp_path)
    for other in (config_class.from_dict(config.to_dict()), AutoConfig.from_pretrained(tmp_path)):
        assert type(other) is config_class
        assert json.loads(other.to_json_string()) == json.loads(config.to_json_string())
        assert all(getattr(other, name) == value for name, value in spec.others.items())
    assert all(getattr(config_class(), name) != value for name, value in spec.others.items())


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        pytest.param(spec, *mistake, id=f"{name}-{mistake[0]}")
        for name, spec in SPECS.items()
        for mistake in spec.mistakes
    ],
)
def test_impossible_configurations_are_refused(spec, settings, message):
    with pytest.raises(StrictDataclassError, match=message):
        spec.model.config_class(**settings)


# --------------------------------------------------------------------------------------------- saving and loading


def test_saved_model_is_the_same(spec, saved):
    """Bit for bit, buffers included, through every Auto class that knows it; nothing is pickled."""
    model, batch = spec.build(), spec.collate(spec.rows())
    assert not [path for path in saved.iterdir() if path.suffix not in (".json", ".safetensors")]
    for loader in [*spec.auto, spec.model]:
        loaded, info = loader.from_pretrained(saved, output_loading_info=True)
        assert not any(info.values()), info
        assert type(loaded) is spec.model and not loaded.training
        expected = model.state_dict()
        assert loaded.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
        assert all(torch.equal(b, dict(model.named_buffers())[name]) for name, b in loaded.named_buffers())
        assert_same(forward(spec, loaded, batch), forward(spec, model, batch))


def test_other_heads_take_the_same_body(spec, saved):
    """So that a pre-trained model is fine-tuned by naming its folder, and its features are had without its head."""
    body = f"{spec.model.base_model_prefix}."

    def bare(weights):
        return {name.removeprefix(body): tensor for name, tensor in weights.items()}

    weights = spec.build().state_dict()
    shared = bare({name: tensor for name, tensor in weights.items() if name.startswith(body)})
    _, classes, *_ = entry_of(spec.model.config_class.model_type, saved)
    for cls in {*classes.values()} - {spec.model}:
        loaded, info = cls.from_pretrained(saved, output_loading_info=True)
        assert shared and not [name for name in info["missing_keys"] if name.startswith(body)]
        assert not info["mismatched_keys"]
        found = bare(loaded.state_dict())
        assert all(torch.equal(found[name], tensor) for name, tensor in shared.items())


def test_model_built_on_the_meta_device(spec, saved):
    """Everything that a model needs is in what is saved of it: no table is made in __init__ and lost."""
    with torch.device("meta"):
        model = spec.model(spec.model.config_class.from_pretrained(saved))
    model.load_state_dict(spec.build().state_dict(), assign=True)
    assert not [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    batch = spec.collate(spec.rows())
    assert_same(forward(spec, model, batch), forward(spec, spec.build(), batch))


def test_a_missing_tensor_is_reported_and_initialised(spec, saved):
    weights = load_file(saved / "model.safetensors")
    gone = sorted(name for name, _ in spec.build().named_parameters() if name in weights)
    save_file({name: weights[name] for name in weights if name not in gone}, saved / "model.safetensors")
    torch.manual_seed(0)
    loaded, info = spec.model.from_pretrained(saved, output_loading_info=True)
    assert sorted(set(info["missing_keys"]) - set(spec.model._tied_weights_keys or {})) == gone
    torch.manual_seed(0)
    fresh = spec.model(loaded.config)
    for name in gone:
        found, wanted = loaded.get_parameter(name), fresh.get_parameter(name)
        sizes = [tensor.square().mean().sqrt() for tensor in (found, wanted)]
        few = found.numel() < 500
        assert found.isfinite().all() and torch.isclose(*sizes, rtol=0.5 if few else 0.25, atol=1e-3), name


def test_processor_loads_through_every_auto_class(spec, saved):
    processor, rows = spec.processor(), spec.rows()
    loaded, images = AutoProcessor.from_pretrained(saved), [row["image"] for row in rows]
    assert type(loaded) is type(processor)
    expected, found = (spec.batch(each, images, [row["answer"] for row in rows]) for each in (processor, loaded))
    assert expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    alone = AutoImageProcessor.from_pretrained(saved)
    assert type(alone) is type(getattr(processor, "image_processor", processor))
    expected, found = (each(images=images, return_tensors="pt")["pixel_values"] for each in (processor, alone))
    assert torch.equal(found, expected.view_as(found))  # a processor may give several images to each example
    if spec.tokenizer:
        assert AutoTokenizer.from_pretrained(saved).get_vocab() == spec.tokenizer.get_vocab()


@pytest.mark.parametrize("spec", ONE_OF_EACH_TYPE, indirect=True)
def test_loads_as_custom_code_where_the_package_is_missing(spec, saved, run_python):
    """The flat models folder is all the code a model needs. (test_hub.py does this through a Hub.)"""
    for path in Path(models.__file__).parent.glob("*.py"):
        shutil.copy(path, saved / path.name)
    config = json.loads((saved / "config.json").read_text())
    config_class, classes, *_ = entry_of(config["model_type"], saved)
    named = {"AutoConfig": config_class, **classes}
    config["auto_map"] = {auto: f"{cls.__module__.split('.')[-1]}.{cls.__name__}" for auto, cls in named.items()}
    (saved / "config.json").write_text(json.dumps(config))
    batch = spec.collate(spec.rows())
    expected = spec.build()(**batch)
    save_file({**batch, "expected": expected.loss.detach()[None]}, saved.parent / "batch.safetensors")
    done = run_python(
        f"""
import torch
from safetensors.torch import load_file
from transformers import {spec.auto[0].__name__} as auto

model = auto.from_pretrained({str(saved)!r}, trust_remote_code=True)
batch = load_file({str(saved.parent / "batch.safetensors")!r})
expected = batch.pop("expected")
assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
torch.testing.assert_close(model(**batch).loss[None], expected)
model.set_attn_implementation("blocked")
assert not [name for name in sys.modules if name.startswith("epigraph.")]
print("loaded")
""",
        {"HF_HOME": str(saved.parent / "hf")},
        without=["epigraph"],
    )
    assert "loaded" in done.stdout


def test_what_was_saved_may_be_published(spec, saved):
    """Names in the file are not the model's for every model."""
    assert check_model(saved)["model_type"] == spec.model.config_class.model_type
    weights = load_file(saved / "model.safetensors")
    gone = sorted(weights)[len(weights) // 2]
    save_file({name: weights[name] for name in weights if name != gone}, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="do not fit its config: 1 missing"):
        check_model(saved)


# --------------------------------------------------------------------------------------------- what a batch is


def test_a_batch_is_its_examples(spec):
    model, rows = spec.build(), spec.rows(4)
    together = forward(spec, model, spec.collate(rows))
    for index, row in enumerate(rows):
        alone = forward(spec, model, spec.collate([row]))[0]
        own = together[index][tuple(slice(0, size) for size in alone.shape)]
        torch.testing.assert_close(own, alone, atol=2e-5, rtol=1e-4)


def test_padding_changes_nothing(spec):
    if spec.pad is None:
        pytest.skip("its images have one size")
    model, batch = spec.build(), spec.collate(spec.rows())
    found, expected = forward(spec, model, spec.pad(batch)), forward(spec, model, batch)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_evaluation_is_deterministic_and_dropout_is_for_training(spec):
    model, batch = spec.build(**spec.dropout), spec.collate(spec.rows())
    first = forward(spec, model, batch)
    with torch.no_grad():
        noisy = [model.train()(**batch).loss for _ in range(2)]
    assert noisy[0] != noisy[1]
    model.load_state_dict(spec.build(**spec.dropout).state_dict())  # training has moved the statistics
    assert torch.equal(forward(spec, model, batch), first)


# --------------------------------------------------------------------------------------------- arithmetic


def test_attention_implementations_agree(spec, monkeypatch):
    """Those of transformers, and ours, which computes bfloat16 itself."""
    calls, function = [], _BlockedAttention.apply
    monkeypatch.setattr(_BlockedAttention, "apply", lambda *inputs: calls.append(inputs) or function(*inputs))
    batch, model = spec.collate(spec.rows()), spec.build()
    exact, rounded = {}, {}
    for found in (exact, rounded):
        for name in ("eager", "sdpa", "blocked"):
            model.set_attn_implementation(name)
            assert model.config._attn_implementation == name and not calls
            found[name] = forward(spec, model, batch).float()
        model = spec.build().bfloat16()
    for name in ("sdpa", "blocked"):
        torch.testing.assert_close(exact[name], exact["eager"], atol=2e-5, rtol=1e-4)
        assert (rounded[name] - exact["eager"]).pow(2).mean().sqrt() < 0.05 * exact["eager"].std()
    assert calls and all(tensor.dtype == torch.bfloat16 for call in calls for tensor in call[:3])


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradient_checkpointing_changes_nothing(spec, use_reentrant):
    """Same loss, gradients and BatchNorm statistics, although the forward pass runs twice; dropout is on."""
    batch, found = spec.collate(spec.rows()), []
    for checkpointing in (False, True):
        model = spec.build(**spec.dropout).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        torch.manual_seed(1)
        loss = model(**batch).loss
        loss.backward()
        found.append((loss, {n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers())))
    plain, checkpointed = found
    assert plain[0] == checkpointed[0]
    for one, other in zip(plain[1:], checkpointed[1:]):
        for name in one:
            torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=1e-4)


def test_bfloat16_is_close(spec, saved):
    batch = spec.collate(spec.rows())
    exact = forward(spec, spec.build(), batch)
    model = spec.model.from_pretrained(saved, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    rounded = forward(spec, model, batch)
    assert rounded.isfinite().all()
    assert (rounded.float() - exact).pow(2).mean().sqrt() < 0.05 * exact.std()
    model.train()(**batch).loss.backward()
    assert all(p.grad.dtype == torch.bfloat16 and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = forward(spec, spec.build(), batch)
    assert (mixed.float() - exact).pow(2).mean().sqrt() < 0.05 * exact.std()


def test_float16_file(spec, tmp_path):
    """What is shipped: half the size, read as it is or in float32."""
    exact = spec.build()
    copy.deepcopy(exact).half().save_pretrained(tmp_path)
    batch = spec.collate(spec.rows())
    expected = forward(spec, exact, batch)
    for dtype, loaded in ((torch.float16, None), (torch.float32, torch.float32)):
        model = spec.auto[0].from_pretrained(tmp_path, **({"dtype": loaded} if loaded else {}))
        assert model.dtype == dtype == {parameter.dtype for parameter in model.parameters()}.pop()
        assert (forward(spec, model, batch).float() - expected).pow(2).mean().sqrt() < 0.01 * expected.std()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_close(spec):
    model, batch = spec.build(), spec.collate(spec.rows())
    expected = forward(spec, model, batch)
    on_device = {name: tensor.cuda() for name, tensor in batch.items()}
    torch.testing.assert_close(forward(spec, model.cuda(), on_device).cpu(), expected, atol=1e-3, rtol=1e-3)


# --------------------------------------------------------------------------------------------- learning


def test_eight_examples_are_learnt(spec):
    steps, learning_rate, bound = spec.overfit
    model, batch = spec.build(), spec.collate(spec.rows(8))
    losses = take_steps(model, batch, steps, learning_rate)
    assert losses[0] > 10 * bound and losses[-1] < bound
    for module in model.modules():  # the statistics of the last weights, not of those on the way
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        model.train()(**batch)
        assert model.eval()(**batch).loss < 10 * bound
    if model.can_generate():
        labels = batch.pop("labels")
        sequences = model.generate(**batch, num_beams=2, max_new_tokens=labels.shape[1] + 1)
        read = [" ".join(text.split()) for text in spec.decode(spec.processor(), sequences)]
        assert read == spec.answers


def test_the_loss_is_the_mean_over_the_items_that_a_loop_counts(spec):
    model, batch = spec.build(), spec.collate(spec.rows())
    count = model.num_loss_items(batch)
    with torch.no_grad():
        mean, total = model(**batch).loss, model(**batch, num_items_in_batch=1).loss
        parts = [spec.collate([row]) for row in spec.rows()]
        apart = [model(**part, num_items_in_batch=count).loss for part in parts]
    assert count == sum(model.num_loss_items(part) for part in parts) >= len(parts)
    torch.testing.assert_close(total, mean * count)
    torch.testing.assert_close(sum(apart), mean)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")
@pytest.mark.parametrize("targets", ["all-linear", "projections", "others"])
def test_lora(spec, saved, tmp_path, targets):
    """Train, save, load in three ways, merge: always the same outputs, and the base as it was."""
    auto, base, batch = spec.auto[0], spec.build(), spec.collate(spec.rows(8))
    before = forward(spec, base, batch)
    # Adapters that start away from zero: none may be so weak that leaving it out goes unseen.
    modules = {"all-linear": "all-linear", "projections": ["q_proj", "v_proj"], "others": spec.adapted}[targets]
    config = LoraConfig(r=4, lora_alpha=32, target_modules=modules, init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(auto.from_pretrained(saved), config)
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if "lora_" in name}
    assert len(adapted) > 1 and not [name for name in adapted if name.endswith("lm_head")]
    losses = take_steps(model, batch, 8)
    assert losses[-1] < losses[0]
    expected = forward(spec, model, batch)
    assert (expected - before).abs().max() > 1e-3
    model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < (
        saved / "model.safetensors"
    ).stat().st_size

    onto_base = PeftModel.from_pretrained(auto.from_pretrained(saved), tmp_path / "adapter")
    torch.testing.assert_close(forward(spec, onto_base, batch), expected)
    by_auto = auto.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(forward(spec, by_auto, batch), expected)
    if base.can_generate():
        del batch["labels"]
        how = {"num_beams": 3, "max_new_tokens": 11, "return_dict_in_generate": True}
        with_adapter = onto_base.generate(**batch, **how)
    merged = onto_base.merge_and_unload()
    torch.testing.assert_close(forward(spec, merged, spec.collate(spec.rows(8))), expected, atol=2e-4, rtol=1e-3)
    if base.can_generate():
        alone = merged.generate(**batch, **how)
        assert torch.equal(alone.sequences, with_adapter.sequences)
        if alone.sequences_scores is not None:  # transformers' search gives them only with all scores
            torch.testing.assert_close(alone.sequences_scores, with_adapter.sequences_scores, atol=1e-4, rtol=0)
    with model.disable_adapter():
        torch.testing.assert_close(forward(spec, model, spec.collate(spec.rows(8))), before)


@pytest.mark.parametrize("spec", ONE_OF_EACH_TYPE, indirect=True)
def test_lora_through_the_hub(spec, saved, hub, hub_env, run_python, tmp_path):
    save_file(spec.collate(spec.rows()), tmp_path / "batch.safetensors")
    done = run_python(
        f"""
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import {spec.auto[0].__name__} as auto
import epigraph

api, batch = HfApi(), load_file({str(tmp_path / "batch.safetensors")!r})
api.create_repo("org/base")
api.upload_folder(repo_id="org/base", folder_path={str(saved)!r})
model = get_peft_model(auto.from_pretrained("org/base"), LoraConfig(target_modules=["q_proj", "v_proj"]))
for parameter in model.parameters():
    parameter.data += parameter.requires_grad * 0.1
expected = model.eval()(**batch).loss
model.push_to_hub("org/adapter")
torch.testing.assert_close(auto.from_pretrained("org/adapter")(**batch).loss, expected)
again = PeftModel.from_pretrained(auto.from_pretrained("org/base"), "org/adapter")
torch.testing.assert_close(again(**batch).loss, expected)
print("same")
""",
        hub_env,
    )
    assert "same" in done.stdout
    assert "adapter_model.safetensors" in hub.model("org/adapter").files


def test_new_symbols(spec):
    """A longer vocabulary keeps what was learnt and makes room for the rest."""
    if not spec.tokenizer:
        pytest.skip("the model writes no text")
    model, batch = spec.build(), spec.collate(spec.rows())
    before, size = forward(spec, model, batch), model.config.get_text_config().vocab_size
    model.resize_token_embeddings(size + 7, mean_resizing=False)
    assert model.config.get_text_config().vocab_size == size + 7
    after = forward(spec, model, batch)
    assert after.shape[-1] == size + 7 and after.isfinite().all()
    torch.testing.assert_close(after[..., :size], before)
    batch["labels"] = batch["labels"].masked_fill(batch["labels"] == batch["labels"][0, 0], size + 6)
    model.train()(**batch).loss.backward()
    assert model.get_output_embeddings().weight.grad[size + 6].any()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")
@pytest.mark.parametrize("adapter", [False, True])
def test_new_classes(spec, saved, tmp_path, adapter):
    """A trained model is taught other classes, as a whole or by an adapter with a head of its own."""
    if not isinstance(getattr(spec.build(), "classifier", None), torch.nn.Module):
        pytest.skip("the model tells no classes")
    auto, batch = spec.auto[0], spec.collate(spec.rows(4))
    batch["labels"] = batch["labels"].clamp(max=1)
    how = {"id2label": {0: "one", 1: "other"}, "ignore_mismatched_sizes": True}
    model = auto.from_pretrained(saved, **how)
    if adapter:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]))
    losses = take_steps(model, batch, 8)
    assert losses[-1] < losses[0]
    expected = forward(spec, model, batch)
    assert expected.shape[1] == 2
    model.save_pretrained(tmp_path / "mine")
    loaded = auto.from_pretrained(tmp_path / "mine", **(how if adapter else {}))
    assert loaded.config.id2label == {0: "one", 1: "other"}
    torch.testing.assert_close(forward(spec, loaded, batch), expected)


# --------------------------------------------------------------------------------------------- transformers.Trainer


def trainer_arguments(folder, cls=TrainingArguments, **kwargs):
    return cls(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        remove_unused_columns=False,
        logging_steps=1,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        disable_tqdm=True,
        **kwargs,
    )


def test_trainer(spec, tmp_path):
    """transformers.Trainer trains a model unchanged: accumulation, evaluation with metrics, saving, resuming."""
    rows = spec.rows(8)

    def run(steps, resume=None):
        arguments = trainer_arguments(
            tmp_path / "run",
            max_steps=steps,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=3,
            gradient_accumulation_steps=2,
            save_steps=4,
            eval_strategy="steps",
            eval_steps=6,
            label_names=["labels" if "labels" in spec.collate(rows) else spec.model.main_input_name],
        )
        found = Trainer(
            spec.build(),
            arguments,
            data_collator=spec.collate,
            train_dataset=rows,
            eval_dataset=rows[:5],
            compute_metrics=lambda prediction: {
                "finite": float(torch.tensor(prediction.predictions).isfinite().all())
            },
        )
        found.train(resume_from_checkpoint=resume)
        return found

    trainer = run(12)
    losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    assert len(losses) == 12 and losses[12] < 0.8 * losses[1]
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 2 and all(entry["eval_finite"] == 1 for entry in evaluated)
    # What is logged is the mean over the accumulated batches, not their sum.
    model = spec.build().train()
    with torch.no_grad():
        first = torch.stack([model(**spec.collate(rows[:4])).loss, model(**spec.collate(rows[4:])).loss]).mean()
    assert abs(losses[1] - first.item()) < 0.15 * first.item()

    checkpoint = tmp_path / "run" / "checkpoint-8"
    assert not [path for path in checkpoint.iterdir() if "model" in path.name and path.suffix == ".bin"]
    again = run(12, resume=str(checkpoint))
    resumed = {entry["step"]: entry["loss"] for entry in again.state.log_history if "loss" in entry}
    assert all(abs(resumed[step] - losses[step]) < 1e-3 for step in range(9, 13))


def test_seq2seq_trainer_predicts_with_generate(spec, tmp_path):
    if not spec.model.can_generate():
        pytest.skip("the model does not generate")
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    arguments = trainer_arguments(
        tmp_path,
        Seq2SeqTrainingArguments,
        max_steps=2,
        per_device_eval_batch_size=3,
        predict_with_generate=True,
        generation_max_length=9,
        generation_num_beams=2,
        save_strategy="no",
    )
    processor = spec.processor()
    trainer = Seq2SeqTrainer(
        spec.build(), arguments, data_collator=spec.collate, train_dataset=spec.rows(4), eval_dataset=spec.rows(5)
    )
    trainer.train()
    found = trainer.predict(spec.rows(5))
    assert found.predictions.shape[0] == 5 and not found.predictions[:, 9:].any()
    assert "test_loss" in found.metrics
    batch = spec.collate(spec.rows(3))
    del batch["labels"]
    expected = trainer.model.eval().generate(**batch, num_beams=2, max_length=9)
    assert spec.decode(processor, found.predictions[:3]) == spec.decode(processor, expected)


def test_copies_are_independent(spec):
    """Deep copies, as weight averaging makes them, share nothing."""
    model, batch = spec.build(), spec.collate(spec.rows())
    before = forward(spec, model, batch)
    other = copy.deepcopy(model)
    take_steps(other, batch, 1)
    assert torch.equal(forward(spec, model, batch), before)
    assert not torch.equal(forward(spec, other, batch), before)


def test_public_names_are_importable(spec):
    assert getattr(epigraph, spec.model.__name__) is spec.model
    assert getattr(epigraph, spec.model.config_class.__name__) is spec.model.config_class
