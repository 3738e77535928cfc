"""A hub on a free port of this machine, as far as its client asks: repositories with commits, made, pushed, fetched."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

# Files of these endings go to the store of large files, as on the hub.
_LARGE = (".safetensors", ".bin", ".pkl")


@dataclass
class Repository:
    """commits: files by name, the oldest first. branches: numbers of commits. sizes: what is listed in place of true
    sizes. private, gated: who may read it."""

    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b""}])
    branches: dict[str, int] = field(default_factory=lambda: {"main": 0})
    sizes: dict[str, int] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    extra_names: tuple[str, ...] = ()

    def number(self, revision: str) -> int | None:
        names = {sha(number): number for number in range(len(self.commits))} | self.branches
        return names.get(revision)


def sha(number: int) -> str:
    """The name of a commit."""
    return hashlib.sha1(str(number).encode()).hexdigest()


class Hub:
    """What the stand-in keeps. token: The one that may write and read all. asked: method and path of every request.
    cut: names of files whose transfer stops after half the bytes. tokens: those that were sent."""

    def __init__(self) -> None:
        self.token = "hf_secret_of_the_tests"
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.tokens: set[str] = set()
        self.cut: set[str] = set()
        self.cut_uploads = False
        self.status: int | None = None
        self.address = ""

    def put(self, name: str, files: dict[str, bytes], **settings: Any) -> Repository:
        """A repository with one commit."""
        made = Repository([files], **settings)
        self.repositories[name] = made
        return made


@contextmanager
def hub_stand_in() -> Iterator[Hub]:
    """The stand-in while it listens."""
    hub = Hub()

    class Handler(_Handler):
        kept = hub

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            """Connections that a test cuts are no error."""

    with Server(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True  # otherwise an answer in two parts waits 40 ms
    protocol_version = "HTTP/1.1"
    kept: Hub

    def log_message(self, *args: object) -> None:
        pass

    # --- answers ---

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", headers.pop("length", str(len(body))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json")

    def _refused(self, status: int, code: str) -> None:
        self._send(status, b"{}", X_Error_Code=code, X_Error_Message="refused for a test")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _knows(self) -> bool:
        """Whether the request has the token."""
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if sent:
            self.kept.tokens.add(sent)
        return sent == self.kept.token

    def _readable(self, name: str) -> Repository | None:
        """The repository; None where the answer is sent already."""
        found = self.kept.repositories.get(name)
        if found is None or (found.private and not self._knows()):
            self._refused(404 if self._knows() else 401, "RepoNotFound")
            return None
        if found.gated and not self._knows():
            self._refused(403, "GatedRepo")
            return None
        return found

    # --- requests ---

    def _begin(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.kept.asked.append((self.command, path))
        return path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self._begin()
        if self.kept.status is not None:
            self._send(self.kept.status)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/store/(\w+)/(.+)", path):
            self._file(found[2], self.kept.stored[found[1]], {})
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*found.groups())
        else:
            self._refused(404, "EntryNotFound")

    def _info(self, name: str, revision: str) -> None:
        repository = self._readable(name)
        if repository is None:
            return
        number = repository.number(revision)
        if number is None:
            self._refused(404, "RevisionNotFound")
            return
        files = repository.commits[number]
        listed: list[dict[str, Any]] = [{"rfilename": each} for each in (*files, *repository.extra_names)]
        if "blobs" in parse_qs(urlsplit(self.path).query):
            for entry in listed:
                content = files.get(entry["rfilename"], b"x")
                entry["size"] = repository.sizes.get(entry["rfilename"], len(content))
        card = files.get("README.md", b"").decode()
        library = re.search(r"^library_name: (\S+)$", card, re.MULTILINE)
        more = {} if library is None else {"library_name": library[1]}
        self._json({"id": name, "sha": sha(number), "private": repository.private, "siblings": listed, **more})

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repository = self._readable(name)
        if repository is None:
            return
        number = repository.number(revision)
        if number is None or file not in repository.commits[number]:
            self._refused(404, "RevisionNotFound" if number is None else "EntryNotFound")
            return
        content = repository.commits[number][file]
        digest = hashlib.sha256(content).hexdigest()
        about = {"X_Repo_Commit": sha(number)}
        if file.endswith(_LARGE):
            self.kept.stored[digest] = content
            about |= {"X_Linked_Etag": f'"{digest}"', "X_Linked_Size": str(len(content))}
            # On another host, as on the hub: the client sends no token there.
            store = self.kept.address.replace("127.0.0.1", "localhost")
            self._send(302, Location=f"{store}/store/{digest}/{file}", **about)
        else:
            self._file(file, content, about | {"ETag": f'"{digest}"'})

    def _file(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        if name in self.kept.cut and self.command == "GET":
            self._send(200, content[: len(content) // 2], length=str(len(content)), **headers)
            self.close_connection = True
        else:
            self._send(200, content, **headers)

    def do_POST(self) -> None:
        path, body = self._begin(), self._body()
        if path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif not self._knows():
            self._refused(401, "")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [entry["path"] for entry in json.loads(body)["files"]]
            kinds = {file: "lfs" if file.endswith(_LARGE) else "regular" for file in files}
            self._json({"files": [{"path": f, "uploadMode": kinds[f], "shouldIgnore": False} for f in files]})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._refused(404, "")

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.kept.repositories:
            self._json({"error": "exists", "url": f"{self.kept.address}/{name}"}, 409)
            return
        self.kept.repositories[name] = Repository(
            private=asked.get("visibility") == "private" or bool(asked.get("private"))
        )
        self._json({"url": f"{self.kept.address}/{name}"})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for entry in asked["objects"]:
            href = f"{self.kept.address}/store/{entry['oid']}?signature=signed_for_a_test"
            objects.append({**entry, "actions": {"upload": {"href": href}}})
        self._json({"transfer": "basic", "objects": objects})

    def do_PUT(self) -> None:
        path = self._begin()
        if self.kept.cut_uploads:
            self._send(403)
            self.close_connection = True
            return
        content = self._body()
        self.kept.stored[path.rsplit("/", 1)[1]] = content
        self._send(200)

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repository = self.kept.repositories[name]
        files = dict(repository.commits[repository.branches["main"]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.kept.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        repository.commits.append(files)
        repository.branches["main"] = len(repository.commits) - 1
        oid = sha(repository.branches["main"])
        self._json({"commitUrl": f"{self.kept.address}/{name}/commit/{oid}", "commitOid": oid})
