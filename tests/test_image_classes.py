"""Images with classes: what is read from files, what is refused, and the order and variation of training batches."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

datasets = pytest.importorskip("datasets")

from epigraph.data.image_classes import (  # noqa: E402
    ImageAugmentation,
    ImageDataset,
    ImageLoader,
    class_names,
    load_images,
    open_images,
    with_classes,
)
from epigraph.models.image_processing_pixelvit import PixelViTImageProcessor  # noqa: E402


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, "PNG")
    return file.getvalue()


def numbered(number: int, size: int = 6) -> bytes:
    """An image of its own for every number, asymmetric."""
    return png(np.arange(size * size).reshape(size, size) + number)


@pytest.fixture
def write(tmp_path):
    """Call `write(labels, feature=None, **columns)`: a parquet file of images with these labels."""

    def write(labels, feature=None, name="images", **columns):
        values = {"image": [{"bytes": numbered(n), "path": None} for n in range(len(labels))], "label": labels}
        dataset = datasets.Dataset.from_dict(values | columns).cast_column("image", datasets.Image())
        if feature is not None:
            dataset = dataset.cast_column("label", feature)
        path = tmp_path / f"{name}.parquet"
        dataset.to_parquet(path)
        return path

    return write


@pytest.fixture
def processor():
    return PixelViTImageProcessor(size={"height": 6, "width": 6}, num_channels=1)


# ---------------------------------------------------------------------------------------------------------- reading


def test_class_labels_keep_their_numbers_and_names(write):
    names = ["zebra", "ant", "unused"]
    rows = load_images(write([0, 1, 0], datasets.ClassLabel(names=names)))
    assert class_names(rows) == names and rows["label"][:] == [0, 1, 0]
    assert rows.column_names == ["id", "image", "label"] and rows["id"][:] == ["0", "1", "2"]


def test_strings_become_classes_over_all_splits(write):
    splits = ["train", "train", "test"]
    path = write(["b", "a", "c"], split=splits, source=["x", "y", "x"])
    rows = load_images(path, split="train")
    assert class_names(rows) == ["a", "b", "c"] and rows["label"][:] == [1, 0], "numbers do not depend on the split"
    assert load_images(path, source="x")["label"][:] == [1, 2]
    assert load_images(path, limit=1)["label"][:] == [1] and len(load_images(path, limit=99)) == 3
    rows = load_images(write(["a"] * 5 + ["b"] * 5), limit=4)
    assert rows["label"][:] == [0, 0, 1, 1], "of files that are sorted by class, every class"


def test_whole_numbers_are_classes(write):
    rows = load_images(write([2, 0]))
    assert class_names(rows) == ["0", "1", "2"] and rows["label"][:] == [2, 0]


def test_unlabelled_images_are_read_without_labels(write, tmp_path):
    assert "label" not in load_images(write([0, 0]), labelled=False).column_names
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.png").write_bytes(numbered(0))
    assert load_images(tmp_path / "plain", labelled=False)["id"][:] == ["a.png"]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "folder"
    for number, name in enumerate(["train/cat/1.png", "train/dog/2.png", "test/dog/3.png", "train/dog/.hidden.png"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(numbered(number))
    return root


def test_folders_are_classes_and_splits(folder):
    rows = load_images(folder, split="test")
    assert class_names(rows) == ["cat", "dog"] and rows["label"][:] == [1] and rows["id"][:] == ["test/dog/3.png"]
    rows = load_images(folder / "train")
    assert rows["label"][:] == [0, 1] and "split" not in rows.column_names
    assert [image.size for _, image in open_images(rows)] == [(6, 6)] * 2
    assert load_images(folder / "train" / "dog", labelled=False)["id"][:] == ["2.png"]


@pytest.mark.parametrize(
    "labels, feature, arguments, message",
    [
        (["a", "a"], None, {}, "images.parquet: its images are of 1 class; at least 2"),
        ([0, 0], None, {}, "of 1 class"),
        ([0.5, 1.0], None, {}, "labels must be class names or whole numbers, not double|float"),
        (["a", None, "b"], None, {}, "row 1 has the label None, which is none of the 2 classes"),
        ([0, -1, 1], None, {}, "row 1 has the label -1, which is none of the 2 classes; give it one of 0 to 1"),
        ([0, 10**6], None, {}, "label 1000000 is no class"),
        ([0, 1], None, {"split": "test"}, "no split 'test'"),
        ([0, 1], None, {"source": "here"}, "asked for source 'here', but the rows have no column 'source'"),
        ([0, 1], None, {"limit": 0}, "limit must be at least 1, not 0"),
    ],
)
def test_what_is_no_classification_is_refused(write, labels, feature, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_images(write(labels, feature), **arguments)


def test_class_labels_out_of_range_are_refused(write, tmp_path):
    import pyarrow.parquet

    path = write([0, 1, 0], datasets.ClassLabel(names=["a", "b"]))
    table = pyarrow.parquet.read_table(path)
    wrong = table.set_column(table.column_names.index("label"), "label", pyarrow.array([0, 1, 7]))
    pyarrow.parquet.write_table(wrong.replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(ValueError, match="row 2 has the label 7, which is none of the 2 classes"):
        load_images(path)


def test_files_that_number_their_classes_differently_are_refused(write, tmp_path):
    write([0, 1], datasets.ClassLabel(names=["cat", "dog"]), name="train")
    write([0, 1], datasets.ClassLabel(names=["dog", "cat"]), name="test")
    with pytest.raises(ValueError, match="test.parquet numbers its classes dog, cat, .*train.parquet cat, dog; name"):
        load_images(tmp_path)
    with pytest.raises(ValueError, match="numbers its classes"):
        load_images(tmp_path, split="test")
    assert class_names(load_images(tmp_path / "test.parquet")) == ["dog", "cat"]


def test_rows_without_an_image_are_named(write, processor):
    rows = load_images(write([0, 1], image=[{"bytes": numbered(0), "path": None}, None]))
    assert [str(image) for _, image in open_images(rows)][1] == "row 1: there is no image in it."
    with pytest.raises(ValueError, match="row 1: there is no image in it"):
        ImageDataset(rows, processor)


def test_a_column_of_something_else_is_no_image(tmp_path):
    path = tmp_path / "numbers.parquet"
    datasets.Dataset.from_dict({"image": [1, 2], "label": ["a", "b"]}).to_parquet(path)
    with pytest.raises(ValueError, match="numbers.parquet: its column image holds int64 and no image files"):
        load_images(path)


def test_places_without_images_are_named(tmp_path, folder, write):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file"):
        load_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no images found; .* it holds nothing"):
        load_images(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="notes.txt: neither a parquet file nor a folder"):
        load_images(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="no split 'dev'; there are test, train"):
        load_images(folder, split="dev")
    with pytest.raises(ValueError, match="train: asked for split 'test', but its images lie in no folders of splits"):
        load_images(folder / "train", split="test")
    with pytest.raises(ValueError, match="dog: .*do not tell their classes"):
        load_images(folder / "train" / "dog")
    (folder / "4.png").write_bytes(numbered(0))
    with pytest.raises(ValueError, match="do not tell their classes"):
        load_images(folder)
    path = tmp_path / "captions.parquet"
    datasets.Dataset.from_dict({"image": [b""], "text": ["x"]}).to_parquet(path)
    with pytest.raises(ValueError, match="captions.parquet: not images with classes; it has the columns image, text"):
        load_images(path)
    write([]).replace(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="none.parquet: there are no rows"):
        load_images(tmp_path / "none.parquet")


def test_classes_are_renumbered_to_those_of_a_model(write):
    rows = load_images(write(["b", "a", "b"]))
    renumbered = with_classes(rows, ["b", "c", "a"])
    assert renumbered["label"][:] == [0, 2, 0] and class_names(renumbered) == ["b", "c", "a"]
    with pytest.raises(ValueError, match="the classes b, which the model does not have; its classes are a, c"):
        with_classes(rows, ["a", "c"])
    rare = rows.select([1])
    assert with_classes(rare, ["a", "c"])["label"][:] == [0], "only classes that rows have must be known"


# --------------------------------------------------------------------------------------------------------- training


@pytest.fixture
def rows(write):
    return load_images(write([n % 3 for n in range(10)], datasets.ClassLabel(names=["a", "b", "c"])))


def epoch(loader, number, **place):
    """Every (label, image) of an epoch, as batches of comparable values."""
    return [
        [(int(label), tuple(image.flatten().tolist())) for label, image in zip(b["labels"], b["pixel_values"])]
        for b in loader(number, **place)
    ]


def test_batches_are_what_the_processor_makes_of_images(rows, processor):
    (batch,) = ImageLoader(rows, processor, 16).in_order()
    expected = processor(images=[image for _, image in open_images(rows)])["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"], expected, rtol=0, atol=0)
    assert batch["labels"].tolist() == rows["label"][:] and batch["labels"].dtype == torch.long
    (batch,) = ImageLoader(rows.remove_columns("label"), processor, 16).in_order()
    assert set(batch) == {"pixel_values"}


def test_pixel_ids_are_kept(rows):
    processor = PixelViTImageProcessor(size={"height": 6, "width": 6}, num_channels=1, pixel_ids=True)
    (batch,) = ImageLoader(rows, processor, 16).in_order()
    assert batch["pixel_values"].dtype == torch.long and batch["pixel_values"][9, 0, 5, 5] == 44


@pytest.mark.parametrize("max_memory", [2**30, 0])
def test_order_and_variation_follow_from_seed_and_epoch(rows, processor, max_memory):
    settings = {"augmentation": ImageAugmentation(shift=2), "max_memory": max_memory}
    loader = ImageLoader(rows, processor, 4, seed=1, **settings)
    assert (loader.dataset.pixels is None) == (max_memory == 0)
    first = epoch(loader, 0)
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert epoch(ImageLoader(rows, processor, 4, seed=1, **settings), 0) == first
    assert epoch(loader, 0, start=1) == first[1:], "a resumed run sees the rest of the epoch"
    assert epoch(loader, 1) != first and epoch(ImageLoader(rows, processor, 4, seed=2, **settings), 0) != first
    labels = [sorted(label for batch in epoch(loader, number) for label, _ in batch) for number in (0, 1)]
    assert labels[0] == labels[1] == sorted(rows["label"][:])
    again = ImageLoader(rows, processor, 4, seed=1, num_workers=2, **settings)
    assert epoch(again, 0) == first, "whatever worker makes it"


def test_processes_share_every_batch(rows, processor):
    loader = ImageLoader(rows, processor, 4, augmentation=ImageAugmentation(shift=1))
    whole, shares = epoch(loader, 0), [epoch(loader, 0, rank=rank, world=2) for rank in (0, 1)]
    for batch, *parts in zip(whole, *shares):
        assert sorted(batch) == sorted(parts[0] + parts[1]) and len(parts[0]) == len(parts[1])
    assert [len(epoch(loader, 0, rank=rank, world=3)) for rank in range(3)] == [2, 2, 2], (
        "too small a batch is left out"
    )


def test_variation_moves_and_mirrors_as_asked():
    image = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    plain = ImageAugmentation()
    seen = {"shifted": set(), "flipped": set()}
    for seed in range(60):
        assert (plain(image, np.random.default_rng(seed)) == image).all(), "nothing is varied unless asked for"
        seen["shifted"].add(ImageAugmentation(shift=1)(image, np.random.default_rng(seed)).tobytes())
        seen["flipped"].add(ImageAugmentation(flip=True)(image, np.random.default_rng(seed)).tobytes())
    assert seen["flipped"] == {image.tobytes(), image[:, :, ::-1].tobytes()}
    assert len(seen["shifted"]) == 9
    padded = np.pad(image[0], 1, mode="edge")
    places = {padded[y : y + 3, x : x + 4].tobytes() for y in range(3) for x in range(3)}
    assert seen["shifted"] == places, "the border is repeated where nothing is"
    for wrong in ({"shift": -1}, {"shift": 0.5}, {"flip": "yes"}):
        with pytest.raises(ValueError, match="augmentation: shift must be"):
            ImageAugmentation(**wrong)


@pytest.mark.parametrize("max_memory", [2**30, 0])
def test_damaged_images_are_named(write, processor, max_memory):
    images = [{"bytes": numbered(n), "path": None} for n in range(4)]
    images[2]["bytes"] = images[2]["bytes"][:45]
    rows = load_images(write([0, 1, 0, 1], image=images, id=["w", "x", "y", "z"]))
    with pytest.raises(ValueError, match="row y: .*damaged"):
        list(ImageLoader(rows, processor, 4, max_memory=max_memory).in_order())


def test_images_of_other_sizes_are_named(write):
    images = [{"bytes": numbered(0, size), "path": None} for size in (6, 6, 7)]
    rows = load_images(write([0, 1, 0], image=images))
    with pytest.raises(ValueError, match="row 2: prepared, it is 7 x 7 pixels .* first row is 6 x 6"):
        ImageDataset(rows, PixelViTImageProcessor(do_resize=False, num_channels=1))
