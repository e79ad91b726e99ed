"""Models by their names on the hub, with the real client and a local server."""

import hashlib
import json

import pytest
from safetensors.torch import load_file

from tests.support.commands import python
from tests.support.hub import serving
from tests.support.model_folders import SMALL, reference, same, write
from tests.support.plain_layouts import PLAIN

NAME, COMMIT = "somebody/AMPLIFY_small", "3" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(f"models/{NAME}", tmp_path / "hf_home", monkeypatch) as handler:
        handler.commits[COMMIT] = {}
        yield handler


def test_a_model_of_the_hub_is_read_and_its_commit_recorded(hub, tmp_path):
    model = reference(SMALL)
    folder = tmp_path / "model"
    write(folder, PLAIN["te"](model.state_dict(), 3, 2))
    hub.commits[COMMIT] = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.commits[COMMIT]["modeling_something.py"] = b"raise SystemExit('code of the hub was run')"
    result = python("-m", "amplify_ds.export", NAME, tmp_path / "out")
    assert result.returncode == 0 and "te layout" in result.stdout, result.stderr
    same(load_file(tmp_path / "out/model.safetensors"), model.state_dict())
    location = json.loads((tmp_path / "out/provenance.json").read_text())["exported_from"][0]
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert location == {"path": NAME, "layout": "te", "sha256": digest, "commit": COMMIT}
    assert COMMIT in (tmp_path / "out/README.md").read_text()
    assert not list((tmp_path / "hf_home/hub").rglob("*.py")), "code of the hub was fetched"


@pytest.mark.parametrize(
    "name, message",
    [
        ("somebody/nothing", "the hub has no model of that name, or it is private"),
        (f"{NAME}@v2", "the model has no revision v2 on the hub"),
        (None, "the hub could not be reached"),
    ],
)
def test_a_failed_download_is_one_message(hub, name, message, tmp_path, monkeypatch):
    if name is None:
        name = NAME
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # no server listens there
    result = python("-m", "amplify_ds.export", name, tmp_path / "out")
    assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr, result.stderr
    assert f"{name}: is not a local folder" in result.stderr and not (tmp_path / "out").exists()
