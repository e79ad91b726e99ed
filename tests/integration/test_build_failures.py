"""What a build of shards does when something breaks: one message, an exit code, no hang, and the next run goes on."""

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from amplify_ds import decontaminate, inspect_shards
from amplify_ds.data.shard_writer import partial_directory, working
from amplify_ds.data.shards import Shards
from amplify_ds.data.verify import verify
from amplify_ds.errors import AmplifyError
from amplify_ds.network import free_port
from tests.support.building import (
    build,
    build_with_workers,
    content,
    many_chunks,
    proteins,
    run_file,
    script,
    write_fasta,
)
from tests.support.commands import environment, interpreter, start
from tests.support.forking import Process
from tests.support.needs import needs_mmseqs
from tests.support.paths import DATA_PREP, ROOT

SMALL = ["--max-length", "64", "--row-tokens", "256"]
IMPATIENT = """\
import os, signal, time
from amplify_ds.prepare import build_ranks
build_ranks.POLL_SECONDS, build_ranks.SILENT_POLLS = 0.1, 20
"""
PATIENT = "build_ranks.SILENT_POLLS = 60"  # where ranks need seconds to start


def killed(where: str) -> str:
    """Code that lets a process kill itself in the place of a function of an imported module."""
    return f"{where} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"


def slow(seconds: float, begun: Path | str = os.devnull) -> str:
    """Code that lets a shard take longer. begun: a file to make before."""
    wait = f"(open({str(begun)!r}, 'w'), time.sleep({seconds}), write(*a))[2]"
    return f"write = pipeline.write_shard; pipeline.write_shard = lambda *a: {wait}"


def said(rank: Process | subprocess.Popen) -> str:
    assert rank.stderr is not None
    return rank.stderr.read()


class Build:
    """A build of many chunks and shards by several ranks, none of which a launcher watches over.

    Python is started anew where what torch writes on standard error matters: how much is settled at its import.
    """

    def __init__(self, place: Path, monkeypatch) -> None:
        self.place, self._chunks = place, many_chunks(monkeypatch)
        self.started: list[Process | subprocess.Popen] = []
        self.port = free_port()
        self.input = write_fasta(place / "in.fasta", proteins(400))
        build(self.input, place / "undisturbed", *SMALL)

    def start(self, rank: int, code: str = "", world: int = 2, anew: bool = False) -> Process | subprocess.Popen:
        main = self.place / f"main-{rank}.py"
        main.write_text(
            f"{self._chunks}\n{IMPATIENT}\n{code}\n"
            "from amplify_ds import build_shards\n"
            "if __name__ == '__main__':\n    build_shards.command(build_shards.main)\n"
        )
        words = [main, "--input", self.input, "--output", self.place / "out", *SMALL]
        place = environment(2) | {"RANK": str(rank), "WORLD_SIZE": str(world)}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
        if anew:
            program = [sys.executable, *map(str, words)]
            self.started.append(subprocess.Popen(program, cwd=ROOT, env=place, text=True, stderr=subprocess.PIPE))
        else:
            self.started.append(start(*words, env=place))
        return self.started[-1]

    def run(self, *codes: str, anew: bool = False) -> list[tuple[int, str]]:
        """Exit codes and messages of all ranks."""
        self.port = free_port()
        ranks = [self.start(rank, code, len(codes), anew) for rank, code in enumerate(codes)]
        return [(rank.wait(60), said(rank)) for rank in ranks]

    def wait_for_shards(self) -> None:
        """Until the records have been read and shards are being written."""
        while not list(self.place.glob(".out.partial/work-*/scatter-*.json")):
            assert all(rank.poll() is None for rank in self.started)
            time.sleep(0.02)

    def is_as_undisturbed(self) -> bool:
        same = content(self.place / "out") == content(self.place / "undisturbed")
        return same and not partial_directory(self.place / "out").exists()


@pytest.fixture
def several(tmp_path, monkeypatch) -> Iterator[Build]:
    several = Build(tmp_path, monkeypatch)
    yield several
    for rank in several.started:
        rank.kill()


def test_the_launcher_builds_the_same_bytes(tmp_path):
    """As a user types it, without --no_local_rank: the launcher adds --local_rank=N."""
    path, held_out = write_fasta(tmp_path / "in.fasta", proteins(300)), write_fasta(tmp_path / "v.fasta", proteins(20))
    build(path, tmp_path / "one", "--exclude", held_out, *SMALL)
    words = [*launcher(), DATA_PREP / "build_shards.py", "--input", path, "--exclude", held_out]
    words += ["--output", tmp_path / "out", "--workers", 1, *SMALL]
    result = launch(words)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("records read") == 1
    assert (tmp_path / "out/manifest.json").read_bytes() == (tmp_path / "one/manifest.json").read_bytes()
    assert content(tmp_path / "out") == content(tmp_path / "one")
    assert not (tmp_path / ".out.partial").exists()


def faulty_build(tmp_path, monkeypatch, when, fault):
    """A script that builds `tmp_path`/in.fasta under a launcher, with a fault; "one" is what it should build."""
    path, chunks = write_fasta(tmp_path / "in.fasta", proteins(400)), many_chunks(monkeypatch)
    build(path, tmp_path / "one", *SMALL)
    main = tmp_path / "main.py"
    main.write_text(
        f"import os, signal, time\n{chunks}\nif {when}:\n    {fault}\n"
        "from amplify_ds import build_shards\nbuild_shards.command(build_shards.main)\n"
    )
    return [main, "--input", path, "--output", tmp_path / "out", *SMALL]


def test_under_the_launcher_a_rank_that_has_done_its_part_is_not_taken_for_lost(tmp_path, monkeypatch):
    """It would be after 4 seconds (orphans.py), in which rank 0 is at its own part."""
    words = faulty_build(tmp_path, monkeypatch, "os.environ['RANK'] == '0'", slow(1.5))
    result = launch([*launcher(), *words])
    assert result.returncode == 0, result.stderr
    assert content(tmp_path / "out") == content(tmp_path / "one")


def test_under_torchrun_a_build_of_which_a_rank_was_killed_starts_again(tmp_path, monkeypatch):
    """The store of torchrun outlives the ranks."""
    first_start = "(os.environ['RANK'], os.environ['TORCHELASTIC_RESTART_COUNT']) == ('1', '0')"
    build_words = faulty_build(tmp_path, monkeypatch, first_start, killed("pipeline.write_shard"))
    words = [Path(sys.executable).with_name("torchrun"), "--nproc-per-node", 2, "--max-restarts", 1]
    words += ["--master-port", free_port()]
    result = launch([*words, *build_words])
    assert result.returncode == 0 and "exitcode: -9" in result.stderr, result.stderr
    assert content(tmp_path / "out") == content(tmp_path / "one")


def test_under_the_launcher_a_bad_line_ends_all(tmp_path):
    (tmp_path / "bad.fasta").write_bytes(b">x\nM\xe9\n")
    good = write_fasta(tmp_path / "in.fasta", proteins(50))
    words = [*launcher(), "--no_local_rank", DATA_PREP / "build_shards.py"]
    result = launch([*words, "--input", good, tmp_path / "bad.fasta", "--output", tmp_path / "out"])
    assert result.returncode == 1 and "bad.fasta, line 2" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def launcher() -> list:
    port = 29600 + os.getpid() % 1000
    words = ["-q", "--num_accelerators", 2, "--master_addr", "127.0.0.1", "--master_port", port]
    return [Path(sys.executable).with_name("deepspeed"), *words]


def launch(words) -> subprocess.CompletedProcess:
    return subprocess.run([str(w) for w in words], env=environment(2), text=True, capture_output=True, timeout=100)


@pytest.mark.parametrize("victim, where", [(0, "pipeline.write_run"), (1, "pipeline.write_shard")])
def test_all_ranks_end_when_one_is_killed_and_the_next_build_goes_on(several, victim, where):
    codes = [PATIENT, PATIENT]
    codes[victim] += f"; {killed(where)}; die = {where}; {where} = lambda *a: (time.sleep(1), die())"
    found = several.run(*codes, anew=victim == 0)
    assert found[victim][0] == -9
    code, message = found[1 - victim]
    assert code == 1 and message.startswith(f"error: rank {victim} of 2 on {platform.node()} has ")
    assert "was killed" in message and message.count("\n") == 1
    assert several.run("", "") == [(0, ""), (0, "")] and several.is_as_undisturbed()


def test_the_message_of_a_rank_that_fails_ends_the_others(several):
    fail = "def full(*_): raise pipeline.AmplifyError('no room')\npipeline.write_shard = full"
    found = several.run("", fail, "")
    assert [code for code, _ in found[:2]] == [1, 1]
    assert "rank 1 of 3 failed on " in found[0][1] and found[0][1].endswith(": no room\n")
    assert found[2] in [(0, ""), (1, found[0][1])]  # rank 2 had done its part before, or heard of it
    several.input.write_bytes(several.input.read_bytes() + b">x\nM\xe9\n")
    found = several.run("", "", "")
    assert all(code == 1 and "holds bytes that are not ASCII" in message for code, message in found)
    assert not any("Traceback" in message for _, message in found)


def test_a_rank_that_never_begins_is_named(several):
    [(_, _), (code, message)] = several.run("sys.exit()", "build_ranks.SILENT_POLLS = 5")
    assert code == 1 and f"the ranks could not meet at 127.0.0.1:{several.port}: Connection refused" in message
    [(code, message), _] = several.run("build_ranks.SILENT_POLLS = 5", "sys.exit()")
    assert code == 1 and "rank 1 of 2 has not responded" in message


def test_a_rank_that_sees_other_inputs_is_refused(several):
    found = several.run("", "rows.CHUNK_BYTES = 5000")
    assert [code for code, _ in found] == [1, 1] and "rank 1 of 2 would build other shards" in found[1][1]


def test_a_rank_of_a_second_build_is_refused_and_the_first_goes_on(several):
    first, port = [several.start(rank, slow(0.7)) for rank in (0, 1)], several.port
    several.wait_for_shards()
    for code, message in several.run("", ""):
        assert code == 1 and "another build is writing this directory" in message
    several.port = port
    third = several.start(1)  # would be a rank of the first
    assert third.wait(30) == 1 and "already has a rank 1" in said(third)
    assert [rank.wait(30) for rank in first] == [0, 0], [said(rank) for rank in first]
    assert several.is_as_undisturbed()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_stopped_alone_is_named(several, victim):
    """As a machine that is lost, it keeps its connections and does not answer."""
    begun = [several.place / str(rank) for rank in (0, 1)]
    ranks = [several.start(rank, f"{PATIENT}; {slow(0.4, begun[rank])}", anew=victim == 0) for rank in (0, 1)]
    while not all(map(Path.exists, begun)):
        time.sleep(0.05)
    ranks[victim].send_signal(signal.SIGSTOP)
    assert ranks[1 - victim].wait(60) == 1
    message = said(ranks[1 - victim])
    assert f"error: rank {victim} of 2 on {platform.node()} has not responded for 6 s" in message
    assert message.count("\n") == 1


def test_a_suspended_build_goes_on(several):
    ranks = [several.start(rank, slow(0.4)) for rank in (0, 1)]
    several.wait_for_shards()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for rank in ranks:
            rank.send_signal(number)
        time.sleep(2.5)  # longer than the silence that is taken for death
    assert [rank.wait(30) for rank in ranks] == [0, 0], [said(rank) for rank in ranks]
    assert several.is_as_undisturbed()


def test_what_is_left_of_an_earlier_build_cannot_write_into_the_next(tmp_path):
    with pytest.raises(KeyboardInterrupt), working(tmp_path / "out") as before:
        (before.work / "run.tokens").write_text("1")
        raise KeyboardInterrupt
    with working(tmp_path / "out") as now:
        assert (now.work / "run.tokens").read_text() == "1"
        with pytest.raises(FileNotFoundError):
            (before.work / "result.json").write_text("{}")


@pytest.mark.parametrize("values", [("1", "1"), ("x", "2"), ("0", ""), ("-1", "2")])
def test_an_environment_that_makes_no_sense_is_named(tmp_path, monkeypatch, values):
    monkeypatch.setenv("RANK", values[0])
    monkeypatch.setenv("WORLD_SIZE", values[1])
    with pytest.raises(AmplifyError, match="the environment has RANK .* Unset both"):
        build(write_fasta(tmp_path / "in.fasta", proteins(3)), tmp_path / "out")


@pytest.mark.parametrize("missing, value", [("MASTER_ADDR", ""), ("MASTER_PORT", ""), ("MASTER_PORT", "x")])
def test_ranks_without_a_place_to_meet_are_told_how_to_start(tmp_path, monkeypatch, missing, value):
    whole = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, given in (whole | {missing: value}).items():
        monkeypatch.setenv(name, given)
    with pytest.raises(AmplifyError, match="RANK 1 and WORLD_SIZE 2, but no MASTER_ADDR and MASTER_PORT"):
        build(write_fasta(tmp_path / "in.fasta", proteins(3)), tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["in.fasta"]


def test_standard_input_is_for_one_process(tmp_path, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AmplifyError, match="standard input reaches one process, and this build has 2"):
        build("-", tmp_path / "out")


def test_killed_before_any_operation_on_the_disk_it_continues_to_the_same_bytes(tmp_path):
    """Python tells of every file that it opens, renames or removes, and of directories: die at one after another."""
    write_fasta(tmp_path / "in.fasta", proteins(60))
    program = ROOT / "tests/support/kill_each.py"
    result = interpreter(program, tmp_path)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-1]) > 80


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_workers_end_with_the_build_and_the_next_goes_on(tmp_path, monkeypatch, number, code):
    chunks = many_chunks(monkeypatch)
    path = write_fasta(tmp_path / "in.fasta", proteins(400))
    build(path, tmp_path / "undisturbed", *SMALL)
    words = ["--input", path, "--output", tmp_path / "out", "--workers", 2, *SMALL]
    slow = "import time; write = pipeline.write_run; pipeline.write_run = lambda *a: (time.sleep(0.3), write(*a))"
    build_with_workers(tmp_path, f"{chunks}\n{slow}", "--help")
    process = start(tmp_path / "main.py", *words)
    while not list(tmp_path.glob(".out.partial/work-*/scatter-*.json")):
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    for victim in (*children, process) if number == signal.SIGTERM else [process]:  # SLURM ends all of a job's at once
        victim.send_signal(number)
    assert process.wait(20) == code
    if number == signal.SIGTERM:
        assert process.stderr.read() == "interrupted\n"
    assert not psutil.wait_procs(children, 5)[1]
    assert build_with_workers(tmp_path, chunks, *words).returncode == 0
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


def test_an_input_that_changes_is_named_and_the_next_run_carries_on(tmp_path):
    path = write_fasta(tmp_path / "in.fasta", proteins(50))
    words = ["--input", path, "--output", tmp_path / "out"]
    append = f"(write(*a), open({str(path)!r}, 'a').write('>new\\nMKV\\n'))"
    change = (
        f"from amplify_ds.prepare import pipeline; write = pipeline.write_run; pipeline.write_run = lambda *a: {append}"
    )
    result = script("build_shards.py", *words, code=change)
    assert result.returncode == 1 and "in.fasta was changed while it was read" in result.stderr
    assert script("build_shards.py", *words).returncode == 0
    assert Shards(tmp_path / "out").manifest["counts"]["records"] == 51 and verify(tmp_path / "out") == 3


@pytest.mark.parametrize("output", ["/sys/out", "{place}/in.fasta/out", "{place}/in.fasta"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, output):
    path = write_fasta(tmp_path / "in.fasta", proteins(3))
    result = script("build_shards.py", "--input", path, "--output", output.format(place=tmp_path))
    assert result.returncode == 1 and "Traceback" not in result.stderr and result.stderr.count("\n") == 1
    assert output.rsplit("/", 1)[1] in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["in.fasta"]


def test_a_link_to_a_place_elsewhere_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "there")
    build(write_fasta(tmp_path / "in.fasta", proteins(3)), tmp_path / "link")
    assert verify(tmp_path / "there") == 3 and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("output, other", [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a", "c/../a")])
def test_outputs_within_each_other_are_refused(tmp_path, output, other):
    path = write_fasta(tmp_path / "in.fasta", proteins(30))
    words = ["--validation-fraction", 0.3, "--validation-output", tmp_path / other]
    with pytest.raises(AmplifyError, match="must be two separate directories"):
        build(path, tmp_path / output, *words)
    assert [file.name for file in tmp_path.iterdir()] == ["in.fasta"]


def test_builds_with_crossed_outputs_are_refused(tmp_path):
    path = write_fasta(tmp_path / "in.fasta", proteins(30))
    with working(tmp_path / "a"), working(tmp_path / "b"):
        for output, other in (("b", "a"), ("c", "a"), ("a", "c")):
            words = ["--validation-fraction", 0.3, "--validation-output", tmp_path / other]
            with pytest.raises(AmplifyError, match="another build is writing"):
                build(path, tmp_path / output, *words)
        assert sorted(file.name for file in tmp_path.iterdir()) == [".a.partial", ".b.partial", "in.fasta"]


def test_outputs_on_two_file_systems(tmp_path):
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no file system of its own")
    path = write_fasta(tmp_path / "in.fasta", proteins(100))
    words = ["--validation-fraction", 0.3, "--validation-output"]
    build(path, tmp_path / "one" / "train", *words, tmp_path / "one" / "valid")
    other = memory / f"amplify_ds-test-{os.getpid()}"
    try:
        build(path, tmp_path / "train", *words, other)
        for here, there in ((tmp_path / "train", "train"), (other, "valid")):
            assert content(here) == content(tmp_path / "one" / there)
    finally:
        for file in (*other.glob("*"),):
            file.unlink()
        other.rmdir()
    assert not partial_directory(other).exists()


def test_a_published_shard_that_another_build_has_overwritten_is_made_again(tmp_path):
    path = write_fasta(tmp_path / "in.fasta", proteins(100))
    build(path, tmp_path / "undisturbed")
    code = f"import os, signal; from amplify_ds import build_shards; {killed('build_shards.write_manifest')}"
    assert script("build_shards.py", "--input", path, "--output", tmp_path / "out", code=code).returncode == -9
    [tokens] = (tmp_path / ".out.partial/shards").glob("*.tokens.npy")
    tokens.write_bytes(tokens.read_bytes()[:-1] + b"\7")
    with pytest.raises(AmplifyError, match="not what an earlier run .* Run the same command again"):
        build(path, tmp_path / "out")
    build(path, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    "content, word", [('{"sha256": ', "is damaged"), ("[]", "is damaged"), ('{"sha256": "0"}', "belongs to")]
)
def test_a_proof_that_is_damaged_or_of_another_file_is_refused(tmp_path, content, word):
    path, held_out = write_fasta(tmp_path / "in.fasta", proteins(30)), write_fasta(tmp_path / "v.fasta", proteins(3))
    held_out.with_name("v.fasta.proof.json").write_text(content)
    with pytest.raises(AmplifyError, match=f"v.fasta.proof.json {word}.*decontaminate.py"):
        build(path, tmp_path / "out", "--exclude", held_out)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()


@needs_mmseqs
@pytest.mark.parametrize("where", ["before the proof is written", "when the file is in its place"])
def test_decontamination_killed_and_run_again_gives_the_same_file(tmp_path, families, where):
    words = ["--train", tmp_path / "train.fasta", "--validation", tmp_path / "valid.fasta", "--output"]
    decontaminate.main([*map(str, words), str(tmp_path / "undisturbed.fasta")])
    complete = where == "when the file is in its place"
    code = f"import os, signal; from amplify_ds import decontaminate; {killed('decontaminate.write_json')}"
    if complete:  # then the directory is synced
        code = "import os; from amplify_ds import decontaminate; sync = decontaminate.sync; decontaminate.sync = "
        code += "lambda path: os.kill(os.getpid(), 9) if path.is_dir() else sync(path)"
    assert script("decontaminate.py", *words, tmp_path / "similar.fasta", code=code).returncode == -9
    again = script("decontaminate.py", *words, tmp_path / "similar.fasta")
    assert (again.returncode, "similar.fasta exists" in again.stderr) == (int(complete), complete)
    for suffix in ("", ".proof.json"):
        files = [tmp_path / f"{name}.fasta{suffix}" for name in ("similar", "undisturbed")]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert not list(tmp_path.glob(".*"))


@needs_mmseqs
def test_when_nothing_is_similar_the_proof_still_reaches_the_manifest(tmp_path):
    paths = {name: write_fasta(tmp_path / name, proteins(20, seed)) for seed, name in enumerate(("train", "valid"))}
    similar = tmp_path / "similar.fasta"
    words = ["--train", paths["train"], "--validation", paths["valid"], "--output", similar]
    decontaminate.main([str(word) for word in words])
    build(paths["train"], tmp_path / "out", "--exclude", similar)
    manifest = Shards(tmp_path / "out").manifest
    assert manifest["exclude"][0]["proof"]["counts"]["similar"] == 0 and manifest["counts"]["sequences"] == 20


@needs_mmseqs
def test_sigterm_ends_the_search_too(tmp_path, families):
    program = tmp_path / "bin" / "mmseqs"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n[ $1 = version ] && echo 1 && exit\ntouch $0.begun\nexec sleep 60\n")
    program.chmod(0o755)
    words = ["--train", tmp_path / "train.fasta", "--validation", tmp_path / "valid.fasta", "--output", tmp_path / "s"]
    place = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    words = [sys.executable, DATA_PREP / "decontaminate.py", *words]
    process = subprocess.Popen([str(w) for w in words], env=place, stderr=subprocess.PIPE)
    while not Path(f"{program}.begun").exists():
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.terminate()
    assert process.wait(20) == 130 and not psutil.wait_procs(children, 5)[1]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--fasta", "{place}/in.fasta"], "in.fasta exists"),
        (["--fasta", "{place}/nowhere/x.fasta"], "there is no directory"),
        (["--plot", "{place}/nowhere/x.png"], "there is no directory"),
        (["--plot", "{place}/x.jpeg2"], "ends in .png .pdf .svg"),
        (["--show", "100000"], "there is no row 100000"),
        (["--show", "-1"], "there is no row -1"),
        (["--verify", "--workers", "0"], "--workers is 0"),
    ],
)
def test_what_cannot_be_inspected_is_named_and_nothing_is_written(tmp_path, words, message):
    path = write_fasta(tmp_path / "in.fasta", proteins(10))
    build(path, tmp_path / "out")
    before = path.read_bytes()
    with pytest.raises(AmplifyError, match=message):
        inspect_shards.main([str(tmp_path / "out"), *(word.format(place=tmp_path) for word in words)])
    assert path.read_bytes() == before and sorted(file.name for file in tmp_path.iterdir()) == ["in.fasta", "out"]


def test_a_fasta_file_is_complete_or_absent(tmp_path):
    build(write_fasta(tmp_path / "in.fasta", proteins(100)), tmp_path / "out", "--row-tokens", 1024)
    tokens = tmp_path / "out" / "shard-00000.tokens.npy"
    array = np.load(tokens)
    array[-1] = 255
    np.save(tokens, array)
    result = run_file("inspect_shards.py", tmp_path / "out", "--fasta", tmp_path / "back.fasta")
    assert result.returncode == 1 and "not what the format says" in result.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.fasta", "out"]
