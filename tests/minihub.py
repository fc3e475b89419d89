"""A Hub in memory, for tests: enough of the Hub's HTTP interface to create, push to and load from repositories.

Clients must have `HF_ENDPOINT` set to `MiniHub.url` and Xet switched off before they import huggingface_hub.
What it leaves out: permissions, pull requests, Xet. An unknown request is answered with a 404 that names it.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".png", ".onnx", ".arrow")
LFS_SIZE = 10_000_000
TIMESTAMP = "2026-01-01T00:00:00.000Z"


@dataclass
class Commit:
    sha: str
    files: dict[str, bytes]
    title: str


@dataclass
class Repo:
    """One repository: its commits, oldest first, and what its branches and tags point at."""

    kind: str
    name: str
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)

    def commit(self, files, title, branch="main"):
        digest = hashlib.sha1(f"{self.kind}/{self.name}/{branch}/{len(self.commits)}/{title}".encode())
        self.commits.append(Commit(digest.hexdigest(), files, title))
        self.branches[branch] = self.commits[-1].sha
        return self.commits[-1]

    def at(self, revision):
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return next((commit for commit in self.commits if commit.sha == sha), None)

    @property
    def files(self):
        """Path -> content at the head of main."""
        return self.at("main").files

    def entry(self, path, content):
        """A file as the tree and paths-info calls show it."""
        described = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
        if path in self.lfs:
            described["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return described

    def etag(self, path, content):
        return hashlib.sha256(content).hexdigest() if path in self.lfs else git_oid(content)


class MiniHub:
    """State of one Hub: `repos[kind, "owner/name"]`, LFS `blobs` by sha256, `requests` as (method, path)."""

    def __init__(self):
        self.url = None
        self.repos = {}
        self.blobs = {}
        self.requests = []

    def model(self, name):
        return self.repos["model", name]


class HubError(Exception):
    """An answer other than success; `code` is the X-Error-Code by which the client chooses its exception."""

    def __init__(self, status, code, message, headers=None):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def directory(path):
    return {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self):
        return self.server.hub

    def log_message(self, *args):
        pass

    def do_any(self):
        split = urlsplit(self.path)
        self.query = parse_qs(split.query)
        self.content = self.read_content()
        self.hub.requests.append((self.command, split.path))
        try:
            for pattern, method in ROUTES:
                if match := re.fullmatch(pattern, split.path):
                    return method(self, **{key: unquote(value or "") for key, value in match.groupdict().items()})
            raise HubError(404, "NotFound", f"the test Hub has no answer to {self.command} {split.path}")
        except HubError as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error), **error.headers}
            self.answer({"error": str(error)}, error.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_any

    def read_content(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def answer(self, value=None, status=200, headers=None, content=None):
        """Send JSON, or raw `content`. A HEAD gets the headers only."""
        content = json.dumps(value if value is not None else {}).encode() if content is None else content
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def repo(self, kind, name):
        kind = KINDS.get(kind.rstrip("/"), "model")
        if (kind, name) not in self.hub.repos:
            raise HubError(404, "RepoNotFound", f"Repository not found: {kind} {name}")
        return self.hub.repos[kind, name]

    def revision(self, repo, revision):
        if (commit := repo.at(revision)) is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # Accounts and repositories

    def whoami(self):
        role = {"accessToken": {"role": "write", "displayName": "test"}}
        self.answer({"type": "user", "name": "me", "orgs": [{"name": "org"}], "auth": role})

    def validate_yaml(self):
        self.answer({"warnings": [], "errors": []})

    def create_repo(self):
        wanted = json.loads(self.content)
        kind, name = wanted.get("type") or "model", f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        prefix = "" if kind == "model" else f"{kind}s/"
        shown = {"url": f"{self.hub.url}/{prefix}{name}", "name": name, "id": name}
        if (kind, name) in self.hub.repos:
            return self.answer({"error": "You already created this repo", **shown}, 409)
        self.hub.repos[kind, name] = Repo(kind, name)
        self.hub.repos[kind, name].commit({}, "initial commit")
        self.answer(shown)

    def repo_info(self, kind, name, revision):
        repo = self.repo(kind, name)
        commit = self.revision(repo, revision or "main")
        info = {"_id": "0" * 24, "id": name, "modelId": name, "author": name.split("/")[0], "sha": commit.sha}
        info |= {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        info |= {"lastModified": TIMESTAMP, "createdAt": TIMESTAMP}
        self.answer({**info, "siblings": [{"rfilename": path} for path in commit.files]})

    def refs(self, kind, name):
        repo = self.repo(kind, name)
        listed = {
            "branches": [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": s} for n, s in repo.branches.items()],
            "tags": [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": s} for n, s in repo.tags.items()],
        }
        self.answer({**listed, "converts": []})

    def create_branch(self, kind, name, branch):
        repo = self.repo(kind, name)
        start = json.loads(self.content or b"{}").get("startingPoint", "main")
        repo.branches[branch] = self.revision(repo, start).sha
        self.answer()

    def create_tag(self, kind, name, revision):
        repo = self.repo(kind, name)
        repo.tags[json.loads(self.content)["tag"]] = self.revision(repo, revision).sha
        self.answer()

    # Uploading: ask how each file goes up, put the large ones as blobs, then one commit that names everything

    def preupload(self, kind, name, revision):
        self.repo(kind, name)
        answers = []
        for wanted in json.loads(self.content)["files"]:
            large = wanted["path"].endswith(LFS_SUFFIXES) or wanted["size"] > LFS_SIZE
            mode = "lfs" if large else "regular"
            answers.append({"path": wanted["path"], "uploadMode": mode, "shouldIgnore": False})
        self.answer({"files": answers})

    def lfs_batch(self, kind, name):
        self.repo(kind, name)
        objects = []
        for wanted in json.loads(self.content)["objects"]:
            described = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.blobs:
                described["actions"] = {"upload": {"href": f"{self.hub.url}/blobs/{wanted['oid']}"}}
            objects.append(described)
        self.answer({"transfer": "basic", "objects": objects})

    def put_blob(self, oid):
        if hashlib.sha256(self.content).hexdigest() != oid:
            raise HubError(400, "BadRequest", "the blob's content does not have the announced sha256")
        self.hub.blobs[oid] = self.content
        self.answer()

    def create_commit(self, kind, name, revision):
        repo = self.repo(kind, name)
        files, title = dict(self.revision(repo, revision).files), ""
        for line in self.content.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                title = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                repo.lfs.discard(value["path"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
                repo.lfs.add(value["path"])
            elif key == "deletedFile":
                files.pop(value["path"], None)
            elif key == "deletedFolder":
                files = {
                    path: text for path, text in files.items() if not path.startswith(value["path"].rstrip("/") + "/")
                }
        commit = repo.commit(files, title, revision)
        url = f"{self.hub.url}/{name}/commit/{commit.sha}"
        self.answer({"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""})

    # Reading

    def paths_info(self, kind, name, revision):
        repo = self.repo(kind, name)
        files = self.revision(repo, revision).files
        is_json = self.content.startswith(b"{")
        wanted = json.loads(self.content) if is_json else parse_qs(self.content.decode())
        found = []
        for path in wanted["paths"]:
            if path in files:
                found.append(repo.entry(path, files[path]))
            elif any(other.startswith(path.rstrip("/") + "/") for other in files):
                found.append(directory(path))
        self.answer(found)

    def tree(self, kind, name, revision, path):
        repo = self.repo(kind, name)
        prefix = f"{path.strip('/')}/" if path.strip("/") else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        listed = {}
        for file, content in self.revision(repo, revision).files.items():
            if not file.startswith(prefix):
                continue
            head, *deeper = file.removeprefix(prefix).split("/")
            if deeper and not recursive:
                listed[prefix + head] = directory(prefix + head)
            else:
                listed[file] = repo.entry(file, content)
        if prefix and not listed:
            raise HubError(404, "EntryNotFound", f"{path} does not exist at {revision}")
        self.answer(list(listed.values()))

    def resolve(self, kind, name, revision, path):
        repo = self.repo(kind, name)
        commit = self.revision(repo, revision)
        if path not in commit.files:
            raise HubError(404, "EntryNotFound", f"Entry not found: {path}", {"X-Repo-Commit": commit.sha})
        content, status = commit.files[path], 200
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{repo.etag(path, content)}"', "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self.answer(None, status, headers, content)


API = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
WEB = r"/(?P<kind>datasets/|spaces/)?(?P<name>[^/]+/[^/]+)"
ROUTES = [
    (r"/api/whoami-v2", Handler.whoami),
    (r"/api/validate-yaml", Handler.validate_yaml),
    (r"/api/repos/create", Handler.create_repo),
    (r"/blobs/(?P<oid>[0-9a-f]{64})", Handler.put_blob),
    (API + r"(?:/revision/(?P<revision>[^/]+))?", Handler.repo_info),
    (API + r"/refs", Handler.refs),
    (API + r"/branch/(?P<branch>[^/]+)", Handler.create_branch),
    (API + r"/tag/(?P<revision>[^/]+)", Handler.create_tag),
    (API + r"/preupload/(?P<revision>[^/]+)", Handler.preupload),
    (API + r"/commit/(?P<revision>[^/]+)", Handler.create_commit),
    (API + r"/paths-info/(?P<revision>[^/]+)", Handler.paths_info),
    (API + r"/tree/(?P<revision>[^/]+)(?P<path>/.*)?", Handler.tree),
    (WEB + r"\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (WEB + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]


@contextmanager
def serve():
    """Run a `MiniHub` on a free local port for the length of a `with` block."""
    hub = MiniHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.hub = True, hub
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
