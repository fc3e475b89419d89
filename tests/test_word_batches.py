"""Words in batches: parts of words by hand, sequences in context, shares of sources, and the same every time."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from epigraph.models.processing_e2str import e2str_processor

datasets = pytest.importorskip("datasets")
pytest.importorskip("cv2")
from epigraph.data.word_augmentation import WordAugmentation, resized, varied_copy, warped  # noqa: E402
from epigraph.data.word_batches import WordDataset, WordLoader, WordSource, exchanged, in_context, kinds, split_word  # noqa: E402

# Of a word "AbC" in 40 x 10 pixels: right edges at 12, 20 and 38, the middle one slanted.
QUADS = np.array(
    [
        [[1, 0], [12, 0], [12, 9], [1, 9]],
        [[13, 0], [22, 0], [18, 9], [11, 9]],
        [[21, 0], [38, 0], [38, 9], [21, 9]],
    ],
    np.float32,
)
EDGES = [0, 12, 20, 38]
SIZE = (16, 32)


class Draws:
    """Stands for a random generator that draws what it was told to."""

    def __init__(self, *values):
        self.values, self.ranges = list(values), []

    def integers(self, low, high=None):
        self.ranges.append((0, low) if high is None else (low, high))
        return self.values.pop(0)


def columns(width=40, height=10):
    """Every pixel is the number of its column."""
    return np.broadcast_to(np.arange(width, dtype=np.uint8)[None, :, None], (height, width, 3))


def test_parts_go_from_the_right_edge_of_the_character_before_to_that_of_the_last():
    draws = Draws(3, 0, 0, 1, 2, 2, 2)
    parts = split_word(columns(), "AbC", QUADS, draws)
    assert [text for _, text in parts] == ["A", "bC", "C"]
    assert [(int(image[0, 0, 0]), int(image[0, -1, 0])) for image, _ in parts] == [(0, 11), (12, 37), (20, 37)]
    assert all(len(image) == 10 for image, _ in parts), "full height"
    assert draws.ranges == [(2, 4), (0, 3), (0, 3), (0, 3), (1, 3), (0, 3), (2, 3)]


def test_how_many_parts_depends_on_letters_and_length():
    for text, wanted in (("AbC", (2, 4)), ("1-3", (1, 3)), ("12", (1, 2))):
        draws = Draws(1, 0, 0)
        split_word(columns(), text, QUADS[: len(text)], draws)
        assert draws.ranges[0] == wanted, text


def test_every_part_shows_what_it_says():
    for seed in range(30):
        for image, text in split_word(columns(), "AbC", QUADS, np.random.default_rng(seed)):
            first, last = "AbC".index(text[0]), "AbC".index(text[-1])
            assert text == "AbC"[first : last + 1]
            assert image[0, 0, 0] == EDGES[first] and image[0, -1, 0] == EDGES[last + 1] - 1


@pytest.mark.parametrize("text, quads", [("AbC", None), ("Ab", QUADS), ("A", QUADS[:1])])
def test_words_whose_characters_are_not_known_are_not_split(text, quads):
    assert split_word(columns(), text, quads, np.random.default_rng(0)) == []


def test_parts_without_width_are_left_out_and_none_leaves_the_image():
    backwards = QUADS[[1, 0, 2]]  # the second character ends to the left of the first one: "b" alone has no width
    parts = [
        part for seed in range(40) for part in split_word(columns(), "AbC", backwards, np.random.default_rng(seed))
    ]
    assert {text for _, text in parts} == {"A", "Ab", "AbC", "bC", "C"}
    assert {image.shape[1] for image, text in parts if text == "bC"} == {18}
    beyond = QUADS + np.array([10, 0], np.float32)
    (image, _), *_ = split_word(columns(), "AbC", beyond, Draws(1, 2, 2))
    assert (image[0, 0, 0], image[0, -1, 0]) == (30, 39), "cut at the border"


def test_a_sequence_holds_words_their_parts_and_variants():
    words = [(columns(), "AbC", QUADS), (columns(30), "x", None), (columns(20), "77", None)]
    sequence = in_context(words, 80, SIZE, np.random.default_rng(1))
    assert all(image.shape == (*SIZE, 3) and image.dtype == np.uint8 for image, _ in sequence)
    texts = [text for _, text in sequence]
    assert {"AbC", "x", "77"} <= set(texts)
    # 3 words, at most 3 parts, 2 variants at least.
    assert 3 + 2 + 2 <= len(texts) <= 3 + 3 + 2
    plain = [image for image, text in sequence if text == "77" and np.array_equal(image, resized(columns(20), SIZE))]
    assert len(plain) == 1, "as it is, once; the others are varied"
    assert len(in_context(words, 4, SIZE, np.random.default_rng(1))) == 4
    again = in_context(words, 80, SIZE, np.random.default_rng(1))
    assert all(np.array_equal(a, b) and s == t for (a, s), (b, t) in zip(sequence, again))


def test_words_without_parts_are_varied_themselves():
    sequence = in_context([(columns(), "x", None)], 9, SIZE, np.random.default_rng(0))
    assert [text for _, text in sequence] == ["x", "x"], "there is one to be varied, though two are wanted"


# ------------------------------------------------------------------------------------------------------- augmentation


def test_warping_moves_corners_where_they_are_wanted():
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 30:] = 255
    corners = np.array([[0, 0], [60, 0], [60, 20], [0, 20]], float)
    plain = warped(image, corners, (20, 60))
    assert np.array_equal(plain, image), "corners that stay leave every pixel as it is"
    mirrored = warped(image, corners[[1, 0, 3, 2]], (20, 60))
    assert np.array_equal(mirrored, image[:, ::-1])
    wide = warped(image, corners, (20, 60), np.array([[0.5, 0], [0, 0]]))
    # Half a width more on the left, which repeats the border: the step goes from 1/2 to 2/3.
    assert (wide[10, :39] == 0).all() and (wide[10, 41:] == 255).all()
    assert warped(np.full((200, 900, 3), 7, np.uint8), corners, (16, 32)).tolist() == np.full((16, 32, 3), 7).tolist()


@pytest.mark.parametrize("kind", ["geometry", "degradation", "colour"])
def test_each_variation_changes_the_image_and_is_drawn_from_the_generator(kind):
    image = np.random.default_rng(0).integers(0, 256, (24, 70, 3), np.uint8)
    chances = {"geometry": 0.0, "degradation": 0.0, "colour": 0.0}
    assert np.array_equal(WordAugmentation(**chances)(image, SIZE, np.random.default_rng(3)), resized(image, SIZE))
    vary = WordAugmentation(**chances | {kind: 1.0})
    for seed in range(8):
        first, again = (vary(image, SIZE, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(first, again) and first.shape == (*SIZE, 3) and first.dtype == np.uint8
        assert not np.array_equal(first, resized(image, SIZE))
    first, other = (varied_copy(image, SIZE, np.random.default_rng(seed)) for seed in range(2))
    assert first.shape == (*SIZE, 3) and not np.array_equal(first, other)


def test_variations_keep_a_grey_image_grey_and_a_flat_one_flat():
    flat = np.full((24, 70, 3), 90, np.uint8)
    for seed in range(10):
        varied = varied_copy(flat, SIZE, np.random.default_rng(seed))
        assert (varied == varied[0, 0, 0]).all()


@pytest.mark.parametrize("changes", [{"geometry": 1.5}, {"colour": -0.1}, {"rotation": 91}])
def test_variations_that_cannot_be_are_refused(changes):
    with pytest.raises(ValueError, match=f"augmentation: {next(iter(changes))}"):
        WordAugmentation(**changes)


# ------------------------------------------------------------------------------------------------------------- loader


def stored(shade: int) -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (shade, shade, shade)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def rows_of(count: int, letter: str, quads: bool = False):
    """Words `a0`, `a1` ... whose images have the shade of their number."""
    columns = {
        "id": [f"{letter}{number}" for number in range(count)],
        "image": [stored(number) for number in range(count)],
        "text": [f"{letter}{number:02d}" for number in range(count)],
    }
    if quads:
        columns["char_quads"] = [(QUADS / 2).tolist()] * count
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def loader(weights=(1.0, 1.0), batch_size=4, seed=0, images=1, augmentation=None, counts=(12, 4), max_length=64):
    parts = [rows_of(counts[0], "a", quads=True), rows_of(counts[1], "b")]
    dataset = WordDataset(parts, SIZE, images, augmentation, seed)
    processor = e2str_processor(size=dict(zip(("height", "width"), SIZE)), max_length=max_length)
    return WordLoader(dataset, list(weights), processor, batch_size)


def texts(batch, processor) -> list[list[str]]:
    """The texts of every prompt of a batch."""
    read = [processor.tokenizer.convert_ids_to_tokens(row) for row in batch["input_ids"].tolist()]
    return [["".join(part) for part in "".join(row).replace("<pad>", "").split("<image>")[1:]] for row in read]


def test_an_epoch_holds_each_source_in_its_share_and_goes_on_where_it_stopped():
    load = loader(weights=(12, 4))
    assert sorted(load.order(0).tolist()) == list(range(16)), "without weights every word once"
    load = loader(weights=(0.25, 0.75))
    assert load.counts.tolist() == [4, 12]
    seen = np.concatenate([load.order(epoch) for epoch in range(3)])
    assert sorted(seen[seen < 12].tolist()) == list(range(12)), "three epochs of a quarter show all, none twice"
    assert np.bincount(seen[seen >= 12] - 12).tolist() == [9] * 4
    assert load.order(0).tolist() == loader(weights=(0.25, 0.75)).order(0).tolist() != load.order(1).tolist()
    assert load.order(0).tolist() != loader(weights=(0.25, 0.75), seed=1).order(0).tolist()


def test_batches_are_the_processors_and_images_stand_with_their_texts():
    load = loader()
    batches = list(load(0))
    assert [len(batch["input_ids"]) for batch in batches] == [4] * 4
    batch = batches[1]
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "labels"}
    assert batch["pixel_values"].shape == (4, 1, 3, *SIZE)
    own = load.processor.image_processor
    for image, (text,) in zip(batch["pixel_values"], texts(batch, load.processor)):
        number = int(text.removesuffix("<eoc>")[1:])
        shade = (image[0, 0] * own.image_std[0] + own.image_mean[0]) * 255
        torch.testing.assert_close(shade, torch.full(SIZE, float(number)), atol=0.01, rtol=0)


@pytest.mark.parametrize("images", [1, 6])
def test_batches_are_the_same_from_any_place_and_for_any_number_of_processes(images):
    augmentation = WordAugmentation(part=0.5) if images == 1 else None

    def new():
        return loader(images=images, augmentation=augmentation, batch_size=2)

    whole = list(new()(1))
    assert len(whole) == (8 if images == 1 else 2)
    for start, batch in zip(range(1, 3), new()(1, start=1)):
        for name, values in batch.items():
            assert torch.equal(values, whole[start][name]), name
    halves = [list(new()(1, rank=rank, world=2)) for rank in range(2)]
    for number, batch in enumerate(whole):
        together = [text for half in halves for text in texts(half[number], new().processor)]
        assert sorted(together) == sorted(texts(batch, new().processor))
    other = list(new()(2))
    assert not torch.equal(other[0]["pixel_values"], whole[0]["pixel_values"])


def test_single_words_may_be_shown_in_part_where_their_characters_are_known():
    load = loader(augmentation=WordAugmentation(0.0, 0.0, 0.0, part=1.0), counts=(40, 20), weights=(2, 1))
    shown = [prompt[0].removesuffix("<eoc>") for batch in load(0) for prompt in texts(batch, load.processor)]
    whole = {f"{letter}{number:02d}" for letter, count in (("a", 40), ("b", 20)) for number in range(count)}
    assert sum(text in whole and text[0] == "b" for text in shown) == 20, "without quads as they are"
    parts = [text for text in shown if text not in whole]
    assert len(parts) > 20 and all(len(text) < 3 for text in parts)


def test_words_are_of_one_kind_by_font_letters_and_digits():
    found = kinds(["EXIT", "12:30", "7", "B12", "way", "%"], ["Arial"] * 5 + [None]).tolist()
    assert found[1] == found[2] and found[0] == found[4] and len(set(found)) == 4
    other = kinds(["EXIT", "EXIT", "EXIT", "out"], ["Arial", "Times", None, None]).tolist()
    assert len(set(other)) == 3 and other[2] == other[3]


def test_a_share_of_the_sequences_has_words_of_one_kind():
    names = ["Arial", "Times", "Courier"]
    rows = datasets.Dataset.from_dict(
        {
            "id": [str(number) for number in range(240)],
            "image": [stored(9)] * 240,
            "text": [("ab", "12")[number // 3 % 2] for number in range(240)],
            "font": [names[number % 3] for number in range(240)],
        }
    ).cast_column("image", datasets.Image())
    dataset = WordDataset([rows, rows_of(40, "b")], SIZE, 8)
    processor = e2str_processor(size=dict(zip(("height", "width"), SIZE)), max_length=64)

    def alike(share):
        load = WordLoader(dataset, [240, 40], processor, 4, alike=share)
        order = load.order(1)
        assert sorted(order.tolist()) == list(range(280)) and order.tolist() == load.order(1).tolist()
        cut = dataset.kinds[order[: 280 // 6 * 6]].reshape(-1, 6)
        return sum(len(set(row)) == 1 for row in cut.tolist()), len(cut)

    assert len(set(dataset.kinds.tolist())) == 7
    one, count = alike(1.0)
    assert count == 46 and one >= 46 - 6, "where one kind ends and the next begins they are mixed"
    half, _ = alike(0.5)
    assert 23 - 6 <= half <= 25 and alike(0.0)[0] < 3


def test_characters_stand_for_each_other_and_are_known_where_they_were_there_before():
    own = ["cab-7", "bad", "dad7", "e"]
    for seed in range(20):
        new, known = exchanged(own, np.random.default_rng(seed))
        writing = {a: b for old, text in zip(own, new) for a, b in zip(old, text)}
        assert ["".join(writing[character] for character in text) for text in own] == new, "one writing for all"
        changed = {a for a, b in writing.items() if a != b}
        assert 2 <= len(changed) and changed <= set("ab7d"), "of two texts at least, and no signs"
        assert {writing[a] for a in changed} == changed
        seen = ""
        for old, flags in zip(own, known):
            for place, (character, flag) in enumerate(zip(old, flags, strict=True)):
                assert flag == (character not in changed or character in seen + old[:place])
            seen += old
    assert exchanged(["ab", "c"], np.random.default_rng(0)) == (["ab", "c"], [[True] * 2, [True]])


def test_characters_that_cannot_be_known_have_no_label():
    def batch(exchange):
        load = loader(images=6, batch_size=1, weights=(1, 1e-9))
        load.dataset = WordDataset(load.dataset.rows, SIZE, 6, exchange=exchange)
        return next(load(0))

    plain, other = batch(0.0), batch(1.0)
    assert torch.equal(plain["pixel_values"], other["pixel_values"])
    (old,), (new,), (labels,) = plain["input_ids"], other["input_ids"], other["labels"]
    changed = set(old[old != new].tolist())
    assert len(changed) > 1
    for place, (token, label) in enumerate(zip(old.tolist(), labels.tolist())):
        if plain["labels"][0, place] == -100:
            assert label == -100
        elif token in changed and token not in old[:place].tolist():
            assert label == -100, "nothing says what it stands for"
        else:
            assert label == new[place]


def test_a_sequence_is_varied_by_one_draw():
    class Marked:
        """Draws one grey value for all of an image."""

        part = 0.0

        def __call__(self, image, size, rng):
            return np.full((*size, 3), rng.integers(256), np.uint8)

    load = loader(images=6, batch_size=1, augmentation=Marked())
    shades = [sorted(set(batch["pixel_values"][:, :, 0].flatten().tolist())) for batch in load(0)]
    assert all(len(shade) == 1 for shade in shades) and len({shade[0] for shade in shades}) > 1


def test_sequences_in_context_show_parts_of_their_words_and_stay_within_the_prompt():
    load = loader(images=8, batch_size=1, weights=(0.999, 0.001))
    assert load.own_words == 6
    prompts = [prompt for batch in load(0) for prompt in texts(batch, load.processor)]
    assert all(len(prompt) <= 8 for prompt in prompts)
    assert {len(text.removesuffix("<eoc>")) for prompt in prompts for text in prompt} >= {1, 3}, "parts and words"
    short = loader(images=8, batch_size=2, max_length=12)
    for batch in short(0):
        assert batch["input_ids"].shape[1] <= 12


def test_a_damaged_image_is_named_and_too_few_words_are_refused():
    rows = rows_of(3, "a").cast_column("image", datasets.Image(decode=False))
    cut = rows.map(lambda row: {**row, "image": {"bytes": row["image"]["bytes"][:40], "path": None}})
    load = loader()
    load.dataset = WordDataset([cut], SIZE)
    with pytest.raises(ValueError, match="row a[012]: .*damaged"):
        load.dataset.words([1])
    with pytest.raises(ValueError, match="are too few for 40 processes"):
        loader()(0, world=40)


def test_held_out_words_are_chosen_by_their_ids_and_never_trained_on(tmp_path):
    path = tmp_path / "words.parquet"
    rows_of(200, "a").to_parquet(path)
    source = WordSource(str(path), held_out=0.2)
    train, held_out = source.load(set("ab0123456789"))
    assert 20 < len(held_out) < 60 and len(train) + len(held_out) == 200
    assert not set(train["id"]) & set(held_out["id"])
    rows_of(230, "a").to_parquet(path)
    more = WordSource(str(path), held_out=0.2).load(set("ab0123456789"))[1]
    assert set(held_out["id"]) <= set(more["id"]), "more words leave the choice as it was"
    with pytest.raises(ValueError, match="all of its 230 words are held out"):
        WordSource(str(path), held_out=0.99999).load(set("ab0123456789"))
    assert source.name == "words" and WordSource("x.parquet", source="svt").name == "svt"


def test_labels_are_those_that_can_be_written_and_are_not_too_long(tmp_path):
    rows = rows_of(4, "a").remove_columns("text").add_column("text", ["Café", "a b", "x" * 26, "日本"])
    rows.to_parquet(tmp_path / "words.parquet")
    train, held_out = WordSource(str(tmp_path / "words.parquet")).load(set("Cafexb"))
    assert train["text"][:] == ["Cafe", "ab"] and len(held_out) == 0


@pytest.mark.parametrize("values, message", [({"weight": 0}, "weight must be above 0"), ({"held_out": 1}, "held_out")])
def test_sources_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        WordSource("x", **values)
