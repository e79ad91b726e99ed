"""UR100P from a hub on this machine that breaks connections, changes the dataset and sends wrong files."""

import gzip
import hashlib
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import dnaio
import pytest

from amplify_ds.prepare.sources import find_sources
from tests.support.commands import python, run
from tests.support.hub import git_sha1, serving
from tests.support.paths import EXAMPLE, ROOT
from tests.support.terminal import open_terminal, read_to_end

REPOSITORY, SCRIPT = "chandar-lab/UR100P", "data_prep/fetch_ur100p.py"
FIRST, SECOND = "1" * 40, "2" * 40


def table(records) -> bytes:
    return b"name,sequence\n" + b"".join(b"%s,%s\n" % (a.encode(), b.encode()) for a, b in records)


def dataset() -> dict[str, bytes]:
    """Return files of bundled proteins in the layout of UR100P; antibodies are two chains with | between them."""
    with dnaio.open(EXAMPLE / "train.fasta.gz") as reader:
        proteins = [(record.name.split()[0], record.sequence) for record in reader][:900]
    with dnaio.open(EXAMPLE / "validation.fasta.gz") as reader:
        held_out = [(record.name.split()[0], record.sequence) for record in reader]
    pairs = [(f"{a}_{b}", f"{x}|{y}") for (a, x), (b, y) in zip(proteins[600:700:2], proteins[601:700:2])]
    files = {
        **{f"UniProt/train-{i:05d}-of-00003.csv": proteins[200 * i : 200 * (i + 1)] + held_out[:5] for i in range(3)},
        "UniProt/test-00000-of-00001.csv": held_out[:40],
        "OAS/train-00000-of-00001.csv": pairs[:40],
        "OAS/test-00000-of-00001.csv": pairs[40:],
        "SCOP/train-00000-of-00001.csv": proteins[700:900],
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


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(f"datasets/{REPOSITORY}", tmp_path / "hf_home", monkeypatch) as handler:
        handler.commits[FIRST] = dict(FILES)
        yield handler


def fetch(output, *arguments) -> subprocess.CompletedProcess:
    return python(SCRIPT, "--output", output, *arguments)


def succeeds(result) -> str:
    assert result.returncode == 0, result.stderr
    assert "B/s" not in result.stderr, "a progress bar without a terminal"
    return result.stdout


def refuses(result, *texts) -> str:
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    for text in texts:
        assert text in result.stderr, result.stderr
    return result.stderr


def holds(output: Path, names=DATA, files=FILES) -> None:
    """Check that `output` holds exactly these data files and no partial ones."""
    content = {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*.csv")}
    assert content == {name: files[name] for name in names}
    assert not list(output.rglob("*.incomplete")) and not (output.parent / f".{output.name}.partial").exists()


def test_a_dry_run_says_how_much_and_makes_nothing(hub, tmp_path):
    text = succeeds(fetch(tmp_path / "UR100P", "--dry-run"))
    assert re.search(r"UniProt/train +3 ", text) and re.search(r"all +8 ", text) and FIRST in text
    assert not (tmp_path / "UR100P").exists() and not hub.log


def test_fetched_files_give_the_shards_of_the_same_files(hub, tmp_path):
    """Over a broken connection. The printed command is the one that runs; hidden folders are not read."""
    hub.spoil[LARGE] = ["half"]
    text = succeeds(fetch(tmp_path / "UR100P"))
    holds(tmp_path / "UR100P")
    assert not (tmp_path / "outside.csv").exists() and "CC-BY-4.0" in text
    assert sorted({name for name, _ in hub.log}) == DATA
    listing = json.loads((tmp_path / "UR100P/fetched.json").read_text())
    assert listing["repository"] == REPOSITORY and listing["commit"] == FIRST and sorted(listing["files"]) == DATA
    assert listing["files"][LARGE] == {"bytes": len(FILES[LARGE]), "sha256": hashlib.sha256(FILES[LARGE]).hexdigest()}
    assert listing["files"][LITTLE] == {"bytes": len(FILES[LITTLE]), "git_sha1": git_sha1(FILES[LITTLE])}

    [line] = re.findall(r"^next: python (data_prep/build_shards.py --input \S+:UniProt/train .*)$", text, re.M)
    arguments = shlex.split(line)
    assert [argument.rsplit(":")[-1] for argument in arguments[3:7]] == [
        "--exclude",
        "OAS/test",
        "SCOP/test",
        "UniProt/test",
    ]
    result = python(*arguments[:-1], tmp_path / "fetched")
    assert result.returncode == 0, result.stderr

    (tmp_path / "UR100P/.cache/huggingface/half.csv").write_bytes(b"name,sequence\nx,MKV\n")
    read = find_sources([str(tmp_path / "UR100P")])
    assert [str(source.path.relative_to(tmp_path / "UR100P")) for source in read] == DATA

    for name in DATA:
        (tmp_path / "by hand" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "by hand" / name).write_bytes(FILES[name])
    inputs = [tmp_path / "by hand" / name for name in DATA if name.startswith("UniProt/train")]
    exclude = [tmp_path / "by hand" / name for name in DATA if "/test" in name]
    result = python(arguments[0], "--input", *inputs, "--exclude", *exclude, "--output", tmp_path / "direct")
    assert result.returncode == 0, result.stderr
    shards = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("fetched", "direct")]
    assert shards[0] == shards[1] and len(shards[0]) >= 4
    assert json.loads(shards[0]["manifest.json"])["counts"]["rejected"], "the held-out proteins must have been left out"


def test_what_broke_off_for_good_is_fetched_again(hub, tmp_path):
    output = tmp_path / "UR100P"
    hub.spoil[LARGE] = ["nothing"] * 9
    refuses(fetch(output, "--workers", "8"), "1 of 8 missing files", f"{LARGE} is missing", "complete files are kept")
    holds(output, [name for name in DATA if name != LARGE])
    assert fetch(output, "--check").returncode == 1
    hub.spoil.clear()
    hub.log.clear()
    assert "1 fetched, 7 were there" in succeeds(fetch(output))
    holds(output)
    assert hub.log == [(LARGE, 0)]


@pytest.mark.parametrize("number, code", [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_killed_on_the_way_and_one_fetch_at_a_time(hub, tmp_path, number, code):
    output = tmp_path / "UR100P"
    hub.spoil[LARGE] = ["stall"]
    with subprocess.Popen(
        [sys.executable, SCRIPT, "--output", str(output)], cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
    ) as first:
        assert hub.stalled.wait(60)
        deadline = time.monotonic() + 60  # until the other files have been fetched
        while len(list(output.rglob("*.csv"))) < 7 and time.monotonic() < deadline:
            time.sleep(0.05)
        before = len(hub.log)
        refuses(fetch(output), "another build is writing this directory")
        assert len(hub.log) == before
        first.send_signal(number)
        assert first.wait(20) == code
        assert (b"interrupted" in first.stderr.read()) == (number == signal.SIGINT)
    assert list(output.rglob("*.incomplete"))
    hub.resume.set()
    hub.log.clear()
    succeeds(fetch(output))
    holds(output)
    assert hub.log == [(LARGE, 0)]


def test_files_damaged_after_they_came_are_found(hub, tmp_path):
    output = tmp_path / "UR100P"
    succeeds(fetch(output))
    flipped, cut, deleted = (LARGE, LITTLE), DATA[0], DATA[1]
    for name in flipped:
        (output / name).write_bytes(FILES[name].replace(b"L", b"I", 1))
    (output / cut).write_bytes(FILES[cut][:-1])
    (output / deleted).unlink()
    messages = [f"{LARGE} has sha256", f"{LITTLE} has git SHA-1", f"{cut} has", f"{deleted} is missing"]
    refuses(fetch(output, "--check"), "4 of 8 files", *messages)
    assert (output / cut).stat().st_size == len(FILES[cut]) - 1, "--check changes nothing"
    hub.log.clear()
    result = fetch(output)
    assert "4 fetched" in succeeds(result) and result.stderr.count("removed: ") == 3
    assert sorted(hub.log) == sorted((name, 0) for name in (*flipped, cut, deleted))
    holds(output)


def test_a_file_that_came_wrong_is_removed(hub, tmp_path):
    output = tmp_path / "UR100P"
    hub.spoil = {LARGE: ["lie"], LITTLE: ["lie"]}
    text = refuses(fetch(output), "2 of 8 missing files", f"{LARGE} has sha256", f"{LITTLE} has git SHA-1")
    assert text.count("removed: ") == 2
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


def test_without_a_network(hub, tmp_path, monkeypatch):
    output = tmp_path / "UR100P"
    succeeds(fetch(output, "--part", "SCOP"))
    hub.close()
    none = tmp_path / "none"
    refuses(
        fetch(none, "--part", "OAS/test"),
        "cannot be listed at http://127.0.0.1",
        "Nothing was changed",
        f"\n  python {SCRIPT} --output {none} --part OAS/test\n",
        f"\n  hf download {REPOSITORY} --repo-type dataset --local-dir {none} --include 'OAS/test*'\n",
        f"\n  python {SCRIPT} --output {none} --check\n",
    )
    assert not none.exists()
    refuses(fetch(none, "--check"), "there is no", "fetched.json", "Copy it with the files")
    copy = output.rename(tmp_path / "copied")
    text = succeeds(fetch(copy, "--check"))
    assert "all 2 files" in text and f"data_prep/build_shards.py --input {copy}:SCOP/train" in text
    assert "0 fetched, 2 were there" in succeeds(fetch(copy, "--part", "SCOP"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refuses(fetch(copy), "6 of 6 missing files", "files are kept", "and 1 more", "If this machine has no network")
    holds(copy, [name for name in DATA if name.startswith("SCOP")])


def test_a_dataset_that_changes_is_not_mixed(hub, tmp_path):
    output = tmp_path / "UR100P"
    succeeds(fetch(output, "--part", "SCOP"))
    changed = {name: data.replace(b"L", b"I") for name, data in FILES.items()}
    hub.commits[SECOND] = changed
    for revision in (SECOND, "main"):
        refuses(fetch(output, "--revision", revision), f"holds commit {FIRST}", f"is commit {SECOND}")
    succeeds(fetch(output, "--revision", FIRST, "--part", "OAS"))
    succeeds(fetch(tmp_path / "new"))
    holds(tmp_path / "new", files=changed)
    refuses(fetch(tmp_path / "other", "--revision", "v9"), "no revision v9")
    del hub.commits[FIRST]
    text = refuses(fetch(output), "4 of 4 missing files", f"no revision {FIRST}", f"delete {output} and start again")
    assert "no network" not in text
    holds(output, [name for name in DATA if not name.startswith("UniProt")])


def test_files_that_somebody_else_put_there(hub, tmp_path):
    """Files of hf download are used; others are left alone."""
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
        ((401, {"X-Error-Code": "RepoNotFound"}), "no dataset of that name, or it is private"),
        ((403, {"X-Error-Code": "GatedRepo"}), "access is restricted"),
        ((503, {}), "If this machine has no network"),
    ],
)
def test_a_hub_that_refuses(hub, tmp_path, answer, text):
    hub.refuse = answer
    refuses(fetch(tmp_path / "UR100P"), text, "Nothing was changed")
    assert not (tmp_path / "UR100P").exists()


def test_a_hub_that_describes_something_else(hub, tmp_path):
    hub.commits[FIRST] = {"data.parquet": b""}
    refuses(fetch(tmp_path / "UR100P"), "does not describe chandar-lab/UR100P as expected", "did the dataset keep")
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


def test_a_disk_that_is_full_on_the_way(hub, tmp_path):
    """A test cannot fill the disk, but a limit on the size of files fails in the same place."""
    script = 'ulimit -f 12 && exec "$@"'  # KiB
    result = run("bash", "-c", script, "bash", sys.executable, SCRIPT, "--output", tmp_path / "UR100P")
    refuses(result, "missing files could not be fetched (", "File too large. The file system or ulimit -f")
    succeeds(fetch(tmp_path / "UR100P"))
    holds(tmp_path / "UR100P")


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda listing: listing["files"].update({"../outside.csv": {"bytes": 1}}), "String should match pattern"),
        (lambda listing: listing.update(commit="main"), "commit"),
        (lambda listing: listing.update(repository="a/b"), "repository"),
    ],
)
def test_a_damaged_description_is_refused(hub, tmp_path, change, text):
    output = tmp_path / "UR100P"
    succeeds(fetch(output, "--part", "SCOP"))
    listing = json.loads((output / "fetched.json").read_text())
    change(listing)
    (output / "fetched.json").write_text(json.dumps(listing))
    for arguments in ([], ["--check"]):
        refuses(fetch(output, *arguments), "fetched.json is damaged, or of another dataset", text)
    (output / "fetched.json").write_bytes(gzip.compress(b"{}"))
    refuses(fetch(output, "--check"), "fetched.json: cannot be read as JSON", "Delete it")


def test_progress_on_a_terminal(hub, tmp_path):
    controller, terminal = open_terminal(100)
    command = [sys.executable, SCRIPT, "--output", str(tmp_path / "UR100P")]
    result = subprocess.run(command, cwd=ROOT, stderr=terminal, stdout=subprocess.DEVNULL)
    shown = read_to_end(controller, terminal).decode()
    assert result.returncode == 0 and "Fetching 8 files: 100%" in shown and "checking: 100%" in shown
