"""A stand-in for the Hugging Face hub on loopback, as far as huggingface_hub asks it for a model's files.

    GET  /api/models/OWNER/NAME[/revision/REVISION]     the model's commit and files
    GET  /api/models/OWNER/NAME/tree/COMMIT             the files again
    HEAD, GET  /OWNER/NAME/resolve/REVISION/FILE        the file, or where a large one is: on another host
    GET  /cdn/SHA256                                    part of it, if asked for; refuses tokens, as storage hosts do

A missing model is 401 without a token and 404 with one, and what can be known of a gated model is public: as the hub
answers. Faults are settings of the server; it keeps a log.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_a_reader"
LARGE = (".safetensors", ".pth", ".bin")  # kept outside of git


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Model:
    commits: dict[str, dict[str, bytes]]  # commit to its files
    revisions: dict[str, str]  # branch or tag to commit
    gated: bool = False
    private: bool = False

    def commit(self, revision: str) -> str | None:
        commit = self.revisions.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass
class HubServer:
    """What the hub holds, how it misbehaves, and what it was asked for."""

    models: dict[str, Model] = field(default_factory=dict)
    log: list[Request] = field(default_factory=list)
    break_after: int | None = None  # bytes of a large file, once; from then on there are none
    storage_is_down: bool = False
    hub_is_down: bool = False
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, name: str, files: dict[str, bytes], *, gated: bool = False, private: bool = False) -> Model:
        commit = fake_commit(files)
        self.models[name] = Model({commit: files}, {"main": commit}, gated, private)
        return self.models[name]

    def add_directory(self, name: str, directory: Path, *, gated: bool = False, private: bool = False) -> Model:
        files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
        contents = {name: path.read_bytes() for name, path in files.items()}
        return self.add(name, contents, gated=gated, private=private)

    def downloaded(self) -> list[str]:
        """The names of the files whose content was asked for, sorted."""
        found = (re.fullmatch(r"/[^/]+/[^/]+/resolve/[^/]+/(.+)", request.path) for request in self.sent("GET"))
        return sorted(match[1] for match in found if match)

    def sent(self, method: str, prefix: str = "/") -> list[Request]:
        return [request for request in self.log if request.method == method and request.path.startswith(prefix)]

    def repair(self) -> None:
        self.break_after, self.storage_is_down, self.hub_is_down = None, False, False
        self.log.clear()


def fake_commit(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


@contextmanager
def running_hub() -> Iterator[HubServer]:
    hub = HubServer()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization")
        if (
            path.startswith(("/api/models/", "/cdn/")) or "/resolve/" in path
        ):  # huggingface_hub has questions of its own
            self.hub.log.append(Request(self.command, path, self.headers.get("Range"), authorization))
        if match := re.fullmatch(r"/cdn/(\w+)", path):
            self._send_large(match[1])
        elif self.hub.hub_is_down:
            self._refuse(503)
        elif authorization not in (None, f"Bearer {TOKEN}"):
            self._refuse(401, message="Invalid credentials in Authorization header")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(?:revision|tree)/(.+))?", path):
            self._describe(match[1], match[2] or "main", tree="/tree/" in path)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        else:
            self._refuse(404)

    def _model(self, name: str) -> Model | None:
        """The model, if this reader may know of it."""
        model = self.hub.models.get(name)
        if model is None or (model.private and not self.headers.get("Authorization")):
            known = self.headers.get("Authorization") is not None
            self._refuse(404 if known else 401, "RepoNotFound", "Repository not found")
            return None
        return model

    def _describe(self, name: str, revision: str, tree: bool) -> None:
        model = self._model(name)
        if model is None:
            return
        commit = model.commit(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        files = sorted(model.commits[commit].items())
        answer = [_in_tree(*file) for file in files] if tree else _in_model(name, commit, files)
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, file: str) -> None:
        model = self._model(name)
        if model is None:
            return
        commit = model.commit(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif model.gated and not self.headers.get("Authorization"):
            self._refuse(401, "GatedRepo", f"Access to model {name} is restricted")
        elif file not in model.commits[commit]:
            self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        else:
            self._send_file(file, model.commits[commit][file], commit)

    def _send_file(self, name: str, content: bytes, commit: str) -> None:
        if not name.endswith(LARGE):
            self._send(200, content, {"ETag": f'"{_git_sha(content)}"', "X-Repo-Commit": commit})
            return
        digest = hashlib.sha256(content).hexdigest()
        headers = {
            "Location": f"http://localhost:{self.hub.port}/cdn/{digest}",
            "X-Linked-ETag": f'"{digest}"',
            "X-Linked-Size": str(len(content)),
            "X-Repo-Commit": commit,
        }
        self._send(302, b"Found. Redirecting", headers)

    def _send_large(self, digest: str) -> None:
        contents = (
            content
            for model in self.hub.models.values()
            for files in model.commits.values()
            for content in files.values()
        )
        content = next(content for content in contents if hashlib.sha256(content).hexdigest() == digest)
        if self.headers.get("Authorization"):
            self._refuse(400, message="Only one auth mechanism allowed")
            return
        if self.hub.storage_is_down:
            self._refuse(503)
            return
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match else 0
        headers = {"ETag": f'"{digest}"', "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        if self.hub.break_after is None:
            self._send(206 if match else 200, content[start:], headers if match else {"ETag": f'"{digest}"'})
            return
        self.hub.storage_is_down = True
        self._send(206 if match else 200, content[start:], headers if match else {}, self.hub.break_after)
        self.close_connection = True

    def _refuse(self, status: int, code: str = "", message: str = "", headers: dict[str, str] | None = None) -> None:
        told = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(status, b"{}", {name: value for name, value in told.items() if value} | (headers or {}))

    def _send(self, status: int, content: bytes, headers: dict[str, str], limit: int | None = None) -> None:
        """Promises all of `content` and sends `limit` bytes of it."""
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:limit])


def _in_model(name: str, commit: str, files: list[tuple[str, bytes]]) -> dict[str, object]:
    siblings = []
    for path, content in files:
        sibling: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": _git_sha(content)}
        if path.endswith(LARGE):
            sibling["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        siblings.append(sibling)
    return {
        "_id": "0",
        "id": name,
        "modelId": name,
        "sha": commit,
        "private": False,
        "tags": [],
        "downloads": 0,
        "siblings": siblings,
    }


def _in_tree(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": _git_sha(content)}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def _git_sha(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
