"""CoMER's search: the published heuristics to the number, and the exact search against a plain one written here."""

import pytest
import torch
from comer_goldens import VARIANTS, build, golden, image
from transformers import GenerationConfig

from epigraph.models import decoding_comer, generation_comer
from epigraph.models.configuration_comer import CoMERConfig
from epigraph.models.decoding_comer import CoMERCache, CoMERMemory, decode, score_sequences
from epigraph.models.generation_comer import _Search, _Settings
from epigraph.models.modeling_comer import CoMERForConditionalGeneration

PAD, BOS, EOS = 0, 1, 2


@pytest.fixture(scope="module")
def model():
    """Weights that read two images of different size; padding masked, so that batches do not matter."""
    return build("both", mask_padding=True)


@pytest.fixture(scope="module")
def batch():
    tensors, _ = golden("both")
    return {"pixel_values": tensors["img"], "pixel_mask": ~tensors["img_mask"]}


def search(model, **kwargs):
    return model.generate(**kwargs, return_dict_in_generate=True)


# ---------------------------------------------------------------------- incremental decoding


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sizes", [[1] * 7, [3, 4], [7]])
def test_cached_logits_are_those_of_teacher_forcing(variant, sizes):
    tensors, _ = golden(variant)
    model = build(variant)
    encoded = model.encoder(tensors["img"], ~tensors["img_mask"])
    memory = CoMERMemory.of(model.decoder, encoded)
    tokens = tensors["tgt"]
    cache = CoMERCache(model, memory, len(tokens), masks_padding=True)
    logits = torch.cat([decode(model, piece, memory, cache) for piece in tokens.split(sizes, 1)], dim=1)
    torch.testing.assert_close(logits, tensors["logits"], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_reordered_rows_keep_their_past(model, batch):
    encoded = model.encoder(**batch)
    memory = CoMERMemory.of(model.decoder, encoded)
    tokens = torch.randint(3, 113, (4, 40), generator=torch.manual_seed(0))
    cache = CoMERCache(model, memory, 4)
    decode(model, tokens[:, :5], memory, cache)
    cache.select(torch.tensor([2, 1, 2, 3, 0, 1]))  # rows stay with their image: row r reads image r % 2
    chosen = tokens[[2, 1, 2, 3, 0, 1]]
    logits = torch.cat([decode(model, chosen[:, t : t + 1], memory, cache) for t in range(5, 40)], dim=1)
    expected = model(decoder_input_ids=chosen, encoder_outputs=encoded).logits[:, 5:]
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_memory_of_uneven_rows(model, batch):
    memory = CoMERMemory.of(model.decoder, model.encoder(**batch))
    assert memory.rows([0, 1, 0, 1]) is memory
    assert memory.rows([1, 1, 1]).keys.shape[1] == 1
    uneven = memory.rows([0, 1, 1])
    assert torch.equal(uneven.keys, memory.keys[:, [0, 1, 1]])


@torch.no_grad()
def test_half_precision_keeps_coverage_in_float32(model, batch):
    half = build("both", mask_padding=True).to(torch.bfloat16)
    memory = CoMERMemory.of(half.decoder, half.encoder(**batch))
    cache = CoMERCache(half, memory, 2)
    tokens = golden("both")[0]["tgt"][:2]
    logits = decode(half, tokens, memory, cache)
    assert memory.keys.dtype == torch.bfloat16 and cache.coverage.dtype == torch.float32
    # One probability per head and step, whatever the number of steps.
    channels = cache.coverage.shape[2]
    torch.testing.assert_close(cache.coverage.sum(-1), torch.full((1, 2, channels), 7.0))
    expected = model(**batch, decoder_input_ids=tokens).logits
    assert (logits - expected).abs().mean() < 0.2
    assert search(half, **batch, max_length=20).sequences.shape[0] == 2


@torch.no_grad()
def test_score_sequences(model, batch):
    encoded = model.encoder(**batch)
    memory = CoMERMemory.of(model.decoder, encoded)
    sequences = torch.randint(3, 113, (3, 25), generator=torch.manual_seed(1))
    lengths, images = torch.tensor([25, 4, 0]), torch.tensor([1, 0, 1])
    sequences = sequences.masked_fill(torch.arange(25) >= lengths[:, None], PAD)
    backwards = torch.tensor([False, True, False])
    scores = score_sequences(model, memory, images, sequences, lengths, backwards)
    for row, (length, which) in enumerate(zip(lengths.tolist(), images.tolist())):
        tokens = sequences[row, :length].tolist()
        expected = forced(model, encoded, which, tokens, backwards[row])
        torch.testing.assert_close(scores[row, : length + 1], expected, atol=2e-5, rtol=1e-4)
        assert not scores[row, length + 1 :].any()


def forced(model, encoded, which, tokens, backwards):
    """Log-probabilities of `tokens` (in the order of the direction) and the stop, by the teacher-forced pass."""
    first, last = (EOS, BOS) if backwards else (BOS, EOS)
    one = type(encoded)(encoded.last_hidden_state[which : which + 1], encoded.feature_mask[which : which + 1])
    logits = model(decoder_input_ids=torch.tensor([[first, *tokens]]), encoder_outputs=one).logits[0]
    return logits.log_softmax(-1)[range(len(tokens) + 1), [*tokens, last]]


# ---------------------------------------------------------------------- the official heuristics


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("number", range(12))
def test_official_search(variant, number):
    tensors, record = golden(variant)
    run = record["runs"][number]
    model = build(variant)
    if run["input"] == "batch2":
        inputs = {"pixel_values": tensors["img"], "pixel_mask": ~tensors["img_mask"]}
    else:
        inputs = {"pixel_values": image(tensors, run["input"][-1])}
    settings = {
        "num_beams": run["beam_size"],
        "max_length": run["max_len"],
        "length_penalty": run["alpha"],
        "early_stopping": run["early_stopping"],
        "temperature": run["temperature"],
    }
    output = search(model, **inputs, **settings, search="official")
    for row, expected in enumerate(run["result"]):
        assert strip(output.sequences[row]) == expected["seq"]
        assert output.sequences_scores[row].item() == pytest.approx(expected["score"], abs=1e-5)

    settings = _Settings(direction="joint", search="official", num_return_sequences=1, **settings)
    first_pass = _Search(model, CoMERMemory.of(model.decoder, model.encoder(**inputs)), settings, None)
    found = first_pass.run()
    searches, beams = found.scores.shape
    first_pass._rate(torch.arange(searches).repeat_interleave(beams), torch.arange(beams).repeat(searches))
    expected = zip(*(run["first_pass"][key] for key in ("hyps", "scores", "rev_scores")))
    expected = [(tuple(tokens), *scores) for tokens, *scores in expected]
    for row in range(searches):
        ours = sorted(
            (tuple(found.tokens[row, place, :length].tolist()), score.item(), reverse.item())
            for place, (length, score, reverse) in enumerate(
                zip(found.lengths[row], found.scores[row], found.reverse[row])
            )
        )
        theirs = sorted(expected[row * beams : (row + 1) * beams])
        assert [tokens for tokens, *_ in ours] == [tokens for tokens, *_ in theirs]
        for (_, *scores), (_, *expected_scores) in zip(ours, theirs):
            assert scores == pytest.approx(expected_scores, abs=1e-5)


def strip(sequence):
    tokens = sequence.tolist()
    while tokens and tokens[-1] == PAD:
        tokens.pop()
    return tokens


@torch.no_grad()
def test_official_pad_is_not_attended_to():
    """A pad token within a beam: what follows does not see it, in the search as in the published code."""
    tensors, _ = golden("both")
    model = build("both")
    encoded = model.encoder(image(tensors, 0))
    memory = CoMERMemory.of(model.decoder, encoded)
    tokens = torch.tensor([[BOS, 74, PAD, 9, 111]])
    cache = CoMERCache(model, memory, 1, masks_padding=True)
    logits = torch.cat([decode(model, token, memory, cache) for token in tokens.split(1, 1)], dim=1)
    expected = model(decoder_input_ids=tokens, encoder_outputs=encoded).logits
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)

    model.lm_head.bias[PAD] = 30.0
    for kind, count in (("official", True), ("exact", False)):
        settings = _Settings("joint", kind, 2, 6, 1.0, 1.0, False, 1)
        found = _Search(model, memory, settings, None).run()
        within = torch.arange(6) < found.lengths[..., None]
        assert bool((within & (found.tokens == PAD)).any()) is count


# ---------------------------------------------------------------------- the exact search


def plain_search(model, encoded, which, beams, max_length, alpha, backwards):
    """Beam search on whole prefixes with lists: the `beams` best finished (tokens, score), tokens as found."""
    first, stop = (EOS, BOS) if backwards else (BOS, EOS)
    one = type(encoded)(encoded.last_hidden_state[which : which + 1], encoded.feature_mask[which : which + 1])
    running, finished = [([], 0.0)], []
    for length in range(1, max_length):
        prefixes = torch.tensor([[first, *tokens] for tokens, _ in running])
        log_probs = model(decoder_input_ids=prefixes, encoder_outputs=one).logits[:, -1].log_softmax(-1)
        finished += [(t, (s + log_probs[i, stop].item()) / length**alpha) for i, (t, s) in enumerate(running)]
        log_probs[:, [PAD, BOS, EOS]] = float("-inf")
        totals = torch.tensor([score for _, score in running])[:, None] + log_probs
        best, index = totals.flatten().topk(beams)
        running = [
            (running[i // totals.shape[1]][0] + [i % totals.shape[1]], s)
            for i, s in zip(index.tolist(), best.tolist())
        ]
    return sorted(finished, key=lambda pair: -pair[1])[:beams]


@torch.no_grad()
@pytest.mark.parametrize("variant", ["both", "both_3l"])
@pytest.mark.parametrize("beams, max_length, alpha", [(3, 14, 1.0), (4, 10, 0.5), (2, 8, -0.3), (1, 20, 1.0)])
def test_exact_search_is_the_plain_one(variant, beams, max_length, alpha):
    tensors, _ = golden(variant)
    model = build(variant, mask_padding=True)
    encoded = model.encoder(tensors["img"], ~tensors["img_mask"])
    settings = {"num_beams": beams, "max_length": max_length, "length_penalty": alpha, "early_stopping": "never"}
    joint = search(model, encoder_outputs=encoded, num_return_sequences=beams, **settings)
    for which in range(2):
        totals = {}
        for direction, backwards in (("l2r", False), ("r2l", True)):
            found = plain_search(model, encoded, which, beams, max_length, alpha, backwards)
            single = search(
                model, encoder_outputs=encoded, direction=direction, num_return_sequences=beams, **settings
            )
            rows = slice(which * beams, (which + 1) * beams)
            reading = [tokens[::-1] if backwards else tokens for tokens, _ in found]
            assert [strip(s) for s in single.sequences[rows]] == reading
            assert single.sequences_scores[rows].tolist() == pytest.approx([s for _, s in found], abs=1e-4)
            assert single.reverse_scores is None and set(single.directions) == {direction}
            for (tokens, score), read in zip(found, reading):
                reverse = forced(model, encoded, which, tokens[::-1], not backwards).sum() / (len(tokens) + 1) ** alpha
                totals[tuple(read)] = score + reverse.item()
        best = sorted(totals.items(), key=lambda pair: -pair[1])[:beams]
        assert [tuple(strip(s)) for s in joint.sequences[rows]] == [tokens for tokens, _ in best]
        assert joint.sequences_scores[rows].tolist() == pytest.approx([s for _, s in best], abs=1e-4)


@torch.no_grad()
def test_n_best(model, batch):
    """Sorted, without duplicates, every score what teacher forcing gives."""
    output = search(model, **batch, num_beams=6, num_return_sequences=6, max_length=20)
    encoded = model.encoder(**batch)
    assert output.sequences.shape[0] == 12
    for which in range(2):
        rows = range(which * 6, which * 6 + 6)
        scores = output.sequences_scores[list(rows)]
        assert torch.equal(scores, scores.sort(descending=True)[0])
        assert len({tuple(strip(output.sequences[row])) for row in rows}) == 6
        for row in rows:
            tokens = strip(output.sequences[row])
            assert not {PAD, BOS, EOS} & set(tokens)
            forwards = forced(model, encoded, which, tokens, False)
            backwards = forced(model, encoded, which, tokens[::-1], True)
            finder, other = forwards, backwards
            if output.directions[row] == "r2l":
                finder, other = backwards, forwards
            assert output.forward_scores[row].item() == pytest.approx(finder.mean().item(), abs=2e-5)
            assert output.reverse_scores[row].item() == pytest.approx(other.mean().item(), abs=2e-5)
            whole = (finder.sum() + other.sum()).item() / 2
            assert output.log_probabilities[row].item() == pytest.approx(whole, abs=5e-4)
            by_token = finder[:-1] if output.directions[row] == "l2r" else finder[:-1].flip(0)
            torch.testing.assert_close(output.token_scores[row, : len(tokens)], by_token, atol=2e-5, rtol=1e-4)
            assert not output.token_scores[row, len(tokens) :].any()
    torch.testing.assert_close(output.sequences_scores, output.forward_scores + output.reverse_scores)
    assert {"l2r", "r2l"} == set(output.directions)


@pytest.mark.parametrize("direction", ["joint", "l2r", "r2l"])
def test_batch_does_not_matter(model, batch, direction):
    settings = {"direction": direction, "num_beams": 5, "num_return_sequences": 3, "max_length": 40}
    together = search(model, **batch, **settings)
    tensors, _ = golden("both")
    for which in range(2):
        alone = search(model, pixel_values=image(tensors, which), **settings)
        rows = slice(3 * which, 3 * which + 3)
        assert [strip(s) for s in alone.sequences] == [strip(s) for s in together.sequences[rows]]
        torch.testing.assert_close(alone.sequences_scores, together.sequences_scores[rows], atol=1e-4, rtol=0)


def test_finished_searches_leave(model, batch, monkeypatch):
    """And the early stop changes nothing: it is a bound, not a guess."""
    rows = []

    def recording(model, tokens, memory, cache):
        rows.append(len(tokens))
        return decode(model, tokens, memory, cache)

    monkeypatch.setattr(generation_comer, "decode", recording)
    settings = {"num_beams": 4, "max_length": 60, "early_stopping": "never"}
    output = search(model, **batch, **settings)
    assert rows[0] == 2 * 2 * 4 and rows[-1] < rows[0]
    needed = sum(rows)
    rows.clear()
    tensors, _ = golden("both")
    assert search(model, pixel_values=image(tensors, 0), direction="l2r", **settings).sequences.any()
    assert len(rows) < 59
    monkeypatch.setattr(
        _Search, "_cannot_improve", lambda self, best, length: torch.zeros(len(best), dtype=torch.bool)
    )
    rows.clear()
    unhurried = search(model, **batch, **settings)
    assert rows == [16] * 59 and needed < sum(rows)
    assert torch.equal(output.sequences, unhurried.sequences)
    torch.testing.assert_close(output.sequences_scores, unhurried.sequences_scores)


def test_needless_ratings_are_skipped(model, batch, monkeypatch):
    rated = []

    def recording(model, memory, images, *rest):
        rated.append(len(images))
        return score_sequences(model, memory, images, *rest)

    monkeypatch.setattr(generation_comer, "score_sequences", recording)
    output = search(model, **batch, num_beams=8, max_length=20)
    few = sum(rated)
    rated.clear()
    monkeypatch.setattr(_Search, "_last_wanted", lambda self: torch.full((self.images,), float("-inf")))
    everything = search(model, **batch, num_beams=8, max_length=20)
    assert 0 < few < sum(rated)
    assert torch.equal(output.sequences, everything.sequences)


def test_early_stopping_ends_sooner(model, batch, monkeypatch):
    steps = []

    def recording(model, tokens, memory, cache):
        steps.append(len(tokens))
        return decode(model, tokens, memory, cache)

    monkeypatch.setattr(generation_comer, "decode", recording)
    counts = []
    for early_stopping in ("never", False, True):
        steps.clear()
        assert search(model, **batch, max_length=60, early_stopping=early_stopping).sequences.any(1).all()
        counts.append(sum(steps))
    assert 0 < counts[2] <= counts[1] < counts[0]


# ---------------------------------------------------------------------- attention and coverage


def looked(model, encoded, which, tokens, backwards):
    """Maps (tokens, height, width) in reading order, by the teacher-forced pass of one direction."""
    written = tokens[::-1] if backwards else tokens
    one = type(encoded)(encoded.last_hidden_state[which : which + 1], encoded.feature_mask[which : which + 1])
    output = model(decoder_input_ids=torch.tensor([[EOS if backwards else BOS, *written]]), encoder_outputs=one)
    maps = output.cross_attentions[-1][0].mean(0)[: len(tokens)].unflatten(-1, encoded.feature_mask.shape[1:])
    return maps.flip(0) if backwards else maps


@torch.no_grad()
@pytest.mark.parametrize("variant", ["both", "both_3l"])
@pytest.mark.parametrize("kind", ["exact", "official"])
@pytest.mark.parametrize("chunk", [2**24, 1])
def test_attentions_are_those_of_teacher_forcing(variant, kind, chunk, monkeypatch):
    monkeypatch.setattr(decoding_comer, "_CHUNK_ELEMENTS", chunk)
    tensors, _ = golden(variant)
    model = build(variant, mask_padding=True)
    model.lm_head.bias[PAD] = 5.0  # so that the official search writes pad tokens, too
    encoded = model.encoder(tensors["img"], ~tensors["img_mask"])
    settings = {"num_beams": 4, "num_return_sequences": 4, "max_length": 24, "search": kind}
    output = search(model, encoder_outputs=encoded, output_attentions=True, output_coverage=True, **settings)
    plain = search(model, encoder_outputs=encoded, **settings)
    assert torch.equal(output.sequences, plain.sequences) and plain.cross_attentions is plain.coverages is None
    assert output.cross_attentions.shape == output.coverages.shape
    assert output.cross_attentions.shape == (8, output.sequences.shape[1], *encoded.feature_mask.shape[1:])
    assert output.cross_attentions.dtype == torch.float32 and set(output.directions) == {"l2r", "r2l"}
    for row, direction in enumerate(output.directions):
        tokens = output.sequences[row].tolist() if kind == "official" else strip(output.sequences[row])
        # Where the official search ended a reading with pad tokens, its length is not to be seen from the ids.
        length = int(output.cross_attentions[row].sum((1, 2)).round().sum())
        assert len(strip(output.sequences[row])) <= length <= len(tokens)
        expected = looked(model, encoded, row // 4, tokens[:length], direction == "r2l")
        torch.testing.assert_close(output.cross_attentions[row, :length], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(output.coverages[row, :length], expected.cumsum(0), atol=1e-4, rtol=1e-4)
        assert not output.cross_attentions[row, length:].any() and not output.coverages[row, length:].any()
        outside = ~encoded.feature_mask[row // 4]
        assert not output.cross_attentions[row, :, outside].any()


@pytest.mark.parametrize("direction", ["joint", "l2r", "r2l"])
def test_attentions_do_not_depend_on_the_batch(model, batch, direction):
    settings = {"direction": direction, "num_beams": 3, "num_return_sequences": 2, "max_length": 30}
    settings |= {"output_attentions": True, "output_coverage": True}
    together = search(model, **batch, **settings)
    tensors, _ = golden("both")
    for which in range(2):
        alone = search(model, pixel_values=image(tensors, which), **settings)
        length, height, width = alone.cross_attentions.shape[1:]
        for name in ("cross_attentions", "coverages"):
            padded = getattr(together, name)[2 * which : 2 * which + 2]
            torch.testing.assert_close(getattr(alone, name), padded[:, :length, :height, :width], atol=1e-4, rtol=1e-3)
            assert padded.sum().item() == pytest.approx(getattr(alone, name).sum().item(), rel=1e-4)


def test_rows_without_a_reading_have_no_attention(model, batch):
    asked = {"output_attentions": True, "output_coverage": True, "num_return_sequences": 3, "num_beams": 3}
    empty = search(model, **batch, max_length=2, **asked)  # only the reading without any token fits
    assert empty.cross_attentions.shape[:2] == (6, 1) and not empty.cross_attentions.any()
    roles = {"open": 110, "close": 111, "scripts": [], "before_scripts": [], "one": [], "two": [], "root": []}
    roles["banned"] = [token for token in range(113) if token != 74]  # leaves the readings "" and "74"
    two = search(model, **batch, max_length=3, grammar=roles, **asked)
    assert two.sequences_scores.isinf().view(2, 3).tolist() == [[False, False, True]] * 2
    for maps in (two.cross_attentions, two.coverages):
        torch.testing.assert_close(maps.sum((1, 2, 3)), (two.sequences == 74).float().sum(1))
    assert two.coverages.any()
    only = search(model, **batch, num_beams=2, max_length=9, output_coverage=True)
    assert only.cross_attentions is None and only.coverages.any()


@pytest.mark.parametrize("name", ["output_attentions", "output_coverage"])
def test_attentions_need_the_dict(model, batch, name):
    with pytest.raises(ValueError, match=f"{name} needs return_dict_in_generate=True"):
        model.generate(**batch, **{name: True})


# ---------------------------------------------------------------------- arguments


def test_length_limits(model, batch):
    """`max_length` counts the start and, in the exact search, the stop token."""
    with torch.no_grad():
        for length in (3, 6):
            assert search(model, **batch, max_length=length, num_beams=3).sequences.shape[1] <= length - 2
        assert search(model, **batch, max_length=6, search="official").sequences.shape[1] <= 5
        assert not search(model, **batch, max_length=2).sequences.any()
        by_new = model.generate(**batch, max_new_tokens=7, num_beams=2)
    assert torch.equal(by_new, model.generate(**batch, max_length=8, num_beams=2))


def test_fewer_readings_than_asked_for(model, batch):
    output = search(model, **batch, max_length=2, num_return_sequences=2)
    assert output.sequences.shape == (4, 1)
    assert output.sequences_scores.isinf().tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_return_sequences": 4, "num_beams": 3}, "num_return_sequences 4 is more than num_beams 3"),
        ({"direction": "up"}, "direction must be"),
        ({"search": "fast"}, "search must be"),
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"do_sample": True}, "do_sample"),
        ({"top_k_best": 3}, "does not take top_k_best"),
        ({"pixel_values": None}, "needs pixel_values or encoder_outputs"),
    ],
)
def test_bad_arguments(model, batch, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**{**batch, **arguments})


def test_nan_image(model, batch):
    broken = batch["pixel_values"].clone()
    broken[1, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="pixel_values of image 1 hold NaN"):
        model.generate(broken, batch["pixel_mask"])


def test_settings_come_from_the_generation_config(model, batch, tmp_path):
    assert model.can_generate()
    copy = build("both", mask_padding=True)
    copy.generation_config = GenerationConfig(num_beams=2, max_length=9, direction="l2r")
    copy.save_pretrained(tmp_path)
    loaded = CoMERForConditionalGeneration.from_pretrained(tmp_path)
    assert (loaded.generation_config.num_beams, loaded.generation_config.max_length) == (2, 9)
    from_config = search(loaded, **batch)
    expected = search(model, **batch, num_beams=2, max_length=9, direction="l2r")
    assert torch.equal(from_config.sequences, expected.sequences) and from_config.reverse_scores is None
    other = GenerationConfig(max_new_tokens=4)
    assert torch.equal(
        loaded.generate(**batch, generation_config=other, direction="joint"),
        model.generate(**batch, num_beams=2, max_length=5),
    )
    assert loaded.generate(**batch, generation_config=other, max_length=12).shape[1] > 3


def test_trainer_predicts_with_generate(batch, tmp_path):
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    model = build("both", mask_padding=True)
    model.generation_config.max_length = 12
    labels = torch.tensor([[74, 9, 111, 74], [105, 86, 110, 0]])
    rows = [{"pixel_values": x, "pixel_mask": m, "labels": y} for x, m, y in zip(*batch.values(), labels)]
    arguments = Seq2SeqTrainingArguments(
        tmp_path, predict_with_generate=True, per_device_eval_batch_size=2, report_to=[], use_cpu=True
    )
    trainer = Seq2SeqTrainer(
        model, arguments, data_collator=lambda r: {k: torch.stack([x[k] for x in r]) for k in r[0]}
    )
    prediction = trainer.predict(rows + rows)
    read = model.generate(**batch)
    predicted = torch.from_numpy(prediction.predictions)[:, : read.shape[1]]
    assert torch.equal(predicted, read.repeat(2, 1))
    assert prediction.metrics["test_loss"] > 0


def test_blank_model_generates():
    """Random weights, no coverage, one layer: the smallest model the configuration allows."""
    torch.manual_seed(0)
    config = CoMERConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, growth_rate=2,
        dense_layers=[1, 1, 1], cross_coverage=False, self_coverage=False,
    )  # fmt: skip
    model = CoMERForConditionalGeneration(config).eval()
    output = model.generate(torch.rand(1, 1, 20, 33), num_beams=9, num_return_sequences=9, max_length=5)
    assert output.shape[0] == 9 and output.shape[1] <= 3
