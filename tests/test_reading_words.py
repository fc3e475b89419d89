"""Words are read right, with and without examples; nothing is computed twice; what cannot be read is said."""

import json
import logging
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import AutoModelForTextRecognition, PreTrainedTokenizerFast, pipeline
from typer.testing import CliRunner
from word_drawings import MEANINGS, WORDS, draw

import epigraph
from epigraph import reading
from epigraph.context_pool import ContextPool
from epigraph.models.configuration_e2str import E2STRConfig
from epigraph.models.modeling_e2str import E2STRForTextRecognition
from epigraph.models.processing_e2str import E2STRProcessor, e2str_processor
from epigraph_cli import app

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def loaded(word_reader):
    return reading.load(word_reader)


@pytest.fixture
def read(loaded):
    model, processor = loaded
    return lambda inputs, **settings: epigraph.read(inputs, model, processor=processor, **settings)


@pytest.fixture
def pool_of(loaded):
    """A pool of variants of drawings with texts, by default of their own."""

    def build(*words, meaning="XY"):
        pool = ContextPool(epigraph.encoder(*loaded))
        pool.add([draw(word, 1 + place) for place, word in enumerate(words)], [
            meaning if word == "SIGN" else word for word in words
        ])  # fmt: skip
        return pool

    return build


@pytest.fixture
def other_model(loaded):
    """A model whose encoder has other weights."""
    model = E2STRForTextRecognition(loaded[0].config).eval()
    return model, loaded[1]


@pytest.fixture
def counted(loaded, monkeypatch):
    """How many images were encoded and how many contexts were read, call by call."""
    calls = {"encode": [], "read_context": []}
    for name, items in calls.items():
        method = getattr(E2STRForTextRecognition, name)

        def counting(self, first, *others, method=method, items=items):
            items.append(len(first))
            return method(self, first, *others)

        monkeypatch.setattr(E2STRForTextRecognition, name, counting)
    return calls


def probability(loaded, images, texts):
    """Of the last text and its end behind the other images and texts, by one pass over the whole prompt."""
    model, processor = loaded
    batch = processor([images], [texts])
    length = len(texts[-1]) + 1
    with torch.no_grad():
        found = model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"]).logits[0, :-1].softmax(-1)
    return found.gather(1, batch["input_ids"][0, 1:, None])[-length:, 0]


# ---------------------------------------------------------------------------------------------------------- readings


def test_words_are_read_right(read):
    results = read([draw(word) for word in WORDS])
    assert [result.text for result in results] == WORDS
    for result in results:
        assert 0.9 < result.score < 1 and result.error is None and not result.doubtful
        assert len(result.char_scores) == len(result.text)
        assert result.plain_text is result.plain_score is None and result.examples == []
        assert [candidate.text for candidate in result.n_best] == [result.text]
    assert read(draw("cat")).text == "cat" and read([]) == []


def test_the_model_follows_from_its_folder(word_reader, tmp_path):
    draw("Exit").save(tmp_path / "exit.png")
    result = epigraph.read(tmp_path / "exit.png", word_reader, task="word")
    assert (result.text, result.name) == ("Exit", str(tmp_path / "exit.png"))
    assert isinstance(AutoModelForTextRecognition.from_pretrained(word_reader), E2STRForTextRecognition)


def test_scores_are_probabilities_of_the_whole_prompt(read, loaded, pool_of):
    plain = read(draw("SIGN"), n_best=3)
    for candidate in plain.n_best:
        expected = probability(loaded, [draw("SIGN")], [candidate.text])
        assert candidate.score == pytest.approx(expected.prod().item(), rel=1e-3)
        assert candidate.char_scores == pytest.approx(expected[:-1].tolist(), rel=1e-3)
    assert {candidate.text for candidate in plain.n_best[:2]} == set(MEANINGS), "two words are as likely"
    assert 0.8 < sum(candidate.score for candidate in plain.n_best) <= 1
    pool = pool_of("SIGN", "cat", "Exit", "42")
    result = read(draw("SIGN"), pool=pool, n_best=2)
    examples = pool.examples([example.id for example in result.examples])
    images, texts = [example.image for example in examples], [example.text for example in examples]
    for candidate in result.n_best:
        expected = probability(loaded, [*images, draw("SIGN")], [*texts, candidate.text])
        assert candidate.score == pytest.approx(expected.prod().item(), rel=1e-3)


@pytest.mark.parametrize("settings", [{"length_penalty": 5.0}, {"num_beams": 1}, {"num_beams": 6}])
def test_scores_do_not_depend_on_how_the_search_ranks(read, settings):
    expected = read(draw("Exit"))
    found = read(draw("Exit"), **settings)
    assert found.text == "Exit" and found.score == pytest.approx(expected.score, rel=1e-4)


def test_further_readings_are_in_order_of_their_scores(read):
    alone, several = read(draw("cat")), read(draw("cat"), n_best=4)
    assert several.text == several.n_best[0].text == alone.text and several.score == pytest.approx(alone.score)
    assert len(several.n_best) == 4 == len({candidate.text for candidate in several.n_best})
    scores = [candidate.score for candidate in several.n_best[1:]]
    assert scores == sorted(scores, reverse=True)


def test_a_reading_that_is_cut_off_is_not_right(read):
    result = read(draw("Exit"), max_new_tokens=2, min_score=0.1)
    assert result.text == "Ex" and result.score == 0 and result.doubtful and len(result.char_scores) == 2


def test_unsure_readings_are_doubtful(read):
    sure, unsure = read([draw("cat"), draw("SIGN")], min_score=0.9)
    assert (sure.doubtful, unsure.doubtful) == (False, True)


# --------------------------------------------------------------------------------------------------------- the pool


@pytest.mark.parametrize("meaning", MEANINGS)
def test_examples_decide_what_a_picture_cannot(read, pool_of, meaning):
    pool = pool_of("SIGN", "cat", "42", meaning=meaning)
    for result in read([draw("SIGN"), draw("SIGN", 7)], pool=pool):
        assert result.text == meaning and result.score > 0.9
        assert result.plain_text in MEANINGS and result.plain_score < 0.7
        first, second = result.examples
        assert first.text == meaning and first.similarity > second.similarity
        assert pool.examples([first.id])[0].text == meaning
    assert read(draw("SIGN"), pool=pool).plain_score == pytest.approx(read(draw("SIGN")).score, rel=1e-4)


def test_a_query_never_finds_itself(read, pool_of):
    pool = pool_of("SIGN", "cat")
    (own,) = [name for name, text in zip(pool.ids, pool.texts) if text == "XY"]
    (result,) = read([draw("SIGN", 1)], pool=pool, k=5)
    assert own not in [example.id for example in result.examples] and [e.text for e in result.examples] == ["cat"]
    assert own in [example.id for example in read(draw("SIGN", 2), pool=pool, k=5).examples]


def test_more_examples_than_the_pool_has(read, pool_of):
    assert len(read(draw("cat"), pool=pool_of("SIGN", "cat"), k=5).examples) == 2


@pytest.mark.parametrize("words, k", [((), 2), (("SIGN",), 0)])
def test_without_examples_the_plain_reading_stands(read, pool_of, words, k):
    result = read(draw("cat"), pool=pool_of(*words), k=k)
    assert result.text == result.plain_text == "cat" and result.score == result.plain_score and result.examples == []


def test_the_gate_spends_examples_on_unsure_words_only(read, pool_of, counted, monkeypatch):
    pool = pool_of("SIGN", "cat", "Exit", "42")
    searched, search = [], ContextPool.search
    monkeypatch.setattr(ContextPool, "search", lambda self, images, *a, **k: searched.append(len(images)) or search(self, images, *a, **k))  # fmt: skip # noqa: E501
    results = read([draw("cat"), draw("SIGN"), draw("No!")], pool=pool, gate=0.9)
    assert [result.text for result in results] == ["cat", "XY", "No!"]
    assert [len(result.examples) for result in results] == [0, 2, 0] and searched == [1]
    assert all(result.plain_text is not None for result in results)
    assert [len(result.examples) for result in read([draw("cat"), draw("SIGN")], pool=pool, gate=0)] == [0, 0]
    assert [len(result.examples) for result in read([draw("cat"), draw("SIGN")], pool=pool, gate=1)] == [2, 2]


def test_nothing_is_computed_twice(read, pool_of, counted):
    pool = pool_of("SIGN", "cat", "Exit")
    counted["encode"].clear()
    queries = [draw("SIGN"), draw("SIGN", 7), draw("SIGN", 8), draw("cat"), draw("Exit")]
    results = read(queries, pool=pool, batch_size=2)
    used = {example.id for result in results for example in result.examples}
    sets = {tuple(example.id for example in result.examples) for result in results}
    assert sum(counted["encode"]) == len(queries) + len(used), "each query and each example once"
    assert len(sets) < len(queries)
    assert sum(counted["read_context"]) == len(sets) + 3, "each set of examples once; no example once for each batch"
    counted["encode"].clear()
    read(queries, pool=pool)
    assert counted["encode"] == [len(queries)], "the pool has kept the latents of its examples"


@pytest.mark.parametrize("gate, used", [(None, {2}), (0.9, {0, 2})])
def test_results_depend_neither_on_the_batch_nor_on_the_order(read, pool_of, gate, used):
    pool = pool_of("SIGN", "cat", "Exit", "No!")
    queries = [draw("SIGN"), draw("cat"), draw("42"), draw("Exit"), draw("No!"), draw("SIGN", 5)]
    alone = [read(query, pool=pool, gate=gate) for query in queries]
    assert {len(result.examples) for result in alone} == used
    for batch_size, order in ((2, 1), (3, -1), (8, 1)):
        found = read(queries[::order], pool=pool, gate=gate, batch_size=batch_size)[::order]
        for one, other in zip(found, alone):
            assert one.text == other.text and one.plain_text == other.plain_text
            assert one.score == pytest.approx(other.score, abs=1e-4)
            assert one.char_scores == pytest.approx(other.char_scores, abs=1e-4)
            assert [example.id for example in one.examples] == [example.id for example in other.examples]


def test_examples_that_the_alphabet_cannot_write_are_left_out(loaded, read, caplog):
    pool = ContextPool(epigraph.encoder(*loaded))
    pool.add([draw("SIGN", 1), draw("SIGN", 2)], ["çà", "XY"])
    with caplog.at_level(logging.WARNING):
        results = read([draw("SIGN"), draw("SIGN", 7)], pool=pool)
    assert [[example.text for example in result.examples] for result in results] == [["XY"], ["XY"]]
    assert len(caplog.records) == 1 and "'ç'" in caplog.text and pool.ids[0] in caplog.text


def test_examples_leave_room_for_the_reading(loaded, read):
    pool = ContextPool(epigraph.encoder(*loaded))
    pool.add([draw("SIGN", place) for place in range(1, 8)], [f"{place}" * 48 for place in range(1, 8)])
    result = read(draw("cat"), pool=pool, k=7)
    assert len(result.examples) == 4 and result.error is None, "of 256 positions 49 are for the reading, 50 for each"


def test_a_pool_by_its_folder(read, pool_of, tmp_path):
    pool = pool_of("SIGN", "cat")
    pool.save(tmp_path / "pool")
    for form in (tmp_path / "pool", str(tmp_path / "pool")):
        assert read(draw("SIGN"), pool=form).text == "XY"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(draw("SIGN"), pool=tmp_path / "nowhere")


def test_a_pool_of_another_model_is_refused(read, pool_of, other_model, tmp_path):
    pool = ContextPool(epigraph.encoder(*other_model))
    pool.add([draw("SIGN", 1)], ["XY"])
    pool.save(tmp_path / "pool")
    for form in (pool, tmp_path / "pool"):
        with pytest.raises(ValueError, match=r"made by another encoder.*reencode\("):
            read(draw("SIGN"), pool=form)
    with pytest.raises(ValueError, match="without an encoder"):
        read(draw("SIGN"), pool=ContextPool.load(tmp_path / "pool"))
    mine = pool_of("cat").encode
    assert read(draw("SIGN"), pool=pool.reencode(mine)).text == "XY"


def test_a_pool_outlives_a_new_decoder_and_half_precision(loaded, word_reader, pool_of):
    pool, processor = pool_of("SIGN", "cat"), loaded[1]
    trained, _ = reading.load(word_reader)
    with torch.no_grad():
        trained.model.text_model.embed_tokens.weight[5] += 1
    assert epigraph.read(draw("SIGN"), trained, processor=processor, pool=pool).text == "XY"
    result = epigraph.read(
        draw("SIGN"), reading.load(word_reader, dtype="bfloat16")[0], processor=processor, pool=pool
    )
    assert result.text == "XY" and len(result.examples) == 2


def test_explained_results_show_their_images(read, pool_of):
    pool = pool_of("SIGN", "cat")
    result = read(draw("SIGN"), pool=pool, explain=True)
    assert np.array_equal(np.asarray(result.image), np.asarray(draw("SIGN").convert("RGB")))
    assert np.array_equal(np.asarray(result.examples[0].image), np.asarray(draw("SIGN", 1).convert("RGB")))
    assert not [name for name in (*asdict(result), *asdict(result)["examples"][0]) if "image" in name]
    assert read(draw("SIGN"), pool=pool).image is None


def test_encoder(loaded):
    model, processor = loaded
    encode = epigraph.encoder(model, processor)
    images = [draw(word).convert("RGB") for word in WORDS]
    model.train()
    keys, latents = encode(images)
    assert model.training
    model.eval()
    assert keys.shape == (4, 32) and latents.shape == (4, 8, 32) and keys.dtype == torch.float32
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(4))
    inside = epigraph.encoder(model.model, processor)
    assert inside.weights_sha256 == encode.weights_sha256 and len(encode.weights_sha256) == 64
    torch.testing.assert_close(inside(images[:1])[1], latents[:1], atol=1e-4, rtol=1e-4)


def pieces_processor():
    """Pieces of words instead of characters, as OPT writes them; one token begins and ends a text."""
    pieces = ["<pad>", "</s>", "<eoc>", "<image>", "e", "x", "i", "t", "it", "xit"]
    merges = [("i", "t"), ("x", "it")]
    tokenizer = Tokenizer(BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    tokenizer.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "bos_token": "</s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        extra_special_tokens=["<eoc>", "<image>"],
        clean_up_tokenization_spaces=False,
        **special,
    )
    return E2STRProcessor(e2str_processor().image_processor, tokenizer)


def test_pieces_of_words_have_a_score_each(loaded):
    processor = pieces_processor()
    config = loaded[0].config.to_dict()
    config["text_config"] |= {"vocab_size": 10, "bos_token_id": 1, "eos_token_id": 1}
    torch.manual_seed(1)
    model = E2STRForTextRecognition(
        E2STRConfig(**{k: config[k] for k in ("vision_config", "resampler_config", "text_config")})
    ).eval()
    pool = ContextPool(epigraph.encoder(model, processor))
    pool.add([draw("cat", 1)], ["exit"])
    result = epigraph.read(draw("cat"), model, processor=processor, pool=pool, n_best=3, max_new_tokens=6)
    assert [example.text for example in result.examples] == ["exit"]
    for candidate in result.n_best:
        assert all(0 < score < 1 for score in candidate.char_scores)
        assert len(candidate.char_scores) == 6 or candidate.score > 0, (
            "cut off after six pieces, whatever their length"
        )


# ---------------------------------------------------------------------------------------------------------- bad input


def as_16_bits(image):
    return Image.fromarray(np.asarray(image).astype(np.uint16) * 257)


def on_nothing(image):
    """Ink on transparent ground."""
    return Image.merge("LA", (Image.new("L", image.size, 0), image.point(lambda grey: 255 - grey)))


FORMS = {
    "grey": lambda image: image,
    "rgb": lambda image: image.convert("RGB"),
    "cmyk": lambda image: image.convert("RGB").convert("CMYK"),
    "palette": lambda image: image.convert("P"),
    "16 bits": as_16_bits,
    "alpha": on_nothing,
    "rgba": lambda image: on_nothing(image).convert("RGBA"),
    "array": np.asarray,
    "floats": lambda image: np.asarray(image, np.float32) / 255,
    "tensor": lambda image: torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1),
    "huge": lambda image: image.resize((128 * 32, 32 * 40), Image.Resampling.NEAREST),
    "small": lambda image: image.resize((64, 16), Image.Resampling.BOX),
}


@pytest.mark.parametrize("form", FORMS)
def test_any_kind_of_image_is_read(read, form):
    result = read([FORMS[form](draw("No!"))])[0]
    assert result.error is None and result.text == "No!"


def test_a_crop_of_one_pixel_is_read(read, pool_of):
    result = read(Image.new("L", (1, 1)), pool=pool_of("SIGN"))
    assert result.error is None and result.score is not None


def test_what_cannot_be_read_is_said_and_the_others_are_read(read, pool_of, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "notes.txt").write_text("no image")
    draw("cat").save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    bad = [
        Image.new("RGB", (0, 20)),
        np.zeros((0, 8), np.uint8),
        Image.new("1", (70_000, 1000)),
        tmp_path / "text.png",
        tmp_path / "notes.txt",
        tmp_path / "cut.png",
        tmp_path / "gone.png",
        b"",
        [[(0, 0), (5, 5)]],
        3,
    ]
    results = read([draw("cat"), *bad, draw("SIGN")], pool=pool_of("SIGN", "cat"), batch_size=4, progress=True)
    assert [result.text for result in results] == ["cat", *[""] * len(bad), "XY"]
    for item, result in zip(bad, results[1:-1]):
        assert result.error.startswith(result.name) and result.error.endswith(".") and "\n" not in result.error
        assert (str(item) == result.name) == isinstance(item, Path)
        assert result.score is None and result.plain_score is None and not result.doubtful
    assert "0 x 20" in results[1].error and "pixels" in results[3].error and "ink" in results[9].error


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"gate": 1.5}, "gate is a probability"),
        ({"gate": 0.5}, "give a pool, or leave it out"),
        ({"k": -1}, "k is a number of examples"),
        ({"pool": ["a"]}, "pool is a ContextPool"),
        ({"task": "maths"}, "does not read maths"),
        ({"n_best": 5, "num_beams": 3}, "num_beams"),
        ({"direction": "joint"}, "direction"),
        ({"processor": e2str_processor("".join(map(chr, range(200, 400))))}, "numbers other tokens"),
    ],
)
def test_wrong_settings_are_refused(loaded, settings, message):
    model, processor = loaded
    with pytest.raises(ValueError, match=message):
        epigraph.read(draw("cat"), model, **{"processor": processor, **settings})


@pytest.fixture
def shipped(word_reader, tmp_path, monkeypatch):
    """A working folder whose ./checkpoints hold the small model under the name of the shipped one."""
    shutil.copytree(word_reader, tmp_path / "checkpoints" / reading.DEFAULT_CHECKPOINTS["word"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_words_are_read_by_the_shipped_model_where_none_is_named(shipped, loaded):
    assert epigraph.read(draw("cat"), task="word").text == "cat"
    pool = ContextPool(epigraph.encoder(*loaded))
    pool.add([draw("SIGN", 1)], ["XY"])
    pool.save("pool")
    assert [example.text for example in epigraph.read(draw("SIGN"), pool="pool").examples] == ["XY"]
    draw("Exit").save("exit.png")
    result = CliRunner().invoke(app, ["read", "exit.png", "--task", "word"])
    assert result.exit_code == 0 and result.stdout.split("\t")[-1].strip() == "Exit"
    draw("42").save("42.png")
    assert CliRunner().invoke(app, ["pool", "add", "pool", "42.png", "24"]).exit_code == 0
    found = CliRunner().invoke(app, ["pool", "search", "pool", "exit.png", "--k", "1"])
    assert found.exit_code == 0 and found.stdout.startswith("exit.png\t")


def test_without_its_weights_the_shipped_model_is_one_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reading, "__file__", str(tmp_path / "a" / "b" / "reading.py"))
    assert reading.default_checkpoint("word") == "epigraph/e2str-small"
    monkeypatch.setattr(reading, "snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(ValueError, match="epigraph/e2str-small: no such folder, and not to be had from the Hub"):
        epigraph.read(draw("cat"), task="word")


# ------------------------------------------------------------------------------------------------ pipeline, command


def test_pipeline(word_reader, pool_of, tmp_path, monkeypatch):
    pool_of("SIGN", "cat").save(tmp_path / "pool")
    opened, load = [], ContextPool.load
    monkeypatch.setattr(ContextPool, "load", lambda *a: opened.append(a) or load(*a))
    pipe = pipeline("text-recognition", model=str(word_reader), pool=str(tmp_path / "pool"), gate=0.9)
    found = pipe([draw("SIGN"), draw("Exit")]) + [pipe(draw("cat"), n_best=2)]
    assert [result["text"] for result in found] == ["XY", "Exit", "cat"]
    assert [len(result["examples"]) for result in found] == [2, 0, 0] and len(found[2]["n_best"]) == 2
    assert found[0]["examples"][0]["text"] == "XY" and len(opened) == 1
    assert pipeline("text-recognition", model=str(word_reader))(draw("42"))["plain_text"] is None


def test_the_pipeline_has_the_shipped_model(shipped, run_python):
    draw("Exit").save(shipped / "exit.png")
    code = "import epigraph\nfrom transformers import pipeline\n"
    code += "print('read', pipeline('text-recognition', device='cpu')('exit.png')['text'])"
    assert "read Exit" in run_python(code, cwd=shipped).stdout


@pytest.fixture
def run(tmp_path):
    """The command, with what it printed."""

    def invoke(*arguments, ok=True):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert (done.exit_code == 0) is ok, done.output
        return done.stdout.splitlines() if ok else done.exception

    return invoke


@pytest.fixture
def files(tmp_path):
    for name, image in (("sign", draw("SIGN")), ("cat", draw("cat"))):
        image.save(tmp_path / f"{name}.png")
    return tmp_path / "sign.png", tmp_path / "cat.png"


def test_command(word_reader, files, run, pool_of, tmp_path):
    lines = [line.split("\t") for line in run("read", *files, "--model", word_reader)]
    assert [line[0] for line in lines] == [str(file) for file in files] and lines[1][2] == "cat"
    assert all(len(line) == 3 for line in lines)
    pool_of("SIGN", "42").save(tmp_path / "pool")
    with_pool = ("--model", word_reader, "--pool", tmp_path / "pool", "--k", 1, "--gate", 0.9)
    (sign, cat) = (line.split("\t") for line in run("read", *files, *with_pool))
    assert sign[2] == "XY" and float(sign[1]) > float(sign[3]) and sign[4] in MEANINGS
    assert re.fullmatch(r"XY \((1\.000|0\.9\d\d)\)", sign[5]) and cat[2] == cat[4] == "cat" and cat[5] == ""
    printed = [json.loads(line) for line in run("read", *files, *with_pool, "--json")]
    assert [entry["text"] for entry in printed] == ["XY", "cat"]
    assert [example["text"] for example in printed[0]["examples"]] == ["XY"] and printed[1]["examples"] == []
    assert "direction" in str(run("read", files[0], "--model", word_reader, "--direction", "l2r", ok=False))
    error = run("read", files[0], "--model", word_reader, "--explain", tmp_path / "page.html", ok=False)
    assert "shows formulas" in str(error) and not (tmp_path / "page.html").exists()


def test_pools_on_the_command_line(word_reader, other_model, files, run, tmp_path):
    folder, pool = tmp_path / "words", tmp_path / "pool"
    folder.mkdir()
    for place, word in enumerate(["cat", "42"], start=1):
        draw(word, place).save(folder / f"{place}.png")
    (folder / "labels.csv").write_text("file_name,text\n1.png,cat\n2.png,42\n")
    assert "2 entries" in run("pool", "build", pool, folder, "--model", word_reader)[0]
    assert "holds a pool already" in str(run("pool", "build", pool, folder, "--model", word_reader, ok=False))
    (name,) = run("pool", "add", pool, files[0], "ab", "--model", word_reader, "--source", "street")
    assert "in the pool already" in run("pool", "add", pool, files[0], "ab", "--model", word_reader)[0]
    assert "replace" in str(run("pool", "add", pool, files[0], "XY", "--model", word_reader, ok=False))
    (name,) = run("pool", "add", pool, files[0], "XY", "--model", word_reader, "--source", "street", "--replace")
    assert sorted(line.split("\t")[1] for line in run("pool", "list", pool)) == ["42", "XY", "cat"]
    draw("SIGN", 4).save(tmp_path / "query.png")
    best, other = (line.split("\t") for line in run("pool", "search", pool, tmp_path / "query.png", "--model", word_reader, "--k", 2))  # fmt: skip # noqa: E501
    assert best[2:] == [name, "street", "XY"] and float(best[1]) > float(other[1])
    run("pool", "remove", pool, name)
    assert name not in "".join(run("pool", "list", pool))
    assert "no entry" in str(run("pool", "remove", pool, name, ok=False))
    assert run("pool", "undo", pool) == [f"+{name}"]
    other_model[0].save_pretrained(tmp_path / "other")
    other_model[1].save_pretrained(tmp_path / "other")
    assert "reencode" in str(run("pool", "search", pool, files[0], "--model", tmp_path / "other", ok=False))
    assert "3 entries" in run("pool", "reencode", pool, "--model", tmp_path / "other")[0]
    assert run("pool", "search", pool, files[1], "--model", tmp_path / "other", "--k", 1)[0].startswith(str(files[1]))


def test_python_in_the_document_runs(word_reader, tmp_path, monkeypatch, capsys):
    """The section on reading, word for word, with a small model."""
    text = (ROOT / "docs" / "e2str.md").read_text(encoding="utf-8")
    section = text.split("## Reading with a pool\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crops").mkdir()
    for place, word in enumerate(["cat", "42", "Exit"], start=1):
        draw(word, place).save(tmp_path / "crops" / f"{place}.png")
    (tmp_path / "crops" / "labels.csv").write_text("file_name,text\n1.png,cat\n2.png,42\n3.png,Exit\n")
    draw("SIGN").save(tmp_path / "word.png")
    draw("SIGN", 3).save(tmp_path / "misread.png")
    (tmp_path / "model").symlink_to(word_reader)
    exec("\n".join(blocks), {})
    assert "XY" in capsys.readouterr().out
