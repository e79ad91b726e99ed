"""Models by their names on the hub: a server on this machine answers what the real client asks."""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

import pytest
from safetensors.torch import load_file

from tests.support.commands import python
from tests.support.hub import serve
from tests.support.model_folders import SMALL, reference, same, write
from tests.support.plain_layouts import PLAIN

NAME, COMMIT = "somebody/AMPLIFY_small", "3" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Serves the files of the folder that it returns as the model NAME."""
    folder = tmp_path / "served"

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = urlsplit(self.path).path
            if path == f"/api/models/{NAME}/tree/{COMMIT}":
                files = [
                    {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": ""} for p in folder.iterdir()
                ]
                return self.say(200, json.dumps(files).encode())
            if re.fullmatch(f"/api/models/{NAME}(/revision/(main|{COMMIT}))?", path):
                files = [{"rfilename": p.name, "size": p.stat().st_size} for p in folder.iterdir()]
                return self.say(200, json.dumps({"id": NAME, "sha": COMMIT, "siblings": files}).encode())
            if match := re.fullmatch(f"/{NAME}/resolve/{COMMIT}/([^/]+)", path):
                data = (folder / match[1]).read_bytes()
                return self.say(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', **{"X-Repo-Commit": COMMIT})
            reason = "RevisionNotFound" if NAME in path else "RepoNotFound"
            self.say(404, b"{}", **{"X-Error-Code": reason})

        do_HEAD = do_GET

        def say(self, status, body, **headers):
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = serve(Hub, tmp_path / "hf_home", monkeypatch)
    yield folder
    server.shutdown()
    server.server_close()


def test_a_model_of_the_hub_is_read_and_its_commit_recorded(hub, tmp_path):
    model = reference(SMALL)
    write(hub, PLAIN["te"](model.state_dict(), 3, 2))
    (hub / "modeling_something.py").write_text("raise SystemExit('code of the hub was run')")
    result = python("-m", "amplify_ds.export", NAME, tmp_path / "out")
    assert result.returncode == 0 and "te layout" in result.stdout, result.stderr
    same(load_file(tmp_path / "out/model.safetensors"), model.state_dict())
    place = json.loads((tmp_path / "out/provenance.json").read_text())["exported_from"][0]
    digest = hashlib.sha256((hub / "model.safetensors").read_bytes()).hexdigest()
    assert place == {"path": NAME, "layout": "te", "sha256": digest, "commit": COMMIT}
    assert COMMIT in (tmp_path / "out/README.md").read_text()
    assert not list((tmp_path / "hf_home/hub").rglob("*.py")), "code of the hub was fetched"


@pytest.mark.parametrize(
    "name, words",
    [
        ("somebody/nothing", "the hub has no model of that name, or it is private"),
        (f"{NAME}@v2", "the model has no revision v2 on the hub"),
        (None, "the hub could not be reached"),
    ],
)
def test_a_hub_that_does_not_help_is_one_message(hub, name, words, tmp_path, monkeypatch):
    hub.mkdir()
    if name is None:
        name = NAME
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    result = python("-m", "amplify_ds.export", name, tmp_path / "out")
    assert result.returncode == 1 and words in result.stderr and "Traceback" not in result.stderr, result.stderr
    assert f"{name}: there is no such folder here" in result.stderr and not (tmp_path / "out").exists()
