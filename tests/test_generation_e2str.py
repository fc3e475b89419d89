"""E2STR's generation: equal to reading the plain prompt anew at every token, and nothing computed twice."""

import copy

import pytest
import torch
from model_specs import SPECS
from transformers import GenerationConfig, ViTModel
from transformers.generation import GenerationMixin

from epigraph.models.modeling_e2str import E2STRForTextRecognition

PAD, BOS, EOC, IMAGE = range(4)
A, B, C = 10, 20, 30  # some characters
LENGTH = 7  # tokens that are written
NO_IMAGE = {"suppress_tokens": [IMAGE]}  # random weights write it, too, and there is none to show for it


@pytest.fixture(scope="module")
def model():
    """Random weights of a size that makes readings depend on images and on texts."""
    found = SPECS["e2str"].build()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if parameter.dim() > 1 and "embeddings" not in name:
                parameter.mul_(4 if "_proj" in name else 2)
    return found


def pictures(*shape, seed=0):
    return torch.randn(*shape, 3, 16, 32, generator=torch.Generator().manual_seed(seed))


PROMPTS = [BOS, IMAGE, A, EOC, IMAGE, B, C, EOC, IMAGE], [BOS, IMAGE, C, C, EOC, IMAGE], [BOS, IMAGE]


def left_padded(*prompts):
    ids = [torch.tensor(prompt) for prompt in prompts]
    ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_side="left")
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


class Naive(E2STRForTextRecognition):
    """The whole prompt with all its images at every token, for every beam."""

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        images = self.images.repeat_interleave(len(input_ids) // len(self.images), 0)
        return {"pixel_values": images, "input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}

    def read(self, images, **kwargs):
        self.images = images
        defaults = {"pad_token_id": PAD, "eos_token_id": EOC, "use_cache": False, "max_new_tokens": LENGTH}
        return GenerationMixin.generate(self, **{**defaults, **kwargs})


@pytest.fixture(scope="module")
def naive(model):
    found = Naive(model.config).eval()
    found.load_state_dict(model.state_dict())
    return found


@pytest.fixture
def work(monkeypatch, model):
    """What was done: images encoded, tokens read by the decoder (batch, length), projections to keys by one layer."""
    done = {"images": [], "tokens": [], "keys": 0}
    vision, decoder = ViTModel.forward, type(model.model.text_model).forward

    def encoding(self, pixel_values, *args, **kwargs):
        done["images"].append(len(pixel_values))
        return vision(self, pixel_values, *args, **kwargs)

    def decoding(self, input_ids, *args, **kwargs):
        done["tokens"].append(tuple(input_ids.shape))
        return decoder(self, input_ids, *args, **kwargs)

    def projecting(*args):
        done["keys"] += 1

    monkeypatch.setattr(ViTModel, "forward", encoding)
    monkeypatch.setattr(type(model.model.text_model), "forward", decoding)
    hook = model.model.text_model.layers[0].cross_attention.attention.k_proj.register_forward_hook(projecting)
    yield done
    hook.remove()


# --------------------------------------------------------------------------------- equal to the naive loop

SEARCHES = [
    {},
    {"num_beams": 3},
    {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5, "early_stopping": True},
    {"num_beams": 2, "min_new_tokens": LENGTH},
]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_readings_and_scores_are_those_of_the_naive_loop(model, naive, search):
    images, batch = pictures(3, 3), left_padded(*PROMPTS)
    how = {**search, **NO_IMAGE, "return_dict_in_generate": True, "output_scores": True}
    found = model.generate(images, **batch, max_new_tokens=LENGTH, **how)
    expected = naive.read(images, **batch, **how)
    assert torch.equal(found.sequences, expected.sequences)
    for one, other in zip(found.scores, expected.scores):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    if "num_beams" in search:
        torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, atol=1e-5, rtol=1e-4)
    assert len({tuple(row) for row in found.sequences[:, -LENGTH:].tolist()}) > 1


def test_samples_are_those_of_the_naive_loop(model, naive):
    images, batch = pictures(2, 3), left_padded(*PROMPTS[:2])
    how = {**NO_IMAGE, "do_sample": True, "num_return_sequences": 4, "temperature": 1.5, "top_k": 50}
    torch.manual_seed(3)
    found = model.generate(images, **batch, max_new_tokens=LENGTH, **how)
    torch.manual_seed(3)
    assert torch.equal(found, naive.read(images, **batch, **how))
    assert len({tuple(row) for row in found.tolist()}) > 4


def test_every_token_has_the_logits_of_the_whole_sequence(model):
    images, batch = pictures(3, 3), left_padded(*PROMPTS)
    how = {"return_dict_in_generate": True, "output_logits": True, "min_new_tokens": LENGTH}
    found = model.generate(images, **batch, max_new_tokens=LENGTH, **how)
    length = batch["input_ids"].shape[1]
    with torch.no_grad():
        for step, logits in enumerate(found.logits):
            ids = found.sequences[:, : length + step]
            mask = torch.cat([batch["attention_mask"], torch.ones(3, step, dtype=torch.long)], dim=1)
            expected = model(images, ids, mask).logits[:, -1]
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("search", SEARCHES[:2], ids=str)
def test_a_batch_of_different_contexts_is_its_queries(model, search):
    images, batch = pictures(3, 3), left_padded(*PROMPTS)
    how = {**search, "max_new_tokens": LENGTH, "return_dict_in_generate": True, "output_scores": True}
    together = model.generate(images, **batch, **how)
    length = batch["input_ids"].shape[1]
    for row, prompt in enumerate(PROMPTS):
        alone = model.generate(images[row : row + 1, : 3 - row], torch.tensor([prompt]), **how)
        own = alone.sequences[0, len(prompt) :]
        assert torch.equal(together.sequences[row, length : length + len(own)], own)
        if search:
            torch.testing.assert_close(together.sequences_scores[row], alone.sequences_scores[0], atol=1e-5, rtol=1e-4)


def test_the_order_of_examples_matters(model, naive):
    images = pictures(1, 3)
    swapped = images[:, [1, 0, 2]]
    there, back = [BOS, IMAGE, A, EOC, IMAGE, B, EOC, IMAGE], [BOS, IMAGE, B, EOC, IMAGE, A, EOC, IMAGE]
    how = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    first, second = (
        model.generate(of, torch.tensor([ids]), **how).logits[0] for of, ids in ((images, there), (swapped, back))
    )
    assert (first - second).abs().max() > 1e-3
    torch.testing.assert_close(second, naive.read(swapped, input_ids=torch.tensor([back]), **how).logits[0])


# --------------------------------------------------------------------------------- the forms of a context


def test_contexts_latents_and_prompts_read_alike(model):
    images, how = pictures(2, 3), {"num_beams": 3, "max_new_tokens": LENGTH}
    batch = left_padded(PROMPTS[0], PROMPTS[0])
    expected = model.generate(images, **batch, **how)
    latents = model.encode(images.flatten(0, 1))[1].unflatten(0, (2, 3)).detach()
    contexts = model.read_context([torch.tensor(PROMPTS[0][:-1])] * 2, list(latents[:, :2]))
    for given in (
        {"pixel_values": images[:, 2:], "context_latents": latents[:, :2], **batch},
        {"latents": latents, **batch},
        {"latents": latents[:, 2:], "contexts": contexts},
        {"pixel_values": images[:, 2:], "contexts": contexts},
    ):
        assert torch.equal(model.generate(**given, **how), expected)


def test_no_context_is_the_plain_prompt(model, naive):
    image = pictures(2, 1)
    how = {**NO_IMAGE, "num_beams": 2}
    expected = naive.read(image, **left_padded(PROMPTS[2], PROMPTS[2]), **how)
    latents = model.encode(image[:, 0])[1].detach()
    empty = model.read_context([torch.tensor([BOS])], [latents[:0]]) * 2
    for given in (
        {"pixel_values": image},
        {"latents": latents[:, None]},
        {"pixel_values": image, "contexts": empty},
        {"pixel_values": image, **left_padded(PROMPTS[2], PROMPTS[2])},
    ):
        assert torch.equal(model.generate(**given, **how, max_new_tokens=LENGTH), expected)


def test_what_stands_behind_the_last_image_is_not_shown(model):
    """So that a trainer reads the batches that it evaluates."""
    images = pictures(2, 2)
    prompts = [BOS, IMAGE, A, EOC, IMAGE], [BOS, IMAGE]
    trained = left_padded([*prompts[0], C, C, C, EOC], [*prompts[1], C, EOC])
    expected = model.generate(images, **left_padded(*prompts), max_new_tokens=LENGTH)
    assert torch.equal(model.generate(images, **trained, max_new_tokens=LENGTH), expected)


def test_a_context_is_used_again_and_again_as_it_was(model):
    latents = model.encode(pictures(3))[1].detach()
    prompts = [torch.tensor(PROMPTS[0][:-1]), torch.tensor(PROMPTS[1][:-1])]
    long, short = model.read_context(prompts, [latents[:2], latents[:1]])
    before = [state.clone() for pair in long.keys_values for state in pair]
    how = {"latents": latents[2:, None], "num_beams": 3, "max_new_tokens": LENGTH}
    first = model.generate(contexts=[long], **how)
    model.generate(contexts=[short], **how)
    assert torch.equal(model.generate(contexts=[long], **how), first)
    assert all(torch.equal(*pair) for pair in zip(before, (state for pair in long.keys_values for state in pair)))
    # It holds itself in memory, and not the batch that it was read in.
    for context in (long, short):
        for state in (state for pair in context.keys_values for state in pair):
            assert state.shape == (2, len(context.input_ids), 12)
            assert state.untyped_storage().nbytes() == state.nbytes


# --------------------------------------------------------------------------------- nothing is done twice


@pytest.mark.parametrize("beams", [1, 3])
def test_a_query_is_encoded_and_projected_once(model, work, beams):
    model.generate(pictures(1, 3), **left_padded(PROMPTS[0]), num_beams=beams, max_new_tokens=5, min_new_tokens=5)
    assert work["images"] == [3]
    assert work["keys"] == 2  # of the context, and of the query for all its tokens
    context, first, *others = work["tokens"]
    assert context == (1, len(PROMPTS[0]) - 1)
    # The prompt's last token, and one at a time of every beam.
    assert first == (beams, 1) and set(others) == {(beams, 1)} and len(others) == 4


def test_shared_contexts_are_read_once_and_equal_images_encoded_once(model, work):
    examples, queries = pictures(1, 2), pictures(4, 1, seed=5)
    images = torch.cat([examples.expand(4, -1, -1, -1, -1), queries], dim=1)
    expected = [model.generate(row[None], **left_padded(PROMPTS[0]), max_new_tokens=2) for row in images]
    for name in ("images", "tokens"):
        work[name].clear()
    found = model.generate(images, **left_padded(*[PROMPTS[0]] * 4), max_new_tokens=2)
    assert torch.equal(found, torch.cat(expected))
    assert work["images"] == [2 + 4]
    assert work["tokens"][0] == (1, len(PROMPTS[0]) - 1) and set(work["tokens"][1:]) == {(4, 1)}


def test_only_contexts_that_are_the_same_are_shared(model, work):
    """The same images with other texts, the same texts with other images."""
    one, other = pictures(1, 3), pictures(1, 3, seed=9)
    images = torch.cat([one, one, other, one])
    prompts = PROMPTS[0], [BOS, IMAGE, A, EOC, IMAGE, B, B, EOC, IMAGE], PROMPTS[0], PROMPTS[0]
    model.generate(images, **left_padded(*prompts), max_new_tokens=1)
    assert work["images"] == [6] and work["tokens"][0] == (3, len(PROMPTS[0]) - 1)


def test_images_that_fill_up_a_batch_are_not_encoded(model, work):
    images = pictures(3, 3)
    images[1, 2], images[2, 1:] = torch.nan, torch.nan
    model.generate(images, **left_padded(*PROMPTS), max_new_tokens=1)
    assert work["images"] == [3 + 2 + 1]


def test_latents_are_not_encoded_again(model, work):
    latents = torch.randn(2, 3, 4, 32)
    model.generate(latents=latents, **left_padded(PROMPTS[0], PROMPTS[0]), max_new_tokens=2)
    assert not work["images"]


# --------------------------------------------------------------------------------- settings


def test_a_reading_ends_with_its_chunk_and_after_48_tokens(model):
    image = pictures(1, 1)
    assert model.generate(image, suppress_tokens=[EOC])[0, 2:].shape == (48,)
    assert model.generate(image, suppress_tokens=[EOC], max_new_tokens=5).shape == (1, 7)
    assert model.generate(image, suppress_tokens=[EOC], max_length=5).shape == (1, 5)
    settings = GenerationConfig(max_new_tokens=4, num_beams=2, suppress_tokens=[EOC])
    assert model.generate(image, generation_config=settings).shape == (1, 6)
    forced = model.generate(image, max_new_tokens=9, sequence_bias={(EOC,): 1e4})
    assert forced.tolist() == [[BOS, IMAGE, EOC]]
    ended = model.generate(image, generation_config=GenerationConfig(eos_token_id=A, sequence_bias={(A,): 1e4}))
    assert ended.tolist() == [[BOS, IMAGE, A]]


def test_attentions_and_hidden_states_of_every_step(model):
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    how = {"output_attentions": True, "output_hidden_states": True, "return_dict_in_generate": True}
    found = eager.generate(pictures(1, 1), num_beams=2, max_new_tokens=3, min_new_tokens=3, **how)
    for step, (weights, states) in enumerate(zip(found.attentions, found.hidden_states, strict=True)):
        assert [of.shape for of in weights] == [(2, 2, 1, 2 + step)] * 2
        assert [of.shape for of in states] == [(2, 1, 24)] * 3
    assert step == 2


def test_saved_settings_are_the_models_own(model, tmp_path):
    model.save_pretrained(tmp_path)
    found = GenerationConfig.from_pretrained(tmp_path)
    assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (BOS, EOC, PAD)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model, dtype, tmp_path):
    model.save_pretrained(tmp_path)
    half = E2STRForTextRecognition.from_pretrained(tmp_path, dtype=dtype)
    how = {"num_beams": 2, "max_new_tokens": 3, "return_dict_in_generate": True, "output_scores": True}
    found = half.generate(pictures(3, 3), **left_padded(*PROMPTS), **how)
    assert found.sequences_scores.isfinite().all()
    keys, latents = half.encode(pictures(2))
    assert keys.dtype == torch.float32 and latents.dtype == dtype
    stored = {"context_latents": latents[:1, None].float(), "latents": latents[1:, None].float()}
    expected = half.generate(latents=latents[None], **left_padded(PROMPTS[1]), max_new_tokens=3)
    assert torch.equal(half.generate(**stored, **left_padded(PROMPTS[1]), max_new_tokens=3), expected)
    exact = model.generate(pictures(3, 3), **left_padded(*PROMPTS), **{**how, "num_beams": 1})
    close = half.generate(pictures(3, 3), **left_padded(*PROMPTS), **{**how, "num_beams": 1})
    error = close.scores[0].float() - exact.scores[0]
    assert error.square().mean().sqrt() < 0.1 * exact.scores[0].std()


# --------------------------------------------------------------------------------- what is refused


def a_context(model, prompt=(BOS,), images=0):
    return model.read_context([torch.tensor(prompt)], [torch.zeros(images, 4, 32)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "Give pixel_values or latents of the images to read"),
        ({"pixel_values": pictures(0, 1)}, "There is nothing to read"),
        ({"pixel_values": pictures(1, 1), "contexts": []}, "There is nothing to read"),
        ({"pixel_values": pictures(1, 2)}, "2 images were given for a prompt; say in input_ids what they show"),
        (
            {"pixel_values": pictures(1, 1), "context_latents": torch.zeros(1, 2, 4, 32)},
            "context_latents were given without input_ids",
        ),
        ({"pixel_values": pictures(1, 1), "input_ids": torch.tensor([[BOS, A]])}, "prompt 0 has no image token 3"),
        (
            {"pixel_values": pictures(1, 1), **left_padded(PROMPTS[1])},
            "prompt 0 stands for 2 images, but 1 were given",
        ),
        ({"pixel_values": pictures(2, 2), **left_padded(PROMPTS[1])}, "1 prompts were given, but the images of 2"),
        (
            {"pixel_values": pictures(1), **left_padded(PROMPTS[2])},
            r"must be \(batch, images, channels, height,",
        ),
        (
            {"pixel_values": pictures(1, 1), "max_new_tokens": 63},
            "a prompt of 2 tokens and 63 more to be read is longer",
        ),
        ({"pixel_values": pictures(1, 1), "max_length": 65}, "a prompt of 2 tokens and 63 more to be read is"),
        (
            {"pixel_values": pictures(1, 1), "input_ids": torch.tensor([BOS, IMAGE])},
            r"must both be \(batch, length\), not \(2,\) and \(2,\)",
        ),
        (
            {"pixel_values": pictures(1, 1), **left_padded(PROMPTS[2]), "attention_mask": torch.ones(1, 3)},
            r"must both be \(batch, length\), not \(1, 2\) and \(1, 3\)",
        ),
        ({"pixel_values": pictures(1, 1) * torch.inf}, "prompt 0, image 0 hold NaN or infinite values"),
        ({"latents": torch.zeros(1, 1, 4, 31)}, r"latents must be \(batch, images, 4, 32\), not \(1, 1, 4, 31\)"),
    ],
)
def test_what_cannot_be_read_is_refused(model, given, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**given)


def test_contexts_that_do_not_fit_are_refused(model, work):
    contexts = a_context(model)
    work["tokens"].clear()
    for given, message in (
        ({"pixel_values": pictures(2, 1)}, "1 prompts were given, but the images of 2"),
        ({"pixel_values": pictures(1, 2)}, "with contexts give the image to read alone, not 2 images"),
        ({"latents": torch.zeros(1, 2, 4, 32)}, "with contexts give the image to read alone, not 2 images"),
        ({"pixel_values": pictures(1, 1), **left_padded(PROMPTS[0])}, "leave out input_ids and context_latents"),
        ({"pixel_values": pictures(1, 1), "context_latents": torch.zeros(1, 1, 4, 32)}, "leave out input_ids and"),
        ({}, "Give pixel_values or latents"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(contexts=contexts, **given)
    for prompt, images, message in (
        ([BOS, IMAGE, A, EOC], 2, "context 0 stands for 1 images, but latents of 2 were given"),
        ([BOS, IMAGE] + [A] * 63, 1, "a prompt of 65 tokens is longer than the 64 positions of the decoder"),
    ):
        with pytest.raises(ValueError, match=message):
            a_context(model, prompt, images)
    with pytest.raises(ValueError, match="0 prompts and the latents of 0: give as many of each"):
        model.read_context([], [])
    assert not work["images"] and not work["tokens"]
