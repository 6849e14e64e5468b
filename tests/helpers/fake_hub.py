"""A hub of our own, as far as the real client asks: accounts, repositories of commits, large files, tags.

It answers as the client's source expects the hub to. Where the real hub's answer is not known,
docs/how-to/hub.md says so.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

from tests.helpers.due import due

TOKEN = "hf_theTokenThatNobodyMaySee"
LARGE = 1000  # bytes from which a file is large here; a hub's limit is 10 MB
PART = 1 << 20
SIGNATURE = "X-Amz-Signature=theSignatureThatNobodyMaySee"


@dataclass
class Fault:
    """Answer `times` requests whose method and path match with a status, after `skip` good ones.

    Status 0 reads `after` bytes and drops the line; -1 says nothing until the hub is closed; 206 sends
    `after` bytes of the file that was asked for, and drops the line.
    """

    match: str
    status: int
    message: str = "made by the test"
    times: int = 1_000_000
    skip: int = 0
    after: int = 0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Large:
    """A large file of a commit."""

    sha256: str
    size: int


Tree = dict[str, bytes | Large]


@dataclass
class Repo:
    private: bool
    commits: dict[str, Tree]
    head: str
    tags: dict[str, str] = field(default_factory=dict)
    gated: bool | str = False
    card: dict[str, Any] = field(default_factory=dict)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # of five, the sixth that comes at once would be kept waiting for a second


class FakeHub:
    """The state of the fake, and what it was asked. A dataset's repository is named `datasets/org/name`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.closed = threading.Event()
        self.lock = threading.Lock()
        self.repos: dict[str, Repo] = {}
        self.asked: list[str] = []
        self.leaks: list[str] = []  # requests to the storage that had the token with them
        self.received = 0  # bytes of large files
        self.sent = 0  # bytes of files that were asked for
        self.faults: list[Fault] = []
        self.role = "write"
        self.gitignored: set[str] = set()
        self.parts = False  # large files in several parts
        self.before: dict[str, Callable[[], None]] = {}  # what happens just before a request that matches

    def close(self) -> None:
        self.closed.set()
        self.server.shutdown()
        self.server.server_close()

    def count(self, match: str) -> int:
        """How many requests, as `METHOD path`, matched."""
        return sum(bool(re.search(match, line)) for line in self.asked)

    def tree(self, name: str, revision: str = "main") -> Tree:
        repo = self.repos[name]
        commit = repo.head if revision == "main" else repo.tags.get(revision, revision)
        return repo.commits[commit]

    def content(self, name: str, path: str, revision: str = "main") -> bytes:
        """The bytes of a file."""
        found = self.tree(name, revision)[path]
        return found if isinstance(found, bytes) else (self.folder / found.sha256).read_bytes()

    def put(self, name: str, files: Tree, *, private: bool = True) -> str:
        """A commit by somebody else upon the newest one; returns its name."""
        repo = self.repos.get(name)
        if repo is None:
            repo = self.repos[name] = Repo(private, {}, "")
        before = repo.commits.get(repo.head, {".gitattributes": b"*.bin filter=lfs\n"})
        return self._commit(repo, {**before, **files})

    def _commit(self, repo: Repo, tree: Tree) -> str:
        commit = hashlib.sha1(f"{len(repo.commits)} {sorted(tree)} {repo.head}".encode()).hexdigest()
        repo.commits[commit] = tree
        repo.head = commit
        return commit

    # -- what it answers -------------------------------------------------------------------------------

    def is_public(self, path: str) -> bool:
        """Whether anybody may ask about what a path names: a public model or dataset."""
        name = "/".join(path.removeprefix("/api/").split("/")[:3]).removeprefix("models/")
        return name in self.repos and not self.repos[name].private

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/whoami-v2":
            token = {"displayName": "laptop", "role": self.role}
            if self.role == "fineGrained":
                scope = {"entity": {"type": "org", "name": "walkers"}, "permissions": ["repo.write"]}
                token["fineGrained"] = {"scoped": [scope]}
            orgs = [{"name": "walkers", "roleInOrg": "write"}, {"name": "readers", "roleInOrg": "read"}]
            return 200, {"type": "user", "name": "ann", "orgs": orgs, "auth": {"accessToken": token}}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return 200, {
                "transfer": "basic",
                "objects": [self._action(o) for o in json.loads(body)["objects"]],
            }
        if path.startswith("/complete/"):
            return self._complete(path.removeprefix("/complete/"), json.loads(body))
        if path.startswith("/verify/"):
            there = (self.folder / json.loads(body)["oid"]).is_file()
            return (200, {}) if there else (404, {"error": "not uploaded"})
        match = re.fullmatch(r"/api/(?:models/|(datasets/))([^/]+/[^/]+)(?:/(\w+)(?:/(.+))?)?", path)
        if match is None:
            return 404, {"error": f"nothing at {path}"}
        name = f"{match[1] or ''}{match[2]}"
        repo = self.repos.get(name)
        if repo is None:
            return 404, {"error": "Repository not found", "code": "RepoNotFound"}
        with self.lock:
            return self._in_repo(name, repo, match[3] or "revision", unquote(match[4] or "main"), body)

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        owner = asked["organization"] or "ann"
        if owner not in ("ann", "walkers", "readers"):
            return 404, {"error": "There is no such namespace."}
        if owner == "readers" or self.role == "read":
            return 403, {
                "error": f"You don't have the rights to create a model under the namespace {owner!r}."
            }
        name = f"{owner}/{asked['name']}"
        if name in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
        self.put(name, {}, private=asked.get("visibility") == "private")
        return 200, {"url": f"{self.url}/{name}"}

    def _validate(self, content: str) -> tuple[int, Any]:
        try:
            facts = yaml.safe_load(content.split("---\n")[1])
            assert isinstance(facts["tags"], list)
        except Exception as error:
            return 400, {"errors": [{"message": str(error)}]}
        return 200, {"errors": [], "warnings": []}

    def _in_repo(self, name: str, repo: Repo, what: str, revision: str, body: bytes) -> tuple[int, Any]:
        if what == "refs":
            branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head}]
            tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": c} for t, c in repo.tags.items()]
            return 200, {"branches": branches, "converts": [], "tags": tags}
        if what == "tree":
            listed = [_entry(path, held) for path, held in sorted(self.tree(name, revision).items())]
            folders = {path.partition("/")[0] for path in self.tree(name, revision) if "/" in path}
            return 200, listed + [{"type": "directory", "path": f, "oid": "0" * 40} for f in folders]
        if what == "preupload":
            asked = json.loads(body)
            return 200, {"files": [self._mode(repo, file, asked.get("gitIgnore")) for file in asked["files"]]}
        if what == "commit":
            return self._take(name, repo, [json.loads(line) for line in body.splitlines()])
        if what == "tag":
            tag = json.loads(body)["tag"]
            if tag in repo.tags:
                return 409, {"error": f"Tag {tag} exists already"}
            repo.tags[tag] = repo.head if revision == "main" else revision
            return 200, {}
        commit = repo.head if revision == "main" else repo.tags.get(revision, revision)
        if commit not in repo.commits:
            return 404, {"error": f"Invalid rev id: {revision}", "code": "RevisionNotFound"}
        listed = [_entry(path, held) for path, held in sorted(self.tree(name, revision).items())]
        files = [{**entry, "rfilename": entry["path"], "blobId": entry["oid"]} for entry in listed]
        for lfs in [entry["lfs"] for entry in files if "lfs" in entry]:
            lfs["sha256"] = lfs.pop("oid")
        about = {"gated": repo.gated, "cardData": repo.card, "tags": [], "siblings": files}
        return 200, {"id": name, "sha": commit, "private": repo.private, **about}

    def _mode(self, repo: Repo, file: dict[str, Any], ignore: str | None) -> dict[str, Any]:
        held = repo.commits[repo.head].get(file["path"])
        oid = None if held is None else held.sha256 if isinstance(held, Large) else _git(held)
        ignored = ignore is None and file["path"] in self.gitignored
        mode = "lfs" if file["size"] >= LARGE else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": ignored, "oid": oid}

    def _action(self, asked: dict[str, Any]) -> dict[str, Any]:
        oid, size = asked["oid"], asked["size"]
        if (self.folder / oid).is_file():
            return asked
        upload: dict[str, Any] = {"href": f"{self.url}/storage/{oid}?{SIGNATURE}"}
        if self.parts:
            many = -(-size // PART)
            upload = {"href": f"{self.url}/complete/{oid}", "header": {"chunk_size": str(PART)}}
            upload["header"] |= {
                f"{n + 1:05d}": f"{self.url}/storage/{oid}?part={n}&{SIGNATURE}" for n in range(many)
            }
        verify = {"href": f"{self.url}/verify/{oid}"}
        return {**asked, "actions": {"upload": upload, "verify": verify}}

    def _complete(self, oid: str, told: dict[str, Any]) -> tuple[int, Any]:
        pieces = [self.folder / f"{oid}.{part['partNumber'] - 1}" for part in told["parts"]]
        with (self.folder / f"{oid}.whole").open("wb") as whole:
            for piece in pieces:
                whole.write(piece.read_bytes())
        return self._settle(oid, self.folder / f"{oid}.whole")

    def _settle(self, oid: str, written: Path) -> tuple[int, Any]:
        with written.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != oid:
                return 400, {"error": "the content has another hash"}
        written.rename(self.folder / oid)
        return 200, {}

    def _take(self, name: str, repo: Repo, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        header, changes = lines[0]["value"], lines[1:]
        if header.get("parentCommit") not in (None, repo.head):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}
        tree = dict(repo.commits[repo.head])
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                if not (self.folder / value["oid"]).is_file():
                    return 400, {"error": f"{value['path']} was never uploaded"}
                tree[value["path"]] = Large(value["oid"], value["size"])
            else:
                del tree[value["path"]]
        made = self._commit(repo, tree)
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{made}", "commitOid": made}

    def store(self, path: str, query: dict[str, list[str]], read: Callable[[int], bytes], length: int) -> Any:
        """Take a large file, or a part of one, as the storage behind the hub does."""
        oid = path.removeprefix("/storage/")
        target = self.folder / (f"{oid}.{query['part'][0]}" if "part" in query else f"{oid}.whole")
        with target.open("wb") as file:
            while length:
                piece = read(min(length, 1 << 16))
                if not piece:
                    return None
                file.write(piece)
                length -= len(piece)
                self.received += len(piece)
        return (200, {}) if "part" in query else self._settle(oid, target)


@contextmanager
def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub, to which this process and its children are led, logged in."""
    from huggingface_hub import close_session, constants, set_client_factory
    from huggingface_hub.utils import _http
    from huggingface_hub.utils._http import default_client_factory

    made = FakeHub(folder / "hub")
    given = {
        "HF_ENDPOINT": made.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(folder / "hf"),
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    # The client reads these when it is imported, which in this process another test may have had done.
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, made.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "hf" / "token"))
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: _sleep(made, seconds)))
    yield made
    made.close()
    close_session()
    set_client_factory(default_client_factory)


def _sleep(hub: FakeHub, seconds: float) -> None:
    """A request that was given up ends with its hub; later it would close the next test's connections."""
    if hub.closed.wait(seconds):
        raise SystemExit


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, held: bytes | Large) -> dict[str, Any]:
    if isinstance(held, bytes):
        return {"type": "file", "path": path, "size": len(held), "oid": _git(held)}
    lfs = {"oid": held.sha256, "size": held.size, "pointerSize": 130}
    return {"type": "file", "path": path, "size": held.size, "oid": "f" * 40, "lfs": lfs}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def handle_any(self) -> None:
        split = urlsplit(self.path)
        line, hub = f"{self.command} {split.path}", self.hub
        length = int(self.headers.get("Content-Length") or 0)
        hub.asked.append(line)
        for match in [match for match in hub.before if re.search(match, line)]:
            hub.before.pop(match)()
        fault = due(hub.faults, line, hub.lock)
        if fault is not None and fault.status == 206:
            self._resolve(split.path, fault.after)
            return
        if fault is not None and fault.status <= 0:
            self._fail(fault)
            return
        authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if split.path.startswith("/storage/"):
            if self.headers.get("Authorization"):
                hub.leaks.append(line)
            taken = (
                hub.store(split.path, parse_qs(split.query), self.rfile.read, length)
                if fault is None
                else (fault.status, {"error": fault.message}, self.rfile.read(length))[:2]
            )
            if taken is not None:
                self._say(*taken, {"ETag": '"etag"', **(fault.headers if fault else {})})
            return
        body = self.rfile.read(length)
        if fault is not None:
            self._say(fault.status, {"error": fault.message}, fault.headers)
        elif "/resolve/" in split.path:
            self._resolve(split.path)
        elif not authorized and not split.path.startswith("/complete/") and not hub.is_public(split.path):
            self._say(401, {"error": "Invalid username or password."})
        else:
            status, answer = hub.answer(self.command, split.path, body)
            code = {"X-Error-Code": answer["code"]} if isinstance(answer, dict) and "code" in answer else {}
            self._say(status, answer, code)

    def _fail(self, fault: Fault) -> None:
        self.close_connection = True
        if fault.status == 0:
            self.hub.received += len(self.rfile.read(fault.after))
            self.connection.shutdown(2)
        else:
            self.hub.closed.wait(30)

    def _resolve(self, path: str, after: int | None = None) -> None:
        name, _, rest = path[1:].partition("/resolve/")
        revision, _, file = rest.partition("/")
        tree = self.hub.tree(name, revision)
        if unquote(file) not in tree:
            self._say(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        held = tree[unquote(file)]
        content = self.hub.content(name, unquote(file), revision)
        etag = held.sha256 if isinstance(held, Large) else _git(held)
        said = {"X-Repo-Commit": revision, "ETag": f'"{etag}"'}
        begun = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if begun is not None:
            start = int(begun[1])
            said["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content = content[start:]
        if after is not None:
            said["Content-Length"] = str(len(content))
            content, self.close_connection = content[:after], True
        self.hub.sent += len(content) if self.command == "GET" else 0
        self._say(206 if begun else 200, content, said)

    def _say(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    def log_message(self, format: str, *args: Any) -> None:
        """Said by the tests that care."""
