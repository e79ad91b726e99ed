"""The parts of a launch that need no other machine: hostfile, variables, quoting for a remote shell, logs."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from amplify_ds import launch
from amplify_ds.cluster import variables
from amplify_ds.cluster.deepspeed_command import Launch, MemoryFiles, Rendezvous, for_pdsh
from amplify_ds.cluster.hostfile import Host, hostfile_text, read_hostfile
from amplify_ds.cluster.launcher_process import LauncherProcess
from amplify_ds.cluster.machines import query_machines
from amplify_ds.errors import AmplifyError
from tests.support.commands import python
from tests.support.paths import ROOT


def test_hostfile_is_read_as_deepspeed_reads_it(tmp_path):
    from deepspeed.launcher.runner import fetch_hostfile

    file = tmp_path / "hostfile"
    file.write_text("# two\nnode-1 slots=8\n\n10.0.0.2   slots=8  # the second\n")
    hosts = read_hostfile(file)
    assert hosts == [Host("node-1", 8), Host("10.0.0.2", 8)]
    with MemoryFiles() as files:
        written = files.add("hostfile", hostfile_text(hosts))
        assert list(fetch_hostfile(written).items()) == [("node-1", 8), ("10.0.0.2", 8)]
    assert not os.path.exists(written)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "names no machine"),
        ("# node-1 slots=8\n", "names no machine"),
        ("node-1\n", "line 1: expected 'NAME slots=N'"),
        ("node-1 slots=0\n", "line 1: expected"),
        ("node-1 slots=8\nnode-2 slots=8 max_slots=9\n", "line 2: expected"),
        ("-oProxyCommand=x slots=8\n", "line 1: expected"),
        ("node-[1-4] slots=8\n", "line 1: expected"),
        ("node-1 slots=8\nnode-1 slots=8\n", "line 2: node-1 appears twice"),
        ("node-1 slots=8\nnode-2 slots=4\n", "different numbers of slots (node-1 8, node-2 4)"),
    ],
)
def test_an_invalid_hostfile_is_refused(tmp_path, text, message):
    file = tmp_path / "hostfile"
    file.write_text(text)
    with pytest.raises(AmplifyError) as caught:
        read_hostfile(file)
    assert message in str(caught.value) and str(file) in str(caught.value)


def test_unreachable_machines_are_all_named():
    with pytest.raises(AmplifyError) as caught:
        query_machines([Host("localhost", 1), Host("no-such-host.invalid", 1), Host("127.0.0.9", 1)])
    message = str(caught.value)
    assert "no-such-host.invalid" in message and "127.0.0.9" in message and "localhost" not in message
    assert "'ssh 127.0.0.9 true' must work without a password" in message
    here = query_machines([Host("localhost", 1)])[Host("localhost", 1)]
    assert here.cores == len(os.sched_getaffinity(0)) and 1024 < here.free_port < 65536


TRAINING = ["--recipe", "tiny", "--output", "RUN"]


@pytest.mark.parametrize(
    "argv, ranks, rest, training",
    [
        (TRAINING, None, [], TRAINING),
        (["--", *TRAINING], None, [], TRAINING),
        (["--ranks", "2", "--", *TRAINING, "--", "x"], 2, [], [*TRAINING, "--", "x"]),
        (["--launcher", "openmpi", "--ranks=2", "--", *TRAINING], 2, ["--launcher", "openmpi"], TRAINING),
    ],
)
def test_options_are_separated(argv, ranks, rest, training):
    options, other, of_training = launch.parse(argv)
    assert (options.ranks, other, of_training) == (ranks, rest, training)


def test_variables_come_from_the_environment_and_the_users_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".deepspeed_env").write_text("NCCL_DEBUG=INFO\nMINE=1\n\n")
    before = (tmp_path / ".deepspeed_env").read_bytes()
    environment = {"NCCL_DEBUG": "WARN", "HOME": "x", "PATH": "/a b:/c", "SECRET": "s", "AMPLIFY_LAUNCHER_PID": "1"}
    (tmp_path / "written").write_text(variables.file_text(environment, {"OMP_NUM_THREADS": "4"}))
    assert variables.read(tmp_path / "written") == {
        "NCCL_DEBUG": "WARN",
        "MINE": "1",
        "PATH": "/a b:/c",
        "OMP_NUM_THREADS": "4",
    }
    assert (tmp_path / ".deepspeed_env").read_bytes() == before
    with pytest.raises(AmplifyError, match="NCCL_DEBUG"):
        variables.file_text({"NCCL_DEBUG": "$(date)"}, {})
    (tmp_path / ".deepspeed_env").write_text("export A\n")
    with pytest.raises(AmplifyError, match="line 1: expected NAME=VALUE"):
        variables.file_text({}, {})


ARGUMENTS = [
    "a b",
    "$HOME",
    "a $HOME `id`",
    "it's",
    'say "x" now',
    'x"y',
    "back\\slash it",
    "(a)",
    "*",
    "a;b",
    "a&&b",
    "%h %n",
    "ä",
]


def test_arguments_survive_deepspeeds_runner_and_the_remote_shell(monkeypatch, tmp_path):
    """pdsh is a fake that prints its arguments; system/test_two_nodes.py uses the real one."""
    fake = tmp_path / "pdsh"
    fake.write_text(f"#!{sys.executable}\nimport sys\nprint(repr(sys.argv[1:]))\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    over_ssh = Launch(["--output", *ARGUMENTS], [], [Host("node-1", 1), Host("node-2", 1)])
    with MemoryFiles() as files:
        environment = over_ssh.environment(files, {"AMPLIFY_LAUNCH": "x"})
        command = over_ssh.command(Rendezvous("node-1", 1234), files)
        result = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    of_pdsh = eval(result.stdout.splitlines()[-1])
    assert of_pdsh[of_pdsh.index("-w") + 1] == "node-1,node-2" and "-N" in of_pdsh
    line = " ".join(of_pdsh[of_pdsh.index("-N") + 1 :])  # as ssh joins them
    line = line.partition("amplify_ds.train ")[2].replace("%%", "%")  # as pdsh writes a percent sign
    shown = subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], text=True, capture_output=True).stdout
    assert shown.splitlines() == ["--output", *ARGUMENTS]
    with pytest.raises(AmplifyError, match="line breaks"):
        for_pdsh("a\nb")


def test_a_hostfile_with_one_machine_uses_ssh_unless_it_is_this_one():
    here, there = (Launch([], [], [Host(name, 2)]) for name in ("localhost", "node-7"))
    assert not here.by_ssh and there.by_ssh
    assert "--num_accelerators" in here.command(Rendezvous("127.0.0.1", 1), MemoryFiles())


def test_a_dry_run_of_many_machines_contacts_none_of_them(shards, tmp_path):
    (tmp_path / "hostfile").write_text("no-such-host.invalid slots=8\nneither.invalid slots=8\n")
    arguments = [
        "--hostfile",
        tmp_path / "hostfile",
        "--",
        "--recipe",
        "tiny",
        "--data.train",
        shards["train"],
        "--dry-run",
    ]
    arguments += ["--training.global_batch_tokens", 16384, "--output", tmp_path / "run"]
    result = python("-m", "amplify_ds.launch", *arguments)
    assert result.returncode == 0 and "16, ZeRO stage 1" in result.stdout, result.stderr
    assert not (tmp_path / "run").exists()


FAMILY = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
time.sleep(1000)
"""


def family(process: int) -> list[psutil.Process]:
    while len(children := psutil.Process(process).children(recursive=True)) < 3:  # launcher, its child, the guard
        time.sleep(0.05)
    return children


def test_all_processes_of_a_launch_end_and_no_others():
    other = subprocess.Popen([sys.executable, "-c", FAMILY])
    attempt = LauncherProcess([sys.executable, "-c", FAMILY], os.environ)
    try:
        while len(attempt.running()) < 2:
            attempt.poll()
        attempt.kill()
        attempt.close(0)
        assert attempt.running() == [] and attempt.code() == 137 and other.poll() is None
    finally:
        for process in [*psutil.Process(other.pid).children(recursive=True), other]:
            process.kill()
        other.wait()


def test_all_processes_end_when_the_supervisor_is_killed():
    code = "import os, sys, time\nfrom amplify_ds.cluster.launcher_process import LauncherProcess\n"
    code += f"a = LauncherProcess([sys.executable, '-c', {FAMILY!r}], os.environ)\nwhile True: a.poll(); time.sleep(1)"
    supervisor = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    processes = family(supervisor.pid)
    time.sleep(1)  # for the guard to have seen them
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait()
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


LOGGING = """
import os, sys
from pathlib import Path
from amplify_ds import errors
from amplify_ds.training import logs
rank = int(sys.argv[1])
errors.prefix = f"[rank {rank} on here] " if rank else ""
logs.open_log(Path("."), rank)
print("plain")
print("\\rbar", file=sys.stderr)
os.system("echo from below")
if sys.argv[2] == "error":
    errors.command(lambda: (_ for _ in ()).throw(errors.AmplifyError("no room")))
raise ValueError("unexpected\\nmore")
"""


@pytest.mark.parametrize("rank, kind", [(0, "error"), (3, "error"), (0, "bug"), (3, "bug")])
def test_a_rank_has_a_log_and_the_console_sees_rank_0_and_errors(tmp_path, rank, kind):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LOGGING.replace("\\\\", "\\"), str(rank), kind]
    result = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)
    console, log = result.stdout + result.stderr, (tmp_path / f"logs/rank-{rank:05d}.log").read_text()
    assert result.returncode == 1 and log.startswith("== ") and "plain" in log
    assert ("plain" in console) == (rank == 0) and ("from below" in log) == (rank == 3)
    if kind == "error":
        assert f"{'[rank 3 on here] ' if rank else ''}error: no room\n" in console and "error: no room\n" in log
    else:
        assert "Traceback" in log and "ValueError: unexpected" in log and "more" in log
        assert ("Traceback" in console) == (rank == 0)
        assert (
            rank == 0 or "[rank 3 on here] ValueError: unexpected; the traceback is in logs/rank-00003.log" in console
        )
    assert ("bar" in log) == (rank == 3), "the bar of rank 0 is for the console only"


def test_a_machine_that_does_not_exist_is_one_message_and_nothing_is_written(tmp_path):
    (tmp_path / "hostfile").write_text("no-such-host.invalid slots=1\n")
    arguments = ["--hostfile", tmp_path / "hostfile", "--", "--recipe", "tiny", "--output", tmp_path / "run"]
    result = python("-m", "amplify_ds.launch", *arguments)
    assert result.returncode == 1 and "no-such-host.invalid" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


KILLED = """
import os, sys
from amplify_ds import launch
from amplify_ds.cluster.supervisor import Signals
launch.Supervisor.watch = lambda self, start, *rest: start() and os.kill(os.getpid(), 9)
sys.argv = ["launch", *sys.argv[1:]]
launch.main(Signals())
"""


def test_a_launch_that_is_killed_leaves_nothing_in_the_temporary_directory(tmp_path):
    (tmp_path / "hostfile").write_text("node-7 slots=1\n")
    (temporary := tmp_path / "temporary").mkdir()
    arguments = ["--hostfile", tmp_path / "hostfile", "--no_ssh", "--node_rank", 0, "--", "--output", tmp_path / "run"]
    environment = {**os.environ, "TMPDIR": str(temporary), "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"}
    result = python("-c", KILLED, *arguments, env=environment)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("count, accelerator", [(3, None), (0, "cpu")])
def test_gpus_are_counted_if_no_script_has_done_so(tmp_path, monkeypatch, count, accelerator):
    (tmp_path / "torch.py").write_text(f"class cuda:\n    device_count = staticmethod(lambda: {count})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in ("GPUS_HERE", "DS_ACCELERATOR"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    launch.count_gpus()
    assert (os.environ["GPUS_HERE"], os.environ.get("DS_ACCELERATOR")) == (str(count), accelerator)
    (tmp_path / "torch.py").write_text("raise ImportError")
    with pytest.raises(AmplifyError, match="could not count the GPUs"):
        launch.count_gpus()
