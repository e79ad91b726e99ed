"""UR100P from a hub: a server on this machine answers what the real client asks, and breaks off, changes and lies."""

import gzip
import hashlib
import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

import dnaio
import pytest

from amplify_ds.prepare.sources import find_sources
from tests.support.commands import python
from tests.support.hub import serve
from tests.support.paths import EXAMPLE, ROOT
from tests.support.terminal import open_terminal, read_to_end

REPOSITORY, SCRIPT = "chandar-lab/UR100P", "data_prep/fetch_ur100p.py"
FIRST, SECOND = "1" * 40, "2" * 40
SMALL = 15_000  # bytes up to which the hub keeps a file in git, not in LFS


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def table(records) -> bytes:
    return b"name,sequence\n" + b"".join(b"%s,%s\n" % (a.encode(), b.encode()) for a, b in records)


def dataset() -> dict[str, bytes]:
    """The layout of UR100P, of bundled proteins; antibodies are two chains with | between them."""
    with dnaio.open(EXAMPLE / "train.fasta.gz") as reader:
        found = [(record.name.split()[0], record.sequence) for record in reader][:900]
    with dnaio.open(EXAMPLE / "validation.fasta.gz") as reader:
        held_out = [(record.name.split()[0], record.sequence) for record in reader]
    pairs = [(f"{a}_{b}", f"{x}|{y}") for (a, x), (b, y) in zip(found[600:700:2], found[601:700:2])]
    files = {
        **{f"UniProt/train-{i:05d}-of-00003.csv": found[200 * i : 200 * (i + 1)] + held_out[:5] for i in range(3)},
        "UniProt/test-00000-of-00001.csv": held_out[:40],
        "OAS/train-00000-of-00001.csv": pairs[:40],
        "OAS/test-00000-of-00001.csv": pairs[40:],
        "SCOP/train-00000-of-00001.csv": found[700:900],
        "SCOP/test-00000-of-00001.csv": held_out[40:80],
    }
    return {name: table(records) for name, records in files.items()} | {
        ".gitattributes": b"* text\n",
        "README.md": b"---\nlicense: cc-by-4.0\n---\n",
        "../outside.csv": b"x",
    }


FILES = dataset()
DATA = sorted(name for name in FILES if name[0].isalpha() and name.endswith(".csv"))
LARGE, LITTLE = "UniProt/train-00001-of-00003.csv", "SCOP/test-00000-of-00001.csv"


class Hub(BaseHTTPRequestHandler):
    """commits: {commit: {path: content}}. spoil: {path: what becomes of the next GETs of it, one after the other}."""

    protocol_version = "HTTP/1.1"
    head, refuse = FIRST, None
    commits: dict[str, dict[str, bytes]]
    spoil: dict[str, list[str]]
    log: list[tuple[str, int]]
    stalled: threading.Event
    resume: threading.Event

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if self.refuse:
            return self.say(self.refuse[0], b"{}", **self.refuse[1])
        if match := re.fullmatch(f"/api/datasets/{REPOSITORY}(?:/revision/(.+))?", path):
            commit = {None: self.head, "main": self.head}.get(match[1], match[1])
            if commit not in self.commits:
                return self.say(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
            return self.say(200, json.dumps(self.describe(commit)).encode())
        if match := re.fullmatch(f"/datasets/{REPOSITORY}/resolve/([^/]+)/(.+)", path):
            commit, name = match.groups()
            if commit not in self.commits:
                return self.say(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
            data = self.commits[commit][name]
            known = {"X-Repo-Commit": commit, "ETag": f'"{git_sha1(data)}"'}
            if len(data) <= SMALL:
                return self.give(name, data, **known)
            linked = {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
            store = f"http://localhost:{self.server.server_port}/lfs"  # another host, as with the hub
            return self.say(302, b"", Location=f"{store}/{commit}/{name}", **known, **linked)
        if match := re.fullmatch("/lfs/([^/]+)/(.+)", path):
            return self.give(match[2], self.commits[match[1]][match[2]])
        self.say(404, b"{}")

    def describe(self, commit: str) -> dict:
        files = [
            {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
            | (
                {"lfs": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 134}}
                if len(data) > SMALL
                else {}
            )
            for name, data in self.commits[commit].items()
        ]
        return {"id": REPOSITORY, "sha": commit, "siblings": files}

    def give(self, name: str, data: bytes, **headers):
        if self.command == "HEAD":
            return self.say(200, data, **headers)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.log.append((name, start))
        fate = self.spoil[name].pop(0) if self.spoil.get(name) else "whole"
        if fate == "lie":
            data = data[:-5] + b"AAAA\n"
        rest = data[start:]
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if fate in ("whole", "lie"):
            return self.say(206 if start else 200, rest, **headers)
        self.say(206 if start else 200, rest, sent=rest[: 0 if fate == "nothing" else len(rest) // 2], **headers)
        if fate == "stall":
            self.stalled.set()
            self.resume.wait(60)
        self.close_connection = True

    def say(self, status: int, body: bytes, sent: bytes | None = None, **headers):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if sent is None else sent)
            self.wfile.flush()

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The handler class, to be told what to do; the client is pointed at its server."""
    handler = type(
        "Handler",
        (Hub,),
        {
            "commits": {FIRST: dict(FILES)},
            "spoil": {},
            "log": [],
            "stalled": threading.Event(),
            "resume": threading.Event(),
        },
    )
    server = serve(handler, tmp_path / "hf_home", monkeypatch)
    handler.close = lambda: (server.shutdown(), server.server_close())
    yield handler
    handler.resume.set()
    handler.close()


def fetch(output, *words) -> subprocess.CompletedProcess:
    return python(SCRIPT, "--output", output, *words)


def succeeds(result) -> str:
    assert result.returncode == 0, result.stderr
    assert "B/s" not in result.stderr, "a progress bar although nobody looks"
    return result.stdout


def refuses(result, *texts) -> str:
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    for text in texts:
        assert text in result.stderr, result.stderr
    return result.stderr


def holds(output: Path, names=DATA, files=FILES) -> None:
    """`output` holds exactly these data files, and nothing half."""
    found = {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*.csv")}
    assert found == {name: files[name] for name in names}
    assert not list(output.rglob("*.incomplete"))
    assert not (output.parent / f".{output.name}.partial").exists()


def test_help_teaches_with_an_example():
    result = python(SCRIPT, "--help")
    assert result.returncode == 0 and result.stdout.count("fetch_ur100p.py") >= 3


def test_a_dry_run_says_how_much_and_makes_nothing(hub, tmp_path):
    text = succeeds(fetch(tmp_path / "UR100P", "--dry-run"))
    assert re.search(r"UniProt/train +3 ", text) and re.search(r"all +8 ", text) and FIRST in text
    assert not (tmp_path / "UR100P").exists() and not hub.log


def test_fetched_files_give_the_shards_of_the_same_files(hub, tmp_path):
    """The printed command is the one that runs; the library's hidden folder is not read."""
    text = succeeds(fetch(tmp_path / "UR100P"))
    holds(tmp_path / "UR100P")
    assert not (tmp_path / "outside.csv").exists() and "CC-BY-4.0" in text
    assert (tmp_path / "UR100P/.cache/huggingface").is_dir()
    assert sorted(hub.log) == [(name, 0) for name in DATA]
    said = json.loads((tmp_path / "UR100P/fetched.json").read_text())
    assert said["repository"] == REPOSITORY and said["commit"] == FIRST and sorted(said["files"]) == DATA
    assert said["files"][LARGE] == {"bytes": len(FILES[LARGE]), "sha256": hashlib.sha256(FILES[LARGE]).hexdigest()}
    assert said["files"][LITTLE] == {"bytes": len(FILES[LITTLE]), "git_sha1": git_sha1(FILES[LITTLE])}

    [line] = re.findall(r"^next: python (data_prep/build_shards.py --input \S+:UniProt/train .*)$", text, re.M)
    words = shlex.split(line)
    assert [word.rsplit(":")[-1] for word in words[3:7]] == ["--exclude", "OAS/test", "SCOP/test", "UniProt/test"]
    result = python(*words[:-1], tmp_path / "fetched")
    assert result.returncode == 0, result.stderr

    (tmp_path / "UR100P/.cache/huggingface/half.csv").write_bytes(b"name,sequence\nx,MKV\n")
    read = find_sources([str(tmp_path / "UR100P")])
    assert [str(source.path.relative_to(tmp_path / "UR100P")) for source in read] == DATA

    for name in DATA:
        (tmp_path / "by hand" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "by hand" / name).write_bytes(FILES[name])
    inputs = [tmp_path / "by hand" / name for name in DATA if name.startswith("UniProt/train")]
    exclude = [tmp_path / "by hand" / name for name in DATA if "/test" in name]
    result = python(words[0], "--input", *inputs, "--exclude", *exclude, "--output", tmp_path / "direct")
    assert result.returncode == 0, result.stderr
    shards = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("fetched", "direct")]
    assert shards[0] == shards[1] and len(shards[0]) >= 4
    assert json.loads(shards[0]["manifest.json"])["counts"]["rejected"], "the held-out proteins must have been left out"


def test_a_broken_connection_is_continued_where_it_ended(hub, tmp_path):
    files = {**FILES, LARGE: FILES[LARGE] * 1200}  # the client writes, and so continues at, whole blocks of 10 MiB
    hub.commits[FIRST], hub.spoil[LARGE] = files, ["half"]
    succeeds(fetch(tmp_path / "UR100P"))
    holds(tmp_path / "UR100P", files=files)
    assert [start for name, start in hub.log if name == LARGE] == [0, 10 * 2**20]


def test_what_broke_off_for_good_is_all_that_is_fetched_again(hub, tmp_path):
    output = tmp_path / "UR100P"
    hub.spoil[LARGE] = ["half"] + ["nothing"] * 9
    refuses(fetch(output), "1 of 8 files could not be fetched", LARGE, "the 7 complete files are kept")
    holds(output, [name for name in DATA if name != LARGE])
    assert fetch(output, "--check").returncode == 1
    hub.spoil.clear()
    hub.log.clear()
    assert "1 fetched, 7 were there" in succeeds(fetch(output))
    holds(output)
    assert hub.log == [(LARGE, 0)]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_on_the_way_and_one_fetch_at_a_time(hub, tmp_path, how):
    output = tmp_path / "UR100P"
    hub.spoil[LARGE] = ["stall"]
    with subprocess.Popen(
        [sys.executable, SCRIPT, "--output", str(output)], cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
    ) as first:
        assert hub.stalled.wait(60)
        deadline = time.monotonic() + 60  # until the others have come
        while len(list(output.rglob("*.csv"))) < 7 and time.monotonic() < deadline:
            time.sleep(0.05)
        before = len(hub.log)
        refuses(fetch(output), "another build is writing this directory")
        assert len(hub.log) == before
        assert list(output.rglob("*.incomplete"))
        first.send_signal(how)
        assert first.wait(20) == -how
        assert (b"complete files are kept" in first.stderr.read()) == (how == signal.SIGINT)
    assert bool(list(output.rglob("*.incomplete"))) == (how == signal.SIGKILL)
    hub.resume.set()
    hub.log.clear()
    succeeds(fetch(output))
    holds(output)
    assert hub.log == [(LARGE, 0)]


@pytest.mark.parametrize("name", [LARGE, LITTLE])
@pytest.mark.parametrize("harm", ["flip", "cut", "delete"])
def test_a_file_damaged_after_it_came_is_found(hub, tmp_path, name, harm):
    output = tmp_path / "UR100P"
    succeeds(fetch(output))
    path, data = output / name, FILES[name]
    spoilt = {"flip": data[:99] + bytes([data[99] ^ 1]) + data[100:], "cut": data[:-1]}
    path.write_bytes(spoilt[harm]) if harm in spoilt else path.unlink()
    refuses(fetch(output, "--check"), "1 of 8 files", name)
    assert path.exists() == (harm != "delete"), "--check changes nothing"
    hub.log.clear()
    result = fetch(output)
    succeeds(result)
    assert (f"removed: {path} has" in result.stderr) == (harm != "delete")
    assert hub.log == [(name, 0)]
    holds(output)


def test_a_file_that_came_wrong_is_removed(hub, tmp_path):
    output = tmp_path / "UR100P"
    hub.spoil = {LARGE: ["lie"], LITTLE: ["lie"]}
    refuses(fetch(output), "2 of 8 files", f"{LARGE} has sha256", f"{LITTLE} has git SHA-1", "; removed")
    holds(output, [name for name in DATA if name not in (LARGE, LITTLE)])
    succeeds(fetch(output))
    holds(output)


def test_parts_one_after_the_other(hub, tmp_path):
    output = tmp_path / "UR100P"
    refuses(
        fetch(output, "--part", "SCOP", "UniProt/valid"),
        "--part UniProt/valid",
        "OAS/test, OAS/train, SCOP/test, SCOP/train, UniProt/test, UniProt/train",
    )
    assert not output.exists()
    succeeds(fetch(output, "--part", "SCOP"))
    holds(output, [name for name in DATA if name.startswith("SCOP")])
    assert "all 2 files" in succeeds(fetch(output, "--check"))
    text = succeeds(fetch(output, "--part", "UniProt/test"))
    assert f"--exclude {output}:SCOP/test {output}:UniProt/test" in text
    assert len(hub.log) == 3 and "all 3 files" in succeeds(fetch(output, "--check"))
    refuses(fetch(output, "--check", "--part", "OAS/test"), "1 of 1 files", "is missing")


def test_without_a_network(hub, tmp_path):
    output = tmp_path / "UR100P"
    succeeds(fetch(output, "--part", "SCOP"))
    hub.close()
    for text in (
        "Nothing was changed",
        f"python {SCRIPT} --output {tmp_path}/none",
        f"--output {tmp_path}/none --check",
        f"hf download {REPOSITORY} --repo-type dataset --local-dir {tmp_path}/none",
        f"data_prep/build_shards.py --input {tmp_path}/none:UniProt/train",
    ):
        refuses(fetch(tmp_path / "none"), "cannot be listed at http://127.0.0.1", text)
    for part, start in (("SCOP", "SCOP/train"), ("OAS/test", "OAS/test")):
        refuses(fetch(tmp_path / "none", "--part", part), f"--include '{part}*'", f"--input {tmp_path}/none:{start} ")
    assert not (tmp_path / "none").exists()
    refuses(fetch(tmp_path / "none", "--check"), "there is no", "fetched.json", "Copy it with the files")
    copy = output.rename(tmp_path / "copied")
    assert "all 2 files" in succeeds(fetch(copy, "--check"))
    assert "0 fetched, 2 were there" in succeeds(fetch(copy, "--part", "SCOP"))


def test_a_network_lost_between_two_runs(hub, tmp_path, monkeypatch):
    output = tmp_path / "UR100P"
    succeeds(fetch(output, "--part", "SCOP"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refuses(
        fetch(output),
        "6 of 8 files could not be fetched",
        "the 2 complete files are kept",
        "and 1 more",
        "If this machine has no network",
    )
    holds(output, [name for name in DATA if name.startswith("SCOP")])


def test_a_dataset_that_changes_is_not_mixed(hub, tmp_path):
    output = tmp_path / "UR100P"
    succeeds(fetch(output, "--part", "SCOP"))
    changed = {name: data.replace(b"L", b"I") for name, data in FILES.items()}
    hub.commits[SECOND], hub.head = changed, SECOND
    succeeds(fetch(output))
    holds(output)
    for revision in (SECOND, "main"):
        refuses(fetch(output, "--revision", revision), f"holds commit {FIRST}", f"is commit {SECOND}")
    succeeds(fetch(output, "--revision", FIRST))
    succeeds(fetch(tmp_path / "new"))
    holds(tmp_path / "new", files=changed)
    refuses(fetch(tmp_path / "other", "--revision", "v9"), "it has no revision v9")


def test_a_commit_that_the_hub_no_longer_has(hub, tmp_path):
    output = tmp_path / "UR100P"
    succeeds(fetch(output, "--part", "SCOP"))
    hub.commits, hub.head = {SECOND: FILES}, SECOND
    refuses(fetch(output), "6 of 8 files", f"no revision {FIRST}", f"delete {output} and start anew")
    refuses(fetch(output, "--check"), "6 of 8 files")
    holds(output, [name for name in DATA if name.startswith("SCOP")])


def test_files_that_somebody_else_put_there(hub, tmp_path):
    """Those of hf download are taken over; others are not touched."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for folder, data in ((mine, FILES[LARGE]), (theirs, b"name,sequence\nmy only copy,MKV\n")):
        (folder / LARGE).parent.mkdir(parents=True)
        (folder / LARGE).write_bytes(data)
    succeeds(fetch(mine))
    holds(mine)
    assert len(hub.log) == 7
    refuses(fetch(theirs), LARGE, "nothing was changed")
    holds(theirs, [LARGE], {LARGE: b"name,sequence\nmy only copy,MKV\n"})
    assert len(hub.log) == 7 and not (theirs / "fetched.json").exists()


@pytest.mark.parametrize(
    "answer, text",
    [
        ((401, {"X-Error-Code": "RepoNotFound"}), "no such dataset, or it is not open to you"),
        ((403, {"X-Error-Code": "GatedRepo"}), "access is restricted. Accept its terms"),
        ((503, {}), "If this machine has no network"),
    ],
)
def test_a_hub_that_refuses(hub, tmp_path, answer, text):
    hub.refuse = answer
    refuses(fetch(tmp_path / "UR100P"), text, "Nothing was changed")
    assert not (tmp_path / "UR100P").exists()


def test_a_disk_that_is_too_small(hub, tmp_path):
    program = (
        "import shutil; from amplify_ds import fetch_ur100p\n"
        "shutil.disk_usage = lambda place: shutil._ntuple_diskusage(10**9, 10**9 - 2000, 2000)\n"
        "fetch_ur100p.command(fetch_ur100p.main)"
    )
    result = python("-c", program, "--output", tmp_path / "UR100P")
    refuses(result, f"needs {sum(len(FILES[name]) for name in DATA) / 1000:.0f}kB more", "2.00kB free", "--part")
    assert not hub.log and not (tmp_path / "UR100P").exists()


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda said: said["files"].update({"../outside.csv": {"bytes": 1}}), "String should match pattern"),
        (lambda said: said.update(commit="main"), "commit"),
        (lambda said: said.update(repository="a/b"), "repository"),
    ],
)
def test_a_damaged_description_is_refused(hub, tmp_path, change, text):
    output = tmp_path / "UR100P"
    succeeds(fetch(output, "--part", "SCOP"))
    said = json.loads((output / "fetched.json").read_text())
    change(said)
    (output / "fetched.json").write_text(json.dumps(said))
    for words in ([], ["--check"]):
        refuses(fetch(output, *words), "fetched.json is damaged, or of another dataset", text)
    (output / "fetched.json").write_bytes(gzip.compress(b"{}"))
    refuses(fetch(output, "--check"), "fetched.json: cannot be read as JSON", "Delete it")


def test_the_bar_is_one_for_the_whole(hub, tmp_path):
    """On a terminal it begins at the bytes that were there and ends at all of them; no file has one of its own."""
    output = tmp_path / "UR100P"
    succeeds(fetch(output, "--part", "SCOP"))
    controller, terminal = open_terminal(100)
    result = subprocess.run(
        [sys.executable, SCRIPT, "--output", str(output)], cwd=ROOT, stderr=terminal, stdout=subprocess.DEVNULL
    )
    shown = read_to_end(controller, terminal)
    assert result.returncode == 0
    there, total = (sum(len(FILES[name]) for name in names) for names in (DATA[2:4], DATA))
    bars = [line for line in re.split(r"[\r\n]+", shown.decode()) if line]
    assert {bar.split(":")[0] for bar in bars} == {"checking", "fetching"}
    shares = [int(bar.split("%")[0].split()[-1]) for bar in bars if bar.startswith("fetching")]
    assert shares[0] == round(100 * there / total) and shares[-1] == 100, bars
    assert f"{total / 1000:.0f}k/{total / 1000:.0f}k" in bars[-1]
