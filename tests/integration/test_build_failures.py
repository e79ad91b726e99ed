"""A build of shards that fails prints one message, exits with an error and does not hang; the next run continues."""

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
PATIENT = "build_ranks.SILENT_POLLS = 60"  # for ranks that need seconds to start


def killed(where: str) -> str:
    """Return code that replaces a function of an imported module by one that kills the process."""
    return f"{where} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"


def slow(seconds: float, started: Path | str = os.devnull) -> str:
    """Return code that makes writing a shard take longer. started: a file to create before it."""
    wait = f"(open({str(started)!r}, 'w'), time.sleep({seconds}), write(*a))[2]"
    return f"write = pipeline.write_shard; pipeline.write_shard = lambda *a: {wait}"


def stderr_of(rank: Process | subprocess.Popen) -> str:
    assert rank.stderr is not None
    return rank.stderr.read()


class Build:
    """A build of many chunks and shards by several ranks without a launcher.

    anew: start a new interpreter. Tests of what torch writes to standard error need it, because torch sets its log
    level when it is imported.
    """

    def __init__(self, directory: Path, monkeypatch) -> None:
        self.directory, self._chunks = directory, many_chunks(monkeypatch)
        self.started: list[Process | subprocess.Popen] = []
        self.port = free_port()
        self.input = write_fasta(directory / "in.fasta", proteins(400))
        build(self.input, directory / "undisturbed", *SMALL)

    def start(self, rank: int, code: str = "", world: int = 2, anew: bool = False) -> Process | subprocess.Popen:
        main = self.directory / f"main-{rank}.py"
        main.write_text(
            f"{self._chunks}\n{IMPATIENT}\n{code}\n"
            "from amplify_ds import build_shards\n"
            "if __name__ == '__main__':\n    build_shards.command(build_shards.main)\n"
        )
        arguments = [main, "--input", self.input, "--output", self.directory / "out", *SMALL]
        variables = environment(2) | {"RANK": str(rank), "WORLD_SIZE": str(world)}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
        if anew:
            program = [sys.executable, *map(str, arguments)]
            self.started.append(subprocess.Popen(program, cwd=ROOT, env=variables, text=True, stderr=subprocess.PIPE))
        else:
            self.started.append(start(*arguments, env=variables))
        return self.started[-1]

    def run(self, *codes: str, anew: bool = False) -> list[tuple[int, str]]:
        """Run a rank per code; return the exit codes and messages."""
        self.port = free_port()
        ranks = [self.start(rank, code, len(codes), anew) for rank, code in enumerate(codes)]
        return [(rank.wait(60), stderr_of(rank)) for rank in ranks]

    def wait_for_shards(self) -> None:
        """Wait until a chunk has been scattered."""
        while not list(self.directory.glob(".out.partial/work-*/scatter-*.json")):
            assert all(rank.poll() is None for rank in self.started)
            time.sleep(0.02)

    def is_as_undisturbed(self) -> bool:
        same = content(self.directory / "out") == content(self.directory / "undisturbed")
        return same and not partial_directory(self.directory / "out").exists()


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
    command = [*launcher(), DATA_PREP / "build_shards.py", "--input", path, "--exclude", held_out]
    command += ["--output", tmp_path / "out", "--workers", 1, *SMALL]
    result = launch(command)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("records read") == 1
    assert (tmp_path / "out/manifest.json").read_bytes() == (tmp_path / "one/manifest.json").read_bytes()
    assert content(tmp_path / "out") == content(tmp_path / "one")
    assert not (tmp_path / ".out.partial").exists()


def faulty_build(tmp_path, monkeypatch, when, fault):
    """Return the command of a build of `tmp_path`/in.fasta with a fault; build the expected shards in "one"."""
    path, chunks = write_fasta(tmp_path / "in.fasta", proteins(400)), many_chunks(monkeypatch)
    build(path, tmp_path / "one", *SMALL)
    main = tmp_path / "main.py"
    main.write_text(
        f"import os, signal, time\n{chunks}\nif {when}:\n    {fault}\n"
        "from amplify_ds import build_shards\nbuild_shards.command(build_shards.main)\n"
    )
    return [main, "--input", path, "--output", tmp_path / "out", *SMALL]


def test_under_the_launcher_a_rank_that_has_done_its_part_is_not_taken_for_lost(tmp_path, monkeypatch):
    """A rank that ended would be taken for lost after 4 seconds (launcher_watch.py), while rank 0 still works."""
    arguments = faulty_build(tmp_path, monkeypatch, "os.environ['RANK'] == '0'", slow(1.5))
    result = launch([*launcher(), *arguments])
    assert result.returncode == 0, result.stderr
    assert content(tmp_path / "out") == content(tmp_path / "one")


def test_under_torchrun_a_build_of_which_a_rank_was_killed_starts_again(tmp_path, monkeypatch):
    """The store of torchrun outlives the ranks."""
    first_start = "(os.environ['RANK'], os.environ['TORCHELASTIC_RESTART_COUNT']) == ('1', '0')"
    faulty = faulty_build(tmp_path, monkeypatch, first_start, killed("pipeline.write_shard"))
    torchrun = [Path(sys.executable).with_name("torchrun"), "--nproc-per-node", 2, "--max-restarts", 1]
    torchrun += ["--master-port", free_port()]
    result = launch([*torchrun, *faulty])
    assert result.returncode == 0 and "exitcode: -9" in result.stderr, result.stderr
    assert content(tmp_path / "out") == content(tmp_path / "one")


def test_under_the_launcher_a_bad_line_ends_all(tmp_path):
    (tmp_path / "bad.fasta").write_bytes(b">x\nM\xe9\n")
    good = write_fasta(tmp_path / "in.fasta", proteins(50))
    command = [*launcher(), "--no_local_rank", DATA_PREP / "build_shards.py"]
    result = launch([*command, "--input", good, tmp_path / "bad.fasta", "--output", tmp_path / "out"])
    assert result.returncode == 1 and "bad.fasta, line 2" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def launcher() -> list:
    port = 29600 + os.getpid() % 1000
    options = ["-q", "--num_accelerators", 2, "--master_addr", "127.0.0.1", "--master_port", port]
    return [Path(sys.executable).with_name("deepspeed"), *options]


def launch(command) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(word) for word in command], env=environment(2), text=True, capture_output=True, timeout=100
    )


@pytest.mark.parametrize("victim, where", [(0, "pipeline.write_run"), (1, "pipeline.write_shard")])
def test_all_ranks_end_when_one_is_killed_and_the_next_build_goes_on(several, victim, where):
    codes = [PATIENT, PATIENT]
    codes[victim] += f"; {killed(where)}; die = {where}; {where} = lambda *a: (time.sleep(1), die())"
    results = several.run(*codes, anew=victim == 0)
    assert results[victim][0] == -9
    code, message = results[1 - victim]
    assert code == 1 and message.startswith(f"error: rank {victim} of 2 on {platform.node()} has ")
    assert "was killed" in message and message.count("\n") == 1
    assert several.run("", "") == [(0, ""), (0, "")] and several.is_as_undisturbed()


def test_the_message_of_a_rank_that_fails_ends_the_others(several):
    fail = "def full(*_): raise pipeline.AmplifyError('no room')\npipeline.write_shard = full"
    results = several.run("", fail, "")
    assert [code for code, _ in results[:2]] == [1, 1]
    assert "rank 1 of 3 failed on " in results[0][1] and results[0][1].endswith(": no room\n")
    assert results[2] in [(0, ""), (1, results[0][1])]  # rank 2 had finished before, or received the failure
    several.input.write_bytes(several.input.read_bytes() + b">x\nM\xe9\n")
    results = several.run("", "", "")
    assert all(code == 1 and "holds bytes that are not ASCII" in message for code, message in results)
    assert not any("Traceback" in message for _, message in results)


def test_a_rank_that_never_begins_is_named(several):
    [(_, _), (code, message)] = several.run("sys.exit()", "build_ranks.SILENT_POLLS = 5")
    assert code == 1 and f"the ranks could not meet at 127.0.0.1:{several.port}: Connection refused" in message
    [(code, message), _] = several.run("build_ranks.SILENT_POLLS = 5", "sys.exit()")
    assert code == 1 and "rank 1 of 2 has not responded" in message


def test_a_rank_that_sees_other_inputs_is_refused(several):
    results = several.run("", "rows.CHUNK_BYTES = 5000")
    assert [code for code, _ in results] == [1, 1] and "rank 1 of 2 would build other shards" in results[1][1]


def test_a_rank_of_a_second_build_is_refused_and_the_first_goes_on(several):
    first, port = [several.start(rank, slow(0.7)) for rank in (0, 1)], several.port
    several.wait_for_shards()
    for code, message in several.run("", ""):
        assert code == 1 and "another build is writing this directory" in message
    several.port = port
    third = several.start(1)  # would be a rank of the first
    assert third.wait(30) == 1 and "already has a rank 1" in stderr_of(third)
    assert [rank.wait(30) for rank in first] == [0, 0], [stderr_of(rank) for rank in first]
    assert several.is_as_undisturbed()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_stopped_alone_is_named(several, victim):
    """Like a machine that is lost, it keeps its connections and does not answer."""
    started = [several.directory / str(rank) for rank in (0, 1)]
    ranks = [several.start(rank, f"{PATIENT}; {slow(0.4, started[rank])}", anew=victim == 0) for rank in (0, 1)]
    while not all(map(Path.exists, started)):
        time.sleep(0.05)
    ranks[victim].send_signal(signal.SIGSTOP)
    assert ranks[1 - victim].wait(60) == 1
    message = stderr_of(ranks[1 - victim])
    assert f"error: rank {victim} of 2 on {platform.node()} has not responded for 6 s" in message
    assert message.count("\n") == 1


def test_a_suspended_build_goes_on(several):
    ranks = [several.start(rank, slow(0.4)) for rank in (0, 1)]
    several.wait_for_shards()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for rank in ranks:
            rank.send_signal(number)
        time.sleep(2.5)  # longer than a rank may be silent
    assert [rank.wait(30) for rank in ranks] == [0, 0], [stderr_of(rank) for rank in ranks]
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
def test_an_invalid_environment_is_named(tmp_path, monkeypatch, values):
    monkeypatch.setenv("RANK", values[0])
    monkeypatch.setenv("WORLD_SIZE", values[1])
    with pytest.raises(AmplifyError, match="the environment has RANK .* Unset both"):
        build(write_fasta(tmp_path / "in.fasta", proteins(3)), tmp_path / "out")


@pytest.mark.parametrize("missing, value", [("MASTER_ADDR", ""), ("MASTER_PORT", ""), ("MASTER_PORT", "x")])
def test_ranks_without_a_master_address_are_refused(tmp_path, monkeypatch, missing, value):
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
    """Audit events report every operation on files and directories: kill the build at each, one after the other."""
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
    arguments = ["--input", path, "--output", tmp_path / "out", "--workers", 2, *SMALL]
    slow = "import time; write = pipeline.write_run; pipeline.write_run = lambda *a: (time.sleep(0.3), write(*a))"
    build_with_workers(tmp_path, f"{chunks}\n{slow}", "--help")
    process = start(tmp_path / "main.py", *arguments)
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
    assert build_with_workers(tmp_path, chunks, *arguments).returncode == 0
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


def test_an_input_that_changes_is_named_and_the_next_run_carries_on(tmp_path):
    path = write_fasta(tmp_path / "in.fasta", proteins(50))
    arguments = ["--input", path, "--output", tmp_path / "out"]
    append = f"(write(*a), open({str(path)!r}, 'a').write('>new\\nMKV\\n'))"
    change = (
        f"from amplify_ds.prepare import pipeline; write = pipeline.write_run; pipeline.write_run = lambda *a: {append}"
    )
    result = script("build_shards.py", *arguments, code=change)
    assert result.returncode == 1 and "in.fasta was changed while it was read" in result.stderr
    assert script("build_shards.py", *arguments).returncode == 0
    assert Shards(tmp_path / "out").manifest["counts"]["records"] == 51 and verify(tmp_path / "out") == 3


@pytest.mark.parametrize("output", ["/sys/out", "{place}/in.fasta/out", "{place}/in.fasta"])
def test_an_output_that_cannot_be_written_is_named(tmp_path, output):
    path = write_fasta(tmp_path / "in.fasta", proteins(3))
    result = script("build_shards.py", "--input", path, "--output", output.format(place=tmp_path))
    assert result.returncode == 1 and "Traceback" not in result.stderr and result.stderr.count("\n") == 1
    assert output.rsplit("/", 1)[1] in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["in.fasta"]


def test_a_link_to_another_directory_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "there")
    build(write_fasta(tmp_path / "in.fasta", proteins(3)), tmp_path / "link")
    assert verify(tmp_path / "there") == 3 and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("output, other", [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a", "c/../a")])
def test_outputs_within_each_other_are_refused(tmp_path, output, other):
    path = write_fasta(tmp_path / "in.fasta", proteins(30))
    arguments = ["--validation-fraction", 0.3, "--validation-output", tmp_path / other]
    with pytest.raises(AmplifyError, match="must be two separate directories"):
        build(path, tmp_path / output, *arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["in.fasta"]


def test_builds_with_crossed_outputs_are_refused(tmp_path):
    path = write_fasta(tmp_path / "in.fasta", proteins(30))
    with working(tmp_path / "a"), working(tmp_path / "b"):
        for output, other in (("b", "a"), ("c", "a"), ("a", "c")):
            arguments = ["--validation-fraction", 0.3, "--validation-output", tmp_path / other]
            with pytest.raises(AmplifyError, match="another build is writing"):
                build(path, tmp_path / output, *arguments)
        assert sorted(file.name for file in tmp_path.iterdir()) == [".a.partial", ".b.partial", "in.fasta"]


def test_outputs_on_two_file_systems(tmp_path):
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no file system of its own")
    path = write_fasta(tmp_path / "in.fasta", proteins(100))
    arguments = ["--validation-fraction", 0.3, "--validation-output"]
    build(path, tmp_path / "one" / "train", *arguments, tmp_path / "one" / "valid")
    other = memory / f"amplify_ds-test-{os.getpid()}"
    try:
        build(path, tmp_path / "train", *arguments, other)
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
    with pytest.raises(AmplifyError, match="was changed since this build wrote it. Run the same command again"):
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
@pytest.mark.parametrize("where", ["before the proof is written", "when the file is complete"])
def test_decontamination_killed_and_run_again_gives_the_same_file(tmp_path, families, where):
    arguments = ["--train", tmp_path / "train.fasta", "--validation", tmp_path / "valid.fasta", "--output"]
    decontaminate.main([*map(str, arguments), str(tmp_path / "undisturbed.fasta")])
    complete = where == "when the file is complete"
    code = f"import os, signal; from amplify_ds import decontaminate; {killed('decontaminate.write_json')}"
    if complete:  # then the directory is synced
        code = "import os; from amplify_ds import decontaminate; sync = decontaminate.sync; decontaminate.sync = "
        code += "lambda path: os.kill(os.getpid(), 9) if path.is_dir() else sync(path)"
    assert script("decontaminate.py", *arguments, tmp_path / "similar.fasta", code=code).returncode == -9
    again = script("decontaminate.py", *arguments, tmp_path / "similar.fasta")
    assert (again.returncode, "similar.fasta exists" in again.stderr) == (int(complete), complete)
    for suffix in ("", ".proof.json"):
        files = [tmp_path / f"{name}.fasta{suffix}" for name in ("similar", "undisturbed")]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert not list(tmp_path.glob(".*"))


@needs_mmseqs
def test_when_nothing_is_similar_the_proof_still_reaches_the_manifest(tmp_path):
    paths = {name: write_fasta(tmp_path / name, proteins(20, seed)) for seed, name in enumerate(("train", "valid"))}
    similar = tmp_path / "similar.fasta"
    arguments = ["--train", paths["train"], "--validation", paths["valid"], "--output", similar]
    decontaminate.main([str(word) for word in arguments])
    build(paths["train"], tmp_path / "out", "--exclude", similar)
    manifest = Shards(tmp_path / "out").manifest
    assert manifest["exclude"][0]["proof"]["counts"]["similar"] == 0 and manifest["counts"]["sequences"] == 20


@needs_mmseqs
def test_sigterm_ends_the_search_too(tmp_path, families):
    program = tmp_path / "bin" / "mmseqs"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n[ $1 = version ] && echo 1 && exit\ntouch $0.begun\nexec sleep 60\n")
    program.chmod(0o755)
    arguments = [
        "--train",
        tmp_path / "train.fasta",
        "--validation",
        tmp_path / "valid.fasta",
        "--output",
        tmp_path / "s",
    ]
    environ = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    arguments = [sys.executable, DATA_PREP / "decontaminate.py", *arguments]
    process = subprocess.Popen([str(w) for w in arguments], env=environ, stderr=subprocess.PIPE)
    while not Path(f"{program}.begun").exists():
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.terminate()
    assert process.wait(20) == 130 and not psutil.wait_procs(children, 5)[1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--fasta", "{directory}/in.fasta"], "in.fasta exists"),
        (["--fasta", "{directory}/nowhere/x.fasta"], "there is no directory"),
        (["--plot", "{directory}/nowhere/x.png"], "there is no directory"),
        (["--plot", "{directory}/x.jpeg2"], "ends in .png .pdf .svg"),
        (["--show", "100000"], "there is no row 100000"),
        (["--show", "-1"], "there is no row -1"),
        (["--verify", "--workers", "0"], "--workers is 0"),
    ],
)
def test_what_cannot_be_inspected_is_named_and_nothing_is_written(tmp_path, arguments, message):
    path = write_fasta(tmp_path / "in.fasta", proteins(10))
    build(path, tmp_path / "out")
    before = path.read_bytes()
    with pytest.raises(AmplifyError, match=message):
        inspect_shards.main([str(tmp_path / "out"), *(word.format(directory=tmp_path) for word in arguments)])
    assert path.read_bytes() == before and sorted(file.name for file in tmp_path.iterdir()) == ["in.fasta", "out"]


def test_a_fasta_file_is_complete_or_absent(tmp_path):
    build(write_fasta(tmp_path / "in.fasta", proteins(100)), tmp_path / "out", "--row-tokens", 1024)
    tokens = tmp_path / "out" / "shard-00000.tokens.npy"
    array = np.load(tokens)
    array[-1] = 255
    np.save(tokens, array)
    result = run_file("inspect_shards.py", tmp_path / "out", "--fasta", tmp_path / "back.fasta")
    assert result.returncode == 1 and "is invalid: the files were altered" in result.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.fasta", "out"]
