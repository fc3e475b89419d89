"""`epigraph synth`: recipes, their errors, previews, the Hub, and datatrove's executors."""

import json
import re
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


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_say_what_exists(path):
    if re.search(r"^kind:", path.read_text(), re.MULTILINE) is None:
        pytest.skip("a recipe of training")
    args = parse_recipe(["--recipe", str(path)], recipe.SynthesisArguments)
    assert args.kind in path.stem and args.out is None, "the folder comes from the command line"


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
    "arguments, message",
    [
        ([], "name a folder for the shards with --out"),
        (["--out", "x", "--kind", "poems"], "kind must be one of words, groups, scenes, formulas, not 'poems'"),
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
        (["--out", "x", "--num_samples", "0"], "num_samples"),
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
