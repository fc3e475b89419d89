"""The Hub of the tests answers as huggingface_hub expects, so that what passes against it means something."""


def test_huggingface_hub_can_talk_to_it(hub, hub_env, run_python, tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "small.txt").write_text("small")
    (folder / "large.bin").write_bytes(bytes(range(256)) * 100)
    run_python(
        f"""
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
api = HfApi()
assert api.whoami()["name"] == "me"
api.create_repo("org/one"); api.create_repo("org/one", exist_ok=True)
api.upload_folder(repo_id="org/one", folder_path={str(folder)!r})
api.create_tag("org/one", tag="v1")
api.delete_file("deep/small.txt", "org/one")
tree = api.list_repo_tree("org/one", recursive=True, revision="v1")
assert [file.path for file in tree] == ["deep/small.txt", "large.bin"]
assert api.list_repo_files("org/one") == ["large.bin"]
assert [tag.name for tag in api.list_repo_refs("org/one").tags] == ["v1"]
assert open(hf_hub_download("org/one", "deep/small.txt", revision="v1")).read() == "small"
assert open(hf_hub_download("org/one", "large.bin"), "rb").read() == bytes(range(256)) * 100
api.create_repo("org/page", repo_type="space", space_sdk="gradio")
api.upload_file(path_or_fileobj=b"x", path_in_repo="app.py", repo_id="org/page", repo_type="space")
for call, error in [
    (lambda: hf_hub_download("org/one", "absent.txt"), EntryNotFoundError),
    (lambda: hf_hub_download("org/one", "large.bin", revision="v2"), RevisionNotFoundError),
    (lambda: api.model_info("org/two"), RepositoryNotFoundError),
]:
    try:
        call()
    except error:
        continue
    raise AssertionError(error)
""",
        hub_env,
    )
    assert hub.model("org/one").lfs == {"large.bin"}
    assert hub.repos["space", "org/page"].files == {"app.py": b"x"}
    assert [commit.title for commit in hub.model("org/one").commits][0] == "initial commit"
