"""A local server for Hugging Face's client that can break off downloads, stall and return wrong data."""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

SMALL = 15_000  # bytes; larger files are in LFS, not in git


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """Serves one repository.

    commits: {commit: {path: content}}; the last one is main.
    spoil: {path: how its next downloads go, in order: "whole", "half", "nothing", "stall" (half, then wait for
        `resume`) or "lie" (wrong data)}.
    log: (path, first byte) of each download.
    refuse: status and headers of every response, if set.
    """

    protocol_version = "HTTP/1.1"
    repository: str
    commits: dict[str, dict[str, bytes]]
    spoil: dict[str, list[str]]
    log: list[tuple[str, int]]
    refuse: tuple[int, dict[str, str]] | None = None
    stalled: threading.Event
    resume: threading.Event
    close: Callable[[], object]  # stops the server
    server: ThreadingHTTPServer

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if self.refuse:
            return self.respond(self.refuse[0], b"{}", self.refuse[1])
        if match := re.fullmatch("/lfs/([^/]+)/(.+)", path):
            return self.send_file(match[2], self.commits[match[1]][match[2]], {})
        name = self.repository if self.repository in path else self.repository.removeprefix("models/")
        match = re.fullmatch(f"(/api)?/{name}(?:/(revision|tree|resolve)/([^/]+)(?:/(.+))?)?", path)
        if not match:
            return self.respond(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        commit = [*self.commits][-1] if match[3] in (None, "main") else match[3]
        if commit not in self.commits:
            return self.respond(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if match[2] == "resolve":
            return self.resolve(commit, match[4])
        self.respond(200, json.dumps(self.describe(commit, tree=match[2] == "tree")).encode())

    def describe(self, commit: str, tree: bool):
        """Return the list of files. The tree and revision calls use different keys for the same values."""
        path, oid, digest = ("path", "oid", "oid") if tree else ("rfilename", "blobId", "sha256")
        files = [
            {"type": "file", path: name, "size": len(data), oid: git_sha1(data)}
            | (
                {"lfs": {"size": len(data), digest: hashlib.sha256(data).hexdigest(), "pointerSize": 134}}
                if len(data) > SMALL
                else {}
            )
            for name, data in self.commits[commit].items()
        ]
        return files if tree else {"id": self.repository.partition("/")[2], "sha": commit, "siblings": files}

    def resolve(self, commit: str, name: str):
        data = self.commits[commit][name]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_sha1(data)}"'}
        if len(data) <= SMALL:
            return self.send_file(name, data, headers)
        linked = {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
        store = f"http://localhost:{self.server.server_port}/lfs"  # another host, as on the real hub
        self.respond(302, b"", {"Location": f"{store}/{commit}/{name}", **headers, **linked})

    def send_file(self, name: str, data: bytes, headers: dict[str, str]):
        if self.command == "HEAD":
            return self.respond(200, data, headers)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.log.append((name, start))
        outcome = self.spoil[name].pop(0) if self.spoil.get(name) else "whole"
        rest = (data[:-5] + b"AAAA\n" if outcome == "lie" else data)[start:]
        sent = {"half": len(rest) // 2, "stall": len(rest) // 2, "nothing": 0}.get(outcome)
        if start:
            headers |= {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        self.respond(206 if start else 200, rest, headers, sent)
        if outcome == "stall":
            self.stalled.set()
            self.resume.wait(60)
        self.close_connection = sent is not None

    def respond(self, status: int, body: bytes, headers: dict[str, str] | None = None, sent: int | None = None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:sent])
            self.wfile.flush()

    def log_message(self, *_):
        pass


@contextmanager
def serving(repository: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """Serve "datasets/OWNER/NAME" or "models/OWNER/NAME" and yield the handler class, whose attributes say how.

    Until the end of the test the client uses only this hub, with its cache in `home`.
    """
    handler: type[Hub] = type("Handler", (Hub,), {"repository": repository, "commits": {}, "spoil": {}, "log": []})
    handler.stalled, handler.resume = threading.Event(), threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def close() -> None:
        server.shutdown()
        server.server_close()

    handler.close = close
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    yield handler
    handler.resume.set()
    handler.close()
