"""What every model promises, as one suite: a new model adds a `Spec` to `SPECS` and nothing else.

That a pushed model loads through the Hub, with and without the package, is in test_hub.py; adapters are pushed here.
"""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, Trainer, TrainingArguments
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import epigraph
from epigraph import models
from epigraph.hub import entry_of
from epigraph.models.processing import comer_processor


@dataclass
class Spec:
    """A model as the suite needs it.

    Attributes:
        model: the class.
        config: settings of a tiny configuration without dropout.
        processor: builds its processor.
        texts: 8 labels.
        outputs: (model, batch) -> tensor (batch, ...) that must not depend on the rest of the batch, nor on padding.
        overfit: (steps, learning rate, loss) that 8 examples are learnt in, with, and below.
        others: settings that differ from the defaults, for the round trip.
        dropout: settings that switch dropout on.
        mistakes: settings that are refused, with what the error says.
        convolutions: LoRA targets beside the linear layers.
        generates: has `generate`.
    """

    model: type
    config: dict
    processor: Callable
    texts: list[str]
    outputs: Callable
    overfit: tuple[int, float, float]
    others: dict
    dropout: dict
    mistakes: list[tuple[dict, str]]
    convolutions: list[str]
    generates: bool

    def build(self, **changes):
        torch.manual_seed(0)
        model = self.model(self.model.config_class(**{**self.config, **changes})).eval()
        for name, buffer in model.named_buffers():  # as uneven as after training
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        return model

    def rows(self, count=3):
        """Images of different sizes, a different drawing for each label."""
        rows = []
        for index, text in enumerate(self.texts[:count]):
            width, height = 40 + 13 * (index % 4), 24 + 9 * (index % 3)
            image = Image.new("L", (width, height))
            shape = torch.rand(5, 2, generator=torch.Generator().manual_seed(index)) * torch.tensor([width, height])
            ImageDraw.Draw(image).line([tuple(point) for point in shape.tolist()], fill=255, width=3)
            rows.append({"image": image, "text": text})
        return rows

    def collate(self, rows):
        return dict(self.processor()(images=[row["image"] for row in rows], text=[row["text"] for row in rows]))


def comer_outputs(model, batch):
    logits = model(**batch).logits
    return logits.view(2, -1, *logits.shape[1:]).transpose(0, 1)


SPECS = {
    "comer": Spec(
        model=models.CoMERForConditionalGeneration,
        config={
            "hidden_size": 32,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "growth_rate": 8,
            "dense_layers": (2, 2, 2),
            "coverage_channels": 8,
            "dropout": 0.0,
            "encoder_dropout": 0.0,
        },
        processor=comer_processor,
        texts=["x ^ { 2 }", "a + b", "7", r"\frac { 1 } { n }", "- 3 . 5", "y _ i", r"\sqrt { z }", "( p )"],
        outputs=comer_outputs,
        overfit=(40, 1e-2, 0.1),
        others={"cross_coverage": False, "label_smoothing": 0.1, "grammar": {"open": 110, "scripts": [81, 82]}},
        dropout={"dropout": 0.3, "encoder_dropout": 0.2},
        mistakes=[
            ({"hidden_size": 30}, "hidden_size 30 is not a multiple of num_attention_heads 8"),
            ({"hidden_size": 18, "num_attention_heads": 3}, "multiple of 4"),
            ({"hidden_size": "wide"}, "'hidden_size' expected int"),
            ({"hidden_size": 0}, "hidden_size must be at least 1, not 0"),
            ({"vocab_size": -1}, "vocab_size must be at least 1, not -1"),
            ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
            ({"num_attention_heads": 0}, "num_attention_heads must be at least 1"),
            ({"dropout": 1.5}, "dropout must be at least 0 and below 1, not 1.5"),
            ({"dropout": None}, "'dropout'"),
            ({"encoder_dropout": -0.1}, "encoder_dropout must be at least 0"),
            ({"label_smoothing": 1}, "label_smoothing must be at least 0 and below 1"),
            ({"dense_layers": (2, 2)}, r"depths of three blocks, not \[2, 2\]"),
            ({"dense_layers": (2, 0, 2)}, r"depths of three blocks, not \[2, 0, 2\]"),
            ({"transition_reduction": 0.0}, "transition_reduction must be above 0"),
            ({"position_temperature": 0}, "position_temperature must be above 0"),
            ({"coverage_kernel_size": 4}, "coverage_kernel_size 4 must be odd"),
            ({"mask_padding": "yes"}, "'mask_padding'"),
        ],
        convolutions=["bottleneck.conv", "growth.conv", "feature_proj", "refinement.conv", "refinement.proj"],
        generates=True,
    ),
}


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


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
    assert {config.model_type for config, *_ in models.MODELS} == set(SPECS)


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
    _, classes, *_ = entry_of(model.config.model_type, saved)
    loaders = [getattr(transformers, auto) for auto, cls in classes.items() if cls is spec.model]
    assert AutoModel in loaders
    for loader in [*loaders, spec.model]:
        loaded, info = loader.from_pretrained(saved, output_loading_info=True)
        assert not any(info.values()), info
        assert type(loaded) is spec.model and not loaded.training
        expected = model.state_dict()
        assert loaded.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
        assert all(torch.equal(b, dict(model.named_buffers())[name]) for name, b in loaded.named_buffers())
        assert torch.equal(forward(spec, loaded, batch), forward(spec, model, batch))


def test_model_built_on_the_meta_device(spec, saved):
    """Everything that a model needs is in its file: no table is made in __init__ and lost."""
    with torch.device("meta"):
        model = spec.model(spec.model.config_class.from_pretrained(saved))
    model.load_state_dict(load_file(saved / "model.safetensors"), assign=True)
    assert not [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    batch = spec.collate(spec.rows())
    assert torch.equal(forward(spec, model, batch), forward(spec, spec.build(), batch))


def test_a_missing_tensor_is_reported_and_initialised(spec, saved):
    weights = load_file(saved / "model.safetensors")
    gone = sorted(name for name in weights if name.endswith(".weight"))
    save_file({name: weights[name] for name in weights if name not in gone}, saved / "model.safetensors")
    torch.manual_seed(0)
    loaded, info = spec.model.from_pretrained(saved, output_loading_info=True)
    assert sorted(info["missing_keys"]) == gone
    torch.manual_seed(0)
    fresh = spec.model(loaded.config)
    for name in gone:
        found, wanted = loaded.get_parameter(name), fresh.get_parameter(name)
        assert found.isfinite().all() and torch.isclose(found.std(), wanted.std(), rtol=0.25, atol=1e-3), name


def test_processor_loads_through_every_auto_class(spec, saved):
    processor, rows = spec.processor(), spec.rows()
    loaded = AutoProcessor.from_pretrained(saved)
    assert type(loaded) is type(processor)
    images, texts = [row["image"] for row in rows], [row["text"] for row in rows]
    expected, found = processor(images=images, text=texts), loaded(images=images, text=texts)
    assert expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    alone = AutoImageProcessor.from_pretrained(saved)(images, return_tensors="pt")
    assert torch.equal(alone["pixel_values"], expected["pixel_values"])
    assert AutoTokenizer.from_pretrained(saved).get_vocab() == processor.tokenizer.get_vocab()


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
from transformers import AutoModel

model = AutoModel.from_pretrained({str(saved)!r}, trust_remote_code=True)
batch = load_file({str(saved.parent / "batch.safetensors")!r})
expected = batch.pop("expected")
assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
torch.testing.assert_close(model(**batch).loss[None], expected)
assert not [name for name in sys.modules if name.startswith("epigraph.")]
print("loaded")
""",
        {"HF_HOME": str(saved.parent / "hf")},
        without=["epigraph"],
    )
    assert "loaded" in done.stdout


# --------------------------------------------------------------------------------------------- what a batch is


def test_a_batch_is_its_examples(spec):
    model, rows = spec.build(), spec.rows(4)
    together = forward(spec, model, spec.collate(rows))
    for index, row in enumerate(rows):
        alone = forward(spec, model, spec.collate([row]))[0]
        own = together[index][tuple(slice(0, size) for size in alone.shape)]
        torch.testing.assert_close(own, alone, atol=2e-5, rtol=1e-4)


def test_padding_changes_nothing(spec):
    model, batch = spec.build(), spec.collate(spec.rows())
    padded = {**batch, "pixel_values": F.pad(batch["pixel_values"], (0, 37, 0, 21))}
    padded["pixel_mask"] = F.pad(batch["pixel_mask"], (0, 37, 0, 21))
    torch.testing.assert_close(forward(spec, model, padded), forward(spec, model, batch), atol=2e-5, rtol=1e-4)


def test_evaluation_is_deterministic_and_dropout_is_for_training(spec):
    model, batch = spec.build(**spec.dropout), spec.collate(spec.rows())
    first = forward(spec, model, batch)
    with torch.no_grad():
        noisy = [model.train()(**batch).loss for _ in range(2)]
    assert noisy[0] != noisy[1]
    model.load_state_dict(spec.build(**spec.dropout).state_dict())  # training has moved the statistics
    assert torch.equal(forward(spec, model, batch), first)


# --------------------------------------------------------------------------------------------- arithmetic


def test_attention_implementations_agree(spec):
    model, batch = spec.build(), spec.collate(spec.rows())
    model.set_attn_implementation("eager")
    eager = forward(spec, model, batch)
    model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(forward(spec, model, batch), eager, atol=2e-5, rtol=1e-4)


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
        model = AutoModel.from_pretrained(tmp_path, **({"dtype": loaded} if loaded else {}))
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
    if spec.generates:
        labels = batch.pop("labels")
        sequences = model.generate(**batch, num_beams=2, max_length=labels.shape[1] + 2)
        read = [" ".join(text.split()) for text in spec.processor().decode_labels(sequences)]
        assert read == spec.texts


def lora_targets(spec):
    return {"all-linear": "all-linear", "projections": ["q_proj", "v_proj"], "convolutions": spec.convolutions}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")
@pytest.mark.parametrize("targets", ["all-linear", "projections", "convolutions"])
def test_lora(spec, saved, tmp_path, targets):
    """Train, save, load in three ways, merge: always the same outputs, and the base as it was."""
    base, batch = spec.build(), spec.collate(spec.rows(8))
    before = forward(spec, base, batch)
    # Adapters that start away from zero: none may be so weak that leaving it out goes unseen.
    config = LoraConfig(r=4, lora_alpha=32, target_modules=lora_targets(spec)[targets], init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(AutoModel.from_pretrained(saved), config)
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

    onto_base = PeftModel.from_pretrained(AutoModel.from_pretrained(saved), tmp_path / "adapter")
    torch.testing.assert_close(forward(spec, onto_base, batch), expected)
    by_auto = AutoModel.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(forward(spec, by_auto, batch), expected)
    if spec.generates:
        del batch["labels"]
        how = {"num_beams": 3, "max_length": 12, "return_dict_in_generate": True}
        with_adapter = onto_base.generate(**batch, **how)
    merged = onto_base.merge_and_unload()
    torch.testing.assert_close(forward(spec, merged, spec.collate(spec.rows(8))), expected, atol=2e-4, rtol=1e-3)
    if spec.generates:
        alone = merged.generate(**batch, **how)
        assert torch.equal(alone.sequences, with_adapter.sequences)
        torch.testing.assert_close(alone.sequences_scores, with_adapter.sequences_scores, atol=1e-4, rtol=0)
    with model.disable_adapter():
        torch.testing.assert_close(forward(spec, model, spec.collate(spec.rows(8))), before)


def test_lora_through_the_hub(spec, saved, hub, hub_env, run_python, tmp_path):
    save_file(spec.collate(spec.rows()), tmp_path / "batch.safetensors")
    done = run_python(
        f"""
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel
import epigraph

api, batch = HfApi(), load_file({str(tmp_path / "batch.safetensors")!r})
api.create_repo("org/base")
api.upload_folder(repo_id="org/base", folder_path={str(saved)!r})
model = get_peft_model(AutoModel.from_pretrained("org/base"), LoraConfig(target_modules=["q_proj", "v_proj"]))
for parameter in model.parameters():
    parameter.data += parameter.requires_grad * 0.1
expected = model.eval()(**batch).loss
model.push_to_hub("org/adapter")
torch.testing.assert_close(AutoModel.from_pretrained("org/adapter")(**batch).loss, expected)
again = PeftModel.from_pretrained(AutoModel.from_pretrained("org/base"), "org/adapter")
torch.testing.assert_close(again(**batch).loss, expected)
print("same")
""",
        hub_env,
    )
    assert "same" in done.stdout
    assert "adapter_model.safetensors" in hub.model("org/adapter").files


def test_new_symbols(spec):
    """A longer vocabulary keeps what was learnt and makes room for the rest."""
    model, batch = spec.build(), spec.collate(spec.rows())
    before, size = forward(spec, model, batch), model.config.vocab_size
    model.resize_token_embeddings(size + 7, mean_resizing=False)
    assert model.config.vocab_size == size + 7
    after = forward(spec, model, batch)
    assert after.shape[-1] == size + 7 and after.isfinite().all()
    torch.testing.assert_close(after[..., :size], before)
    batch["labels"] = batch["labels"].masked_fill(batch["labels"] == batch["labels"][0, 0], size + 6)
    model.train()(**batch).loss.backward()
    assert model.get_output_embeddings().weight.grad[size + 6].any()


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
            label_names=["labels"],
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
    if not spec.generates:
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
    assert processor.decode_labels(found.predictions[:3]) == processor.decode_labels(expected)


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
