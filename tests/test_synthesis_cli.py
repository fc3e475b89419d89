"""`epigraph synth`: recipes, their errors, previews, the Hub, and datatrove's executors."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from fake_samples import FakeGenerator
from test_synthesis_shards import contents, plan

from epigraph.data.synthesis import recipe
from epigraph.data.synthesis.datasets import SynthesisDataset
from epigraph.data.synthesis.preview import contact_sheet
from epigraph.data.synthesis.shards import write_shards
from epigraph.training import RecipeError, parse_recipe
from epigraph_cli import main as cli

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def words(tmp_path):
    """Arguments that need nothing of the system: the built-in font, a list of our own."""
    (tmp_path / "list.txt").write_text("bread\nwater\nstreet\nmarket\nhotel\nopen\n" * 3)
    return ["--fonts", "built-in", "--words", str(tmp_path / "list.txt"), "--size", "32", "128"]


@pytest.mark.parametrize("kind", ["words", "scenes", "formulas"])
def test_shipped_recipes_say_what_exists(kind):
    args = parse_recipe(["--recipe", str(ROOT / "recipes" / f"{kind}.yaml")], recipe.SynthesisArguments)
    assert args.kind == kind and args.out is None, "the folder comes from the command line"


@pytest.mark.parametrize("kind", ["words", "groups", "scenes"])
def test_every_kind_is_written_and_read_again(kind, words, tmp_path, monkeypatch):
    out = tmp_path / "out"
    size = ["--size", "96", "128"] if kind == "scenes" else []
    arguments = [*words, *size, "--kind", kind, "--num_samples", "3", "--shard_size", "2", "--workers", "1"]
    recipe.main([*arguments, "--out", str(out)])
    rows = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    args = parse_recipe(arguments, recipe.SynthesisArguments)
    dataset = SynthesisDataset(recipe.build(args)[0], 3)
    for row in rows:
        sample = dataset[row["index"]]
        if kind == "words":
            assert np.array_equal(row["images"][1], sample.images[1]) and row["texts"] == sample.texts
            assert json.loads(row["style"]) == json.loads(json.dumps(sample.style.to_json()))
        elif kind == "groups":
            assert len(rows) == 3 * len(sample) and row["texts"] == sample[0].texts
        else:
            assert np.array_equal(row["image"], sample.image) and row["texts"] == list(sample.texts)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["recipe"]["kind"] == kind
    assert manifest["options"].get("style", manifest["options"])["curve"] > 0.2, "defaults are written down"
    assert len(manifest["inputs"]["fonts"]) == 1 and manifest["inputs"]["words"]["count"] == 18
    webdataset = [*arguments, "--out", str(tmp_path / "tar"), "--format", "webdataset"]
    recipe.main(webdataset)
    assert load_dataset(str(tmp_path / "tar"), split="train", cache_dir=str(tmp_path / "cache")).num_rows == len(rows)


def test_formulas_are_read_as_the_formula_schema(tmp_path):
    from epigraph.data.readers import load_formulas

    out = tmp_path / "out"
    recipe.main(
        ["--kind", "formulas", "--fonts", "built-in", "--num_samples", "3", "--workers", "1", "--out", str(out)]
    )
    rows = load_formulas(out, "train")
    make = recipe.build(recipe.SynthesisArguments(kind="formulas", fonts=["built-in"]))[0]
    assert rows["text"][:] == [sample.text for sample in SynthesisDataset(make, 3)] and rows[0]["strokes"]


def test_recipe_file_and_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("LISTS", str(tmp_path))
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "kind: words\nwords: ['${LISTS}/list.txt']\nstyle: {curve: 0.5, blur_sigma: [0.1, 0.2]}\nseed: 4\n"
    )
    args = parse_recipe(["--recipe", str(file), "--seed", "5"], recipe.SynthesisArguments)
    assert args.seed == 5 and args.style == {"curve": 0.5, "blur_sigma": [0.1, 0.2]} and args.size == [64, 256]
    (tmp_path / "list.txt").write_text("bread\nwater\n")
    args.fonts = ["built-in"]
    make, described = recipe.build(args)
    assert make.options.curve == 0.5 and make.options.blur_sigma == (0.1, 0.2)
    assert args.content()["words"] == ["${LISTS}/list.txt"], "the manifest names no folder of one machine"
    assert "out" not in args.content() and "workers" not in args.content()


@pytest.mark.parametrize(
    "line, message",
    [
        ("num_samples: [3]", "num_samples must be a whole number, not [3]"),
        ("words: [3]", "words must be a text, not 3"),
        ("private: often", "private"),
    ],
)
def test_recipes_with_values_of_the_wrong_type_are_refused(line, message, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"kind: words\n{line}\n")
    with pytest.raises((RecipeError, SystemExit)) as error:
        parse_recipe(["--recipe", str(file)], recipe.SynthesisArguments)
    assert message in f"{error.value} {capsys.readouterr().err}"


def test_what_is_written_names_no_folder_of_this_machine(words, tmp_path, capsys, monkeypatch):
    """Fonts, lists and pictures in one folder, then in another: the same bytes, and only file names in them."""
    import PIL
    from PIL import Image

    from epigraph.data.synthesis import Style, SynthesisError, render

    fonts = list(Path(PIL.__path__[0]).parent.glob("ziamath/fonts/*.ttf"))
    if not fonts:
        pytest.skip("ziamath, whose font is used here, is not installed")
    made = []
    for name in ("one", "two"):
        folder = tmp_path / name / "mine"
        folder.mkdir(parents=True)
        (folder / "font.ttf").write_bytes(fonts[0].read_bytes())
        (folder / "list.txt").write_bytes((tmp_path / "list.txt").read_bytes())
        Image.fromarray(np.arange(120 * 200, dtype=np.uint32).astype(np.uint8).reshape(120, 200)).save(
            folder / "p.png"
        )
        arguments = [
            "--fonts",
            str(folder / "font.ttf"),
            "--words",
            str(folder / "list.txt"),
            "--backgrounds",
            str(folder),
        ]
        arguments += ["--size", "32", "128", "--num_samples", "4", "--workers", "1", "--out", str(folder / "out")]
        recipe.main([*arguments, "--style", '{"pool_share": 1}'])
        made.append(contents(folder / "out"))
    assert made[0] == made[1]
    for content in made[0].values():
        assert str(tmp_path).encode() not in content and b"/one/" not in content
    row = load_dataset(str(tmp_path / "one/mine/out"), split="train", cache_dir=str(tmp_path / "cache"))[0]
    values = json.loads(row["style"])
    style = Style.from_json(values, fonts=tmp_path / "two", backgrounds=[tmp_path / "two"])
    assert (
        style.font.path == str(tmp_path / "two" / "mine" / "font.ttf")
        and json.loads(json.dumps(style.to_json())) == values
    )
    assert np.array_equal(render(style, row["texts"]).images[0], row["images"][0])
    with pytest.raises(SynthesisError, match="the background p.png .digest [0-9a-f]{16}. is needed; name the folder"):
        Style.from_json(values, fonts=tmp_path / "two")
    with pytest.raises(
        SynthesisError, match="the font .* .font.ttf, digest [0-9a-f]{16}. is not in .*recipes; install"
    ):
        Style.from_json(values, fonts=ROOT / "recipes")


def test_a_list_of_mixed_scripts_and_things_that_cannot_be_drawn(tmp_path):
    """No face has all of it; what can be drawn is, and nothing else gets a label."""
    bad = ["\U0001f600smile", "a\x07b", "x" * 300, "\u4e2d\u6587", "\u0633\u0644\u0627\u0645", "ho\u200btel"]
    (tmp_path / "list.txt").write_text("\n".join(["bread", "water", *bad] * 3))
    arguments = ["--fonts", "built-in", "--words", str(tmp_path / "list.txt"), "--size", "32", "128", "--workers", "1"]
    options = json.dumps({"numbers": 0, "rare": 0, "punctuation": 0, "cases": False})
    recipe.main([*arguments, "--num_samples", "6", "--word_options", options, "--out", str(tmp_path / "out")])
    rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.num_rows == 6
    assert {text for row in rows for text in row["texts"]} <= {"bread", "water"}


@pytest.mark.parametrize("value", [[], ["own.png"]])
def test_preview_has_a_default_file(value, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe.main(["--preview", *value, *words, "--count", "1"])
    name = (value or ["sheet.png"])[0]
    assert (tmp_path / name).exists() and f"{name} shows the samples 0 to 0" in capsys.readouterr().out


def test_formulas_vary_a_given_corpus(tmp_path):
    """From a text file, from CROHME's captions, and from data in the formula schema."""
    from epigraph.data.synthesis.formula_labels import read_captions

    (tmp_path / "a.txt").write_text("x + y\n\n1 + 2\n")
    (tmp_path / "b.txt").write_text("form1\tx + y\nform2\t1 + 2\n")
    arguments = ["--kind", "formulas", "--fonts", "built-in", "--num_samples", "4", "--workers", "1"]
    for name in ("a.txt", "b.txt"):
        assert read_captions(tmp_path / name) == ["x + y", "1 + 2"]
    out = tmp_path / "out"
    recipe.main(
        [*arguments, "--captions", str(tmp_path / "a.txt"), "--generator", '{"grammar": 0}', "--out", str(out)]
    )
    assert read_captions(out) == [row["text"] for row in load_dataset(str(out), split="train")]
    assert all(len(text.split()) == 3 for text in read_captions(out))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["recipe"]["captions"] == ["a.txt"] and manifest["inputs"]["captions"]["count"] == 2
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    for text, message in ((b"\xff\xfe", "not UTF-8"), (b"\n \n", "no formula")):
        (tmp_path / "c.txt").write_bytes(text)
        with pytest.raises(ValueError, match=message):
            read_captions(tmp_path / "c.txt")


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.morphology", None)
    monkeypatch.setattr(sys, "argv", ["epigraph", "synth", "--kind", "formulas", "--out", "x"])
    with pytest.raises(SystemExit, match=r"the package skimage\S* is not installed; pip install 'epigraph\[train\]'"):
        cli()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "name a folder for the shards with --out"),
        (["--out", "x", "--kind", "poems"], "kind must be one of words, groups, crops, scenes, formulas, not 'poems'"),
        (["--out", "x", "--format", "zip"], "format must be one of parquet, webdataset"),
        (["--out", "x", "--executor", "crowd"], "executor must be one of"),
        (["--out", "x", "--size", "32"], "size is height and width"),
        (["--out", "x", "--size", "0", "0"], "0 x 0 pixels"),
        (["--out", "x", "--style", '{"glitter": 1}'], "style: unknown key glitter; known are "),
        (["--out", "x", "--style", "fancy"], "style must be a dictionary"),
        (["--out", "x", "--generator", '{"faces": []}'], "generator: unknown key faces"),
        (["--out", "x", "--word_options", '{"numbers": 2}'], "numbers 2"),
        (["--out", "x", "--words", "gone.txt"], "gone.txt"),
        (["--out", "x", "--fonts", "gone"], "gone"),
        (["--out", "x", "--backgrounds", "${NOWHERE}"], "NOWHERE is not set"),
        (["--out", "x", "--num_samples", "0"], "num_samples must be at least 1, not 0"),
        (["--out", "x", "--shard_size", "-1"], "shard_size must be at least 1, not -1"),
        (["--out", "x", "--workers", "0"], "workers must be at least 1, not 0"),
        (["--out", "x", "--executor", "local", "--tasks", "-1"], "tasks must be at least 1, not -1"),
        (["--out", "x", "--style", "{curve"], "style is no JSON"),
        (["--out", "x", "--style", '{"curve": "much"}'], "style.curve must be a number from 0, not 'much'"),
        (["--out", "x", "--style", '{"backgrounds": {"marble": 1}}'], "the background kind 'marble' does not exist"),
        (["--out", "x", "--style", '{"backgrounds": {"plain": 0}}'], "backgrounds need shares above 0"),
        (["--out", "x", "--style", '{"curve": 2}'], "style.curve is a share, 0 to 1, not 2"),
        (["--out", "x", "--style", '{"blur_sigma": 3}'], "style.blur_sigma must be a list of 2 numbers"),
        (["--out", "x", "--style", '{"blur_sigma": [3, 1]}'], "least and most in this order"),
        (["--out", "x", "--kind", "scenes", "--scene", '{"plates": -1}'], "scene.plates must be a number from 0"),
        (["--out", "x", "--word_options", '{"numbers": "x"}'], "word_options: a value in {'numbers': 'x'} has the"),
        (["--out", "x", "--kind", "groups", "--generator", '{"looks": "a"}'], "generator: a value in {'looks': 'a'}"),
        (["--out", "x", "--kind", "formulas", "--generator", '{"grammar": 3}'], "grammar 3, rare 0.3"),
        (["--out", "x", "--kind", "formulas", "--captions", "gone.txt"], "gone.txt"),
        (["--out", "x", "--kind", "crops"], "crops have no size in common"),
        (["--out", "x", "--push", "a/b/c"], "a/b/c"),
        (["--preview", "gone/x.png"], "preview gone/x.png: name a .png or .jpg file in a folder that exists"),
        (["--out", "x", "--kind", "formulas", "--ink", "gone.parquet"], "gone.parquet"),
        (["--recipe", "gone.yaml", "--out", "x"], "gone.yaml: cannot be read"),
        (["--preview", "x.png", "--count", "0"], "1 to 200 samples, not 0"),
    ],
)
def test_what_cannot_be_is_one_sentence(words, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["epigraph", "synth", *words, *arguments])
    with pytest.raises(SystemExit) as end:
        cli()
    said = str(end.value)
    assert said.startswith("epigraph: ") and message in said and "\n" not in said
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.png").exists()


def test_words_of_a_list_that_are_left_out_are_reported(words, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("bread water street \U0001f600 b\u202ead " + "x" * 26)
    recipe.main([*words, "--num_samples", "2", "--workers", "1", "--out", str(tmp_path / "out")])
    left_out = json.loads((tmp_path / "out" / "manifest.json").read_text())["inputs"]["words"]["left_out"]
    assert left_out == {"not to be drawn": 2, "too short or too long": 1}
    assert "words of the list left out: 2 not to be drawn" in capsys.readouterr().out


def test_preview_shows_every_sample(words, tmp_path):
    from PIL import Image

    sheets = {}
    for kind in ("words", "groups", "scenes"):
        path = tmp_path / f"{kind}.png"
        size = ["--size", "96", "128"] if kind == "scenes" else []
        recipe.main([*words, *size, "--kind", kind, "--preview", str(path), "--count", "2"])
        sheets[kind] = np.asarray(Image.open(path))
        assert 300 < min(sheets[kind].shape[:2]) and sheets[kind].std() > 20
    again = parse_recipe([*words], recipe.SynthesisArguments)
    make = recipe.build(again)[0]
    assert np.array_equal(contact_sheet(make, count=2), sheets["words"]), "the same samples as a run would write"
    # The first picture of the first sample stands enlarged below headline and caption.
    image = make(np.random.default_rng((0, 0, 0))).images[0]
    assert np.array_equal(sheets["words"][48 : 48 + 96 : 3, 8 : 8 + 384 : 3], image)


def test_push(hub, hub_env, run_python, tmp_path):
    """One commit with shards, manifest and a card that names the repository; then it is read from the Hub."""
    out = tmp_path / "out"
    write_shards(plan(out), workers=1, progress=False)
    code = (
        "from epigraph.data.synthesis.recipe import push_shards\n"
        f"print(push_shards({str(out)!r}, 'me/words'))\n"
        "from datasets import load_dataset\n"
        "rows = load_dataset('me/words', split='train')\n"
        "print(len(rows), rows[0]['image'].size)\n"
    )
    printed = run_python(code, env=hub_env).stdout.split()
    assert printed[-3:] == ["50", "(12,", "8)"]
    repository = hub.repos["dataset", "me/words"]
    assert len(repository.commits) == 2, "the creation and the push"
    shards = {path.relative_to(out).as_posix() for path in (out / "data").iterdir()}
    assert set(repository.files) - {".gitattributes"} == {"README.md", "manifest.json", *shards}
    assert 'load_dataset("me/words"' in repository.files["README.md"].decode()


def test_unfinished_or_damaged_folders_are_not_pushed(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="not a finished folder"):
        recipe.push_shards(out, "me/words")
    write_shards(plan(out), workers=1, progress=False)
    shard = out / "data" / "train-00001-of-00003.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="train-00001-of-00003.parquet is not the file that the manifest lists"):
        recipe.push_shards(out, "me/words")


# ---------------------------------------------------------------------- clusters


def small_plan(out):
    return plan(Path(out), FakeGenerator(), num_samples=100)


def other_plan(out):
    return plan(Path(out), FakeGenerator(), num_samples=100, seed=6)


def test_local_executor_gives_the_bytes_of_a_plain_run(tmp_path):
    cluster = pytest.importorskip("epigraph.data.synthesis.cluster", reason="datatrove is not installed")
    manifest = cluster.run_tasks(partial(small_plan, tmp_path / "tasks"), "local", tasks=2, workers=1)
    write_shards(small_plan(tmp_path / "plain"), workers=1, progress=False)
    made = contents(tmp_path / "tasks")
    assert {name: made[name] for name in made if not name.startswith(".logs/")} == contents(tmp_path / "plain")
    stats = json.loads((tmp_path / "tasks" / ".logs" / "shards" / "stats.json").read_text())
    assert stats[0]["stats"]["rows"]["total"] == manifest["rows"] == 100
    with pytest.raises(ValueError, match="seed: 5 there, 6 now"):
        cluster.run_tasks(partial(other_plan, tmp_path / "tasks"), "local", tasks=2, workers=1)


def test_slurm_and_ray_executors_are_constructed(tmp_path):
    """Constructed only: there is no cluster to run them on."""
    cluster = pytest.importorskip("epigraph.data.synthesis.cluster", reason="datatrove is not installed")
    build, made = partial(small_plan, tmp_path), small_plan(tmp_path)
    last = cluster.executors(build, made, "slurm", workers=3, time="01:00:00", partition="cpu")
    assert last.world_size == 1 and last.depends.world_size == len(made) == 5 and last.depends.workers == 3
    assert last.depends.partition == "cpu" and isinstance(last.depends.pipeline[0], cluster.WriteShards)
    last = cluster.executors(build, made, "ray", tasks=2)
    assert isinstance(last.pipeline[0], cluster.FinishFolder) and last.depends.world_size == 2
    with pytest.raises(ValueError, match="executor_options: SlurmPipelineExecutor says .*partition"):
        cluster.executors(build, made, "slurm")


def test_without_datatrove_the_executor_says_what_to_install(words, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datatrove", None)
    monkeypatch.delitem(sys.modules, "epigraph.data.synthesis.cluster", raising=False)
    for name in [name for name in sys.modules if name.startswith("datatrove.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RecipeError, match=r"needs the package datatrove\S*; pip install 'epigraph\[train,cluster\]'"):
        recipe.main([*words, "--out", str(tmp_path / "out"), "--executor", "local"])


# ---------------------------------------------------------------------- the benchmark


def test_benchmark_rows_are_counted_from_the_timed_samples(monkeypatch, capsys, words):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.delenv("EPIGRAPH_DATA", raising=False)
    import benchmark_synthesis as benchmark

    monkeypatch.setattr(benchmark, "SAMPLES", {"pairs_32x128": 12, "pairs_64x256": 8, "scenes_512": 1})
    monkeypatch.setattr(benchmark, "WARM_UP", 1)
    monkeypatch.setattr(benchmark, "faces", lambda: [benchmark.open_face(benchmark.BUILTIN)])
    sampler = benchmark.WordSampler([words[words.index("--words") + 1]])
    monkeypatch.setattr(benchmark, "WordSampler", lambda: sampler)
    rows = {name: value for name, value, _ in benchmark.synthesis_rows(lambda name: True)}
    for name in ("pairs_32x128", "pairs_64x256", "scenes_512"):
        assert rows[f"synthesis/{name}/per_cpu_second"] > 0 and rows[f"synthesis/{name}/encoded_per_cpu_second"] > 0
    assert 0 <= rows["synthesis/rejected_share"] < 0.5 and 1 <= rows["synthesis/scenes_512/words"] <= 8
    # The warm-up is not counted: samples 12 to 47 and 8 to 31 are.
    styles = [SynthesisDataset(benchmark.generator("pairs_32x128"), 48)[index].style for index in range(12, 48)]
    styles += [SynthesisDataset(benchmark.generator("pairs_64x256"), 32)[index].style for index in range(8, 32)]
    for effect in ("curve", "perspective", "texture", "border", "shadow", "extrusion", "elastic", "blur", "jpeg"):
        share = sum(style.effects()[effect] for style in styles) / len(styles)
        assert rows[f"synthesis/share/{effect}"] == pytest.approx(share)
    assert "formulas are not measured" in capsys.readouterr().out
    only = list(benchmark.synthesis_rows(lambda name: name == "synthesis/pairs_32x128/per_cpu_second", profile=True))
    assert [name for name, *_ in only] == ["synthesis/pairs_32x128/per_cpu_second"]
    assert "tottime" in capsys.readouterr().out
