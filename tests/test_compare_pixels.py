"""The study of PixelViT: its runs, what they write, and that the document says what was measured."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("datasets")
ROOT = Path(__file__).resolve().parent.parent
BLOCKS = ("positions", "selection", "mae", "choices")
PAGE = "# PixelViT\n" + "".join(f"\n<!-- {name} -->\n<!-- /{name} -->\n" for name in BLOCKS)


def script(name):
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def study():
    return script("compare_pixels")


@pytest.fixture(scope="module")
def tables(study):
    return script("pixel_tables")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """160 images of 8x8 in ten classes, a bright row or column each, as scripts/prepare_images.py writes them."""
    import datasets

    rng, rows = np.random.default_rng(0), []
    for index, split in enumerate(["train"] * 100 + ["validation"] * 20 + ["test"] * 40):
        picture, label = rng.integers(0, 60, (8, 8), dtype=np.uint8), index % 10
        if label < 5:
            picture[label + 1] = 255
        else:
            picture[:, label - 4] = 255
        rows.append({"id": str(index), "image": Image.fromarray(picture), "label": label, "split": split})
    classes = datasets.ClassLabel(names=[str(number) for number in range(10)])
    text = datasets.Value("string")
    features = datasets.Features({"id": text, "image": datasets.Image(), "label": classes, "split": text})
    path = tmp_path_factory.mktemp("images") / "lines.parquet"
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    return str(path)


@pytest.fixture
def run(study, images, monkeypatch):
    """Call it with an arm, and the table, settings and limits that matter: a run on the made-up images."""
    monkeypatch.setattr(study, "matmul_rate", lambda: 80.0)  # which takes longer than these runs

    def make(arm, table="selection", seed=0, limit=60.0, validation_only=False, **settings):
        chosen = replace(study.Settings(epochs=2), **settings)
        return study.Run(table, "digits", images, arm, seed, chosen, limit, validation_only, "python", "digest")

    return make


# ---------------------------------------------------------------------- runs


def test_study_from_command_to_document(study, tables, images, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))  # its processes import it by name
    output, page = tmp_path / "selection.digits.json", tmp_path / "pixelvit.md"
    common = ["--images", images, "--set", "epochs=2", "--seeds", "0"]
    study.main(["selection", "digits", "--only", "in*", "edge", *common, "--jobs", "2", "--output", str(output)])
    rows = json.loads(output.read_text())["rows"]
    assert [(row["arm"], row["seed"], row["tokens"], row["share"]) for row in rows] == [
        ("edge", 0, 16, 0.25),
        ("ink", 0, 16, 0.25),
    ]
    for row in rows:
        assert row["train_images"] == 100 and row["steps"] == 7 and row["n"] == 40 and row["cpu_seconds"] > 0
        assert 0 <= row["accuracy"] <= 1 and 0 <= row["validation_accuracy"] <= 1 and "cut" not in row
        assert row["command"].endswith(f"--set epochs=2 --only {row['arm']} --seeds 0")
        assert len(row["data_sha256"]) == 64 and row["versions"]["torch"] == torch.__version__

    written = output.read_text()
    capsys.readouterr()
    study.main(["selection", "digits", "--only", "ink", "edge", "grid", *common, "--output", str(output), "--list"])
    listed = capsys.readouterr().out
    assert listed.split() == ["selection/digits/grid/seed0"], "what is finished is not done again"
    study.main(["selection", "digits", "--only", "ink", *common, "--output", str(output)])
    assert output.read_text() == written

    page.write_text(PAGE)
    arguments = ["--results", str(tmp_path), "--page", str(page)]
    tables.main(arguments)
    shown = [f"{100 * row['accuracy']:.1f} %" for row in reversed(rows)]
    ink, edge = (line for line in page.read_text().splitlines() if line.startswith(("| ink", "| edge")))
    assert shown[0] in ink and shown[1] in edge and "| 25 % | 16 | 2 |" in ink
    assert page.read_text().count("No results yet.") == 3
    tables.main([*arguments, "--check"])
    page.write_text(page.read_text().replace("25 %", "24 %"))
    with pytest.raises(SystemExit, match="out of date: pixelvit.md"):
        tables.main([*arguments, "--check"])


@pytest.mark.parametrize("arm, tokens, share", [("all", 64, 1), ("patches_2x2", 16, 1), ("edge_12.5", 8, 0.125)])
def test_tokens_and_share_of_the_pixels(study, run, arm, tokens, share):
    row = study.measure(run(arm, epochs=0.3))
    assert (row["tokens"], row["share"], row["steps"]) == (tokens, share, 1)


def test_every_arm_has_a_configuration(study, run):
    pictures = torch.zeros(1, 1, 8, 8)
    for table, arms in study.ARMS.items():
        for name, arm in arms.items():
            config = study.configuration(run(name, table), arm, pictures, 10)
            assert config.pooling == "mean" and config.num_labels == 10
            if table == "positions":
                assert config.position_embedding_type == name.split("_0")[0].split("_1")[0]
            else:
                assert config.position_embedding_type == "sincos2d"


def test_a_run_is_reproducible_and_learns(study, run):
    long = run("patches_2x2", epochs=25)
    first, second = study.measure(long), study.measure(long)
    assert first["accuracy"] == second["accuracy"] > 0.5, "ten classes of bright lines"
    assert study.measure(run("patches_2x2", epochs=25, learning_rate=1e-9))["accuracy"] < 0.4


def test_a_run_that_is_too_long_is_cut_and_says_so(study, run):
    row = study.measure(run("all", epochs=1000, limit=0.3))
    assert row["cut"] == f"after {row['steps']} of 3125 steps" and 0 < row["steps"] < 3125
    assert row["accuracy"] is not None


def test_choices_never_see_the_test_images(study, run, monkeypatch):
    asked, read = [], study.read_images
    monkeypatch.setattr(
        study, "read_images", lambda path, split, *more: asked.append(split) or read(path, split, *more)
    )
    row = study.measure(run("ink", validation_only=True))
    assert asked == ["train", "validation"] and row["accuracy"] is None and row["n"] is None
    study.measure(run("ink"))
    assert asked[2:] == ["train", "validation", "test"]


def test_pre_training_hands_its_encoder_on(study, run, monkeypatch):
    from epigraph.models.modeling_pixelvit import PixelViTForImageClassification

    encoders, start = [], {}
    pretrain = study.pretrain

    def remembered(*arguments):
        encoder, row = pretrain(*arguments)
        encoders.append({name: value.clone() for name, value in encoder.state_dict().items()})
        return encoder, row

    class Watched(study.Training):
        def __init__(self, model, *rest):
            super().__init__(model, *rest)
            if isinstance(model, PixelViTForImageClassification) and not start:
                start.update({name: value.clone() for name, value in model.pixelvit.state_dict().items()})

    monkeypatch.setattr(study, "pretrain", remembered)
    monkeypatch.setattr(study, "Training", Watched)
    row = study.measure(run("mae_block_few", "mae", pretrain_seconds=0.5, finetune_seconds=0.2, few=0.3))
    assert row["pretrain_images"] == 100 and row["train_images"] == 30, "few labels, but all images"
    assert row["pretrain_steps"] > 1 and row["cpu_seconds"] > row["pretrain_cpu_seconds"] > 0
    assert all(torch.equal(start[name], value) for name, value in encoders[0].items())


def test_from_scratch_may_spend_the_time_of_both(study, run, monkeypatch):
    asked = []
    monkeypatch.setattr(study, "steps_within", lambda seconds, *rest: asked.append(seconds) or 1)
    for arm in ("scratch", "mae_random"):
        study.measure(run(arm, "mae", pretrain_seconds=3.0, finetune_seconds=2.0))
    assert asked == [5, 3, 2]
    study.measure(run("ink", cpu_seconds=7.0))
    assert asked[3:] == [7]


def test_measuring_the_rate_changes_nothing(study, run):
    model = torch.nn.Linear(1, 1)
    model.forward = lambda pixel_values: type("Output", (), {"loss": model.weight.square().sum()})
    before, state = model.weight.clone(), torch.get_rng_state()
    assert study.steps_within(1.0, model, torch.zeros(4, 1, 8, 8), None, run("all")) >= 1
    assert torch.equal(model.weight, before) and torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------------- batches


def test_every_epoch_sees_every_image_once(study):
    stream = study.batches(10, 4, seed=3)
    seen = torch.cat([next(stream) for _ in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    again = study.batches(10, 4, seed=3)
    assert torch.equal(next(again), seen[:4])


def test_a_share_of_the_labels_is_the_same_for_every_class(study):
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 0])
    assert study.first_of(labels, 6).tolist() == [0, 1, 3, 4, 6, 7]
    assert study.first_of(labels, 1).tolist() == [0, 3, 6], "at least one of each"


def test_images_move_by_whole_pixels_and_are_mirrored(study):
    image = torch.full((64, 1, 8, 8), -1.0)
    image[:, 0, 4, 3] = 1.0
    torch.manual_seed(0)
    moved = study.varied(image, study.Settings(shift=1))
    places = {tuple(place[2:].tolist()) for place in (moved == 1).nonzero()}
    assert places == {(row, column) for row in (3, 4, 5) for column in (2, 3, 4)} and (moved == 1).sum() == 64
    mirrored = study.varied(image, study.Settings(flip=True))
    assert {tuple(place[2:].tolist()) for place in (mirrored == 1).nonzero()} == {(4, 3), (4, 4)}
    assert study.varied(image, study.Settings()) is image


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--set", "speed=2"], "--set speed=2: there is no setting 'speed'; known are epochs,"),
        (["--set", "epochs=long"], "--set epochs=long: 'long' is not of type float"),
        (["--set", "epochs=0"], "epochs must be above 0, not 0.0"),
        (["--set", "dtype=float16"], "dtype must be float32 or bfloat16, not 'float16'"),
        (["--only", "inc"], "--only inc: no such arm of selection; there are all, patches_2x2, ink"),
        (["--images", "gone.parquet"], "make it with python scripts/prepare_images.py digits gone.parquet"),
    ],
)
def test_errors_say_what_to_do(study, images, tmp_path, arguments, message):
    given = [] if "--images" in arguments else ["--images", images]
    with pytest.raises(ValueError) as error:
        study.main(["selection", "digits", *given, *arguments, "--output", str(tmp_path / "rows.json")])
    assert message in str(error.value)


def test_a_choice_is_not_written_among_the_results(study, images, capsys):
    with pytest.raises(SystemExit):
        study.main(["selection", "digits", "--images", images, "--validation-only"])
    assert "--validation-only needs an --output of its own" in capsys.readouterr().err


def test_other_files_are_not_overwritten(study, images, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="rows.json is not what this script writes; name another --output"):
        study.main(["selection", "digits", "--images", images, "--output", str(path)])
    assert path.read_text() == "[1, 2]"


# ---------------------------------------------------------------------- tables


@pytest.fixture
def row(study):
    """Call it with an arm: a row as `measure` gives it."""

    def make(arm, accuracy, seed=0, data="digits", table="selection", cpu_seconds=10.0, settings=None, **more):
        share = study.ARMS[table][arm].share
        row = {"data": data, "table": table, "arm": arm, "seed": seed, "accuracy": accuracy, "n": 360}
        row |= {"tokens": round(64 * share), "share": share, "train_images": 1237, "epochs": 30.02, "steps": 580}
        row |= {"settings": asdict(study.Settings()) | (settings or {}), "validation_accuracy": 0.9}
        row |= {"cpu_seconds": cpu_seconds, "machine": "a machine", "matmul_gflop_per_cpu_second": 80.0 + seed}
        command = f"python scripts/compare_pixels.py {table} {data} --only {arm} --seeds {seed}"
        return row | {"command": command, "versions": {}, "data_sha256": "digest", **more}

    return make


def fill_page(tables, folder, **files):
    for name, rows in files.items():
        (folder / f"{name.replace('_', '.')}.json").write_text(json.dumps({"rows": rows}))
    page = folder / "page.md"
    page.write_text(PAGE)
    tables.main(["--results", str(folder), "--page", str(page)])
    return page.read_text()


def test_tables_show_means_each_seed_and_what_was_cut(tables, row, tmp_path):
    selection = [row("all", 0.95, 1, cpu_seconds=60.0), row("all", 0.96, 0, cpu_seconds=62.0)]
    selection += [row("ink", 0.9, cut="after 3 of 580 steps")]
    selection += [row("ink", 0.93, epochs=90.0, settings={"cpu_seconds": 60})]
    positions = [row("learned_0.02", 0.7, table="positions"), row("none", 0.25, table="positions")]
    mae = [row("scratch", 0.9, table="mae"), row("mae_block", 0.8, table="mae", pretrain_cpu_seconds=4.2)]
    text = fill_page(tables, tmp_path, selection_digits=selection, positions_digits=positions, mae_digits=mae)
    assert "| all pixels | 100 % | 64 | 30 | 95.5 % (96.0, 95.0) | 61 |" in text
    assert "| ink | 25 % | 16 | 30 | 90.0 % (90.0) † | 10 |" in text and tables.CUT in text
    assert "The same CPU seconds for all (60):" in text and "| ink | 25 % | 16 | 90 | 93.0 % (93.0) | 10 |" in text
    assert "| learned, std 0.02 | 70.0 % (70.0) | 10 |" in text and "| none | 25.0 % (25.0) | 10 |" in text
    assert "| MAE, block mask, all labels | 1,237 | 4 | 10 | 80.0 % (80.0) |" in text
    assert "80 to 81 GFLOP" in text and "```bash\npython scripts/compare_pixels.py selection digits\n```" in text
    with Image.open(tmp_path / tables.FIGURE) as figure:
        assert figure.size == (tables.SIZE, tables.PANEL) and len(figure.convert("RGB").getcolors(2**18)) > 20


def test_figure_is_drawn_anew_when_a_number_changes(tables, row, tmp_path):
    fill_page(tables, tmp_path, selection_digits=[row("all", 0.95)])
    figure = tmp_path / tables.FIGURE
    old = figure.read_bytes()
    fill_page(tables, tmp_path, selection_digits=[row("all", 0.95)])
    assert figure.read_bytes() == old
    fill_page(tables, tmp_path, selection_digits=[row("all", 0.85)])
    assert figure.read_bytes() != old


@pytest.mark.parametrize("reached, counts", [(0.81, False), (0.83, True)])
def test_fashion_counts_only_if_all_pixels_reach_the_bar(tables, row, tmp_path, reached, counts):
    text = fill_page(tables, tmp_path, selection_fashion=[row("all", reached, data="fashion")])
    assert ("it does not" not in text) == counts


def test_rows_that_cannot_be_compared_are_refused(tables, row, tmp_path):
    with pytest.raises(ValueError, match=r"selection\.digits\.json holds rows of different settings or data"):
        fill_page(tables, tmp_path, selection_digits=[row("all", 0.9), row("ink", 0.9, settings={"shift": 1})])
    with pytest.raises(ValueError, match="holds rows that were not measured on the test images"):
        fill_page(tables, tmp_path, selection_digits=[row("all", None)])


def test_choices_are_shown_by_what_was_different(tables, row, tmp_path):
    tried = [row("ink", None, settings={"learning_rate": 1e-3, "dtype": "bfloat16"}), row("all", None)]
    text = fill_page(tables, tmp_path, choices=tried)
    assert "| Digits | ink | learning_rate 0.001, dtype bfloat16 | 90.0 % | 10 |" in text
    assert "| Digits | all pixels | as chosen | 90.0 % | 10 |" in text
    with pytest.raises(ValueError, match="choices.json holds rows that were measured on test images"):
        fill_page(tables, tmp_path, choices=[row("ink", 0.9)])


def test_document_says_what_was_measured(tables):
    tables.main(["--check"])


# ---------------------------------------------------------------------- the real thing


@pytest.mark.slow
def test_digits_are_learnt_from_all_pixels_and_from_a_quarter(study, tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    path, settings = str(tmp_path / "digits.parquet"), study.SETTINGS["digits"]
    script("prepare_images").main(["digits", path])
    reached = {
        arm: study.measure(study.Run("selection", "digits", path, arm, 0, settings, 600.0, False, "", ""))
        for arm in ("all", "ink")
    }
    assert reached["all"]["accuracy"] >= 0.94 and reached["ink"]["accuracy"] >= 0.93
    assert reached["all"]["n"] == 360 and (reached["ink"]["tokens"], reached["ink"]["share"]) == (16, 0.25)
