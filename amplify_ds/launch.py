"""Train under DeepSpeed's launcher, on one machine or many: `bash launch/train.sh … [--] …`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from amplify_ds import preflight
from amplify_ds.cluster import cleanup, slurm
from amplify_ds.cluster.deepspeed_command import PORT_WITHOUT_SSH, Launch, MemoryFiles, Rendezvous
from amplify_ds.cluster.hostfile import read_hostfile
from amplify_ds.cluster.launcher_process import LauncherProcess
from amplify_ds.cluster.machines import SECONDS_FOR_HOSTS, query_machines, remaining
from amplify_ds.cluster.supervisor import KILLED, LOST, SAVED, SECONDS_OF_ONE_REQUEST, STALLED, Signals, Supervisor
from amplify_ds.cluster.variables import CARRIED
from amplify_ds.errors import AmplifyError, command, print_error
from amplify_ds.network import LOOPBACK, free_port

MAX_CPU_RANKS = 8  # default on this machine without GPUs
NOT_PASSED_ON = ("-i", "--include", "-e", "--exclude", "--num_nodes", "--num_gpus", "--num_accelerators")
SECONDS_BEFORE_RESTART = 10

DESCRIPTION = f"""\
Train under DeepSpeed's launcher; stop and resume without losing a step.

  bash launch/train.sh --recipe tiny --data.train SHARDS --output RUN        all GPUs of this machine, or its cores
  bash launch/train.sh --ranks 2 -- --recipe tiny … --output RUN             two of them
  bash launch/train.sh --hostfile hostfile -- --recipe 120M … --output RUN   all machines of the file, by ssh and pdsh
  srun --ntasks-per-node=1 bash launch/train.sh --slurm -- --recipe 120M … --output RUN       all nodes of a SLURM job
  bash launch/train.sh --preflight --hostfile hostfile -- --recipe 120M … --output RUN        check them, do not train

The options below, and others of the deepspeed launcher, come before --, those of amplify_ds.train after it (python -m
amplify_ds.train --help). Without --, all options are those of amplify_ds.train.

SIGTERM, SIGUSR1, SIGHUP or Ctrl-C asks all ranks on all machines to save a checkpoint at the next step and to stop. A
second Ctrl-C kills them at once; so does a second SIGTERM after {SECONDS_OF_ONE_REQUEST:g} s, except under SLURM.
Exit codes:
  0     complete: RUN/result.json
  {SAVED}    stopped on request and saved: RUN/stopped.json; the same command continues
  {STALLED}    a rank stopped responding and was named: RUN/stalled.json; the same command continues from the newest
        checkpoint
  {LOST}    a rank or a machine was lost after training had begun; the same command continues from the newest checkpoint
  {KILLED}   killed by a second signal; the same command continues from the newest checkpoint
  else  failed; the same command continues from the newest checkpoint
"""
EPILOG = "Environment variables passed to the ranks on all machines, with those in .deepspeed_env:\n" + "\n".join(
    f"  {name:<28}{meaning}" for name, meaning in CARRIED.items()
)


class Parser(argparse.ArgumentParser):
    """A parser that raises AmplifyError instead of printing its usage."""

    def error(self, message):
        raise AmplifyError(f"{message}; see bash launch/train.sh --help")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Return the options of this command, the other options of DeepSpeed's launcher, and those of amplify_ds.train.

    Raises AmplifyError for options that are invalid or do not fit together.
    """
    parser = Parser(
        prog="bash launch/train.sh",
        usage="%(prog)s [options --] options of amplify_ds.train",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog=EPILOG,
    )
    add = parser.add_argument
    add(
        "--ranks",
        type=_count,
        metavar="N",
        help=f"ranks on this machine (default: one per GPU; without GPUs one per core, at most {MAX_CPU_RANKS}); with "
        "--slurm, on each node (default: one per GPU of the job, at least 1)",
    )
    add("--slurm", action="store_true", help="train on the nodes of this SLURM job; srun must start one task per node")
    add("--preflight", action="store_true", help="check the machines for this run, like launch/preflight.sh, and exit")
    add("--hostfile", "-H", type=Path, metavar="FILE", help="lines 'NAME slots=N', see launch/hostfile.example")
    add(
        "--restarts",
        type=int,
        default=0,
        metavar="N",
        help="restart from the newest checkpoint, at most N times, if the run fails after it has begun to train",
    )
    add(
        "--drop-lost-nodes",
        action="store_true",
        help=f"restart without machines that do not answer, instead of waiting {SECONDS_FOR_HOSTS} s for them",
    )
    add("--master_addr", metavar="NAME", help="address at which the ranks meet (default: the hostfile's first machine)")
    add(
        "--master_port",
        type=int,
        metavar="PORT",
        help=f"port at which the ranks meet (default: a free one; with --no_ssh {PORT_WITHOUT_SSH})",
    )
    add("--no_ssh", action="store_true", help="start this node only; the others are started separately, as by srun")
    add("--node_rank", type=int, metavar="N", help="with --no_ssh: index of this machine in the hostfile, from 0")
    split = argv.index("--") if "--" in argv else 0
    before, training = list(argv[:split]), list(argv[split + 1 if split or argv[:1] == ["--"] else 0 :])
    if {"-h", "--help"} & {*before, *training}:
        parser.print_help()
        sys.exit(0)
    options, rest = parser.parse_known_args(before)
    for argument in rest:
        if argument.partition("=")[0] in NOT_PASSED_ON:
            raise AmplifyError(
                f"{argument} is not supported: choose machines by the hostfile's lines, ranks by its slots or --ranks, "
                "GPUs by CUDA_VISIBLE_DEVICES"
            )
    if options.no_ssh and (options.hostfile is None or options.node_rank is None):
        raise AmplifyError("--no_ssh needs --hostfile and --node_rank")
    if options.no_ssh and options.restarts:
        raise AmplifyError("--restarts is not supported together with --no_ssh: nodes must be restarted separately")
    if options.slurm and (options.hostfile or options.no_ssh or options.restarts):
        raise AmplifyError(
            "--slurm is not supported together with --hostfile, --no_ssh or --restarts: SLURM chooses the nodes and "
            "restarts them; see launch/slurm.sbatch"
        )
    if options.preflight and not (options.slurm or options.hostfile):
        raise AmplifyError("--preflight needs --hostfile or --slurm")
    if options.hostfile and options.ranks:
        raise AmplifyError("--ranks is for this machine alone; with --hostfile set the slots there")
    return options, rest, training


def main(signals: Signals) -> int:
    options, rest, training = parse(sys.argv[1:])
    run = _value(training, "--output")
    if run is None:
        raise AmplifyError("--output RUN is missing; see bash launch/train.sh --help")
    if "GPUS_HERE" not in os.environ:
        count_gpus()
    job = slurm.current_job(options.ranks) if options.slurm else None
    hosts = job.hosts if job else read_hostfile(options.hostfile) if options.hostfile else []
    if options.preflight:
        return preflight.check(hosts, options.master_addr, options.master_port, job, training)
    if job and job.node is None:
        raise AmplifyError(
            "--slurm must be started by srun on each node: srun --ntasks-per-node=1 bash launch/train.sh --slurm -- …"
        )
    if options.node_rank is not None and not 0 <= options.node_rank < len(hosts):
        raise AmplifyError(
            f"--node_rank {options.node_rank}: {options.hostfile} names {len(hosts)} machines, counted from 0"
        )
    if "--dry-run" in training:  # one process prints the plan for all ranks
        ranks = sum(host.slots for host in hosts) or _ranks_here(options) or _gpus()
        dry_run = [sys.executable, "-m", "amplify_ds.train", *training]
        os.execve(dry_run[0], dry_run, {**os.environ, "RANK": "0", "WORLD_SIZE": str(ranks)})
    supervisor, first = Supervisor(Path(run), signals), hosts[0].name if hosts else None
    if job:
        options.node_rank, options.master_port = job.node, options.master_port or job.port
        os.environ.update(AMPLIFY_LAUNCH=job.name, AMPLIFY_ATTEMPT=str(job.restarts))
        if job.predecessor and job.node == 0:
            supervisor.end_launch(job.predecessor)  # its ranks may still run on a node that SLURM cannot reach
    for attempt in range(options.restarts + 1):
        if attempt:
            hosts = remaining(hosts, options.drop_lost_nodes, training, signals)
        if signals.received:
            print_error("stopped before training had begun; the same command starts it")
            return SAVED
        if hosts and hosts[0].name != first:
            options.master_addr = None  # the address of a machine that is lost
        code = _launch(
            supervisor, options, Launch(training, rest, hosts, _ranks_here(options), options.node_rank), attempt
        )
        if code in (0, SAVED) or signals.received or attempt == options.restarts:
            break
        if not supervisor.began:
            print_error("not restarted: the run failed before it had begun to train, and would fail again")
            break
        print_error(f"exit code {code}; restart {attempt + 1} of {options.restarts} in {SECONDS_BEFORE_RESTART} s")
        signals.pause(SECONDS_BEFORE_RESTART)
    if code == KILLED and signals.kill:
        print_error(f"killed by the second signal; the same command continues from the newest checkpoint in {run}")
    elif code not in (0, SAVED, STALLED) and (supervisor.began or code != 1):  # otherwise a rank has printed the error
        print_error(
            f"error: training ended before its last step (launcher's code {code}); the same command continues it"
        )
    return code


def _launch(supervisor: Supervisor, options: argparse.Namespace, launch: Launch, attempt: int) -> int:
    """Start the ranks, wait until they have ended, and return the outcome (Supervisor.watch)."""
    machines = list(query_machines(launch.hosts).values()) if launch.by_ssh else []
    name = os.environ.get("AMPLIFY_LAUNCH") or uuid.uuid4().hex[:12]
    variables = {"AMPLIFY_LAUNCH": name, "AMPLIFY_ATTEMPT": os.environ.get("AMPLIFY_ATTEMPT") or str(attempt)}
    cores = min((machine.cores for machine in machines), default=len(os.sched_getaffinity(0)))
    ranks = launch.hosts[0].slots if launch.hosts else launch.ranks or _gpus()  # per machine
    variables["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // max(1, ranks)))
    if len(launch.hosts) < 2 and not launch.by_ssh:
        rendezvous = Rendezvous(options.master_addr or LOOPBACK, options.master_port or free_port())
    else:
        port = machines[0].free_port if machines else PORT_WITHOUT_SSH
        rendezvous = Rendezvous(options.master_addr or launch.hosts[0].name, options.master_port or port)
        if any(machine.gpus for machine in machines) and not any(host.is_here for host in launch.hosts):
            os.environ.pop("DS_ACCELERATOR", None)  # "cpu" was set for this machine, which has no ranks
    with MemoryFiles() as files:
        deepspeed, environment = launch.command(rendezvous, files), launch.environment(files, variables)
        code = supervisor.watch(lambda: LauncherProcess(deepspeed, environment), name, launch.hosts)
    if launch.by_ssh and code not in (0, SAVED):
        cleanup.end_on(launch.hosts, name)
    return code


def _ranks_here(options: argparse.Namespace) -> int | None:
    """Return the number of ranks on this machine, None if it comes from the hosts or is one for each GPU."""
    if options.slurm:
        return None
    return options.ranks or (None if options.hostfile or _gpus() else min(MAX_CPU_RANKS, len(os.sched_getaffinity(0))))


def _gpus() -> int:
    """Return the GPUs of this machine, as counted by launch/environment.sh or `count_gpus`."""
    return int(os.environ.get("GPUS_HERE") or 0)


def count_gpus() -> None:
    """Set GPUS_HERE and DS_ACCELERATOR as launch/train.sh does, for a start without it."""
    # Not in this process, whose memory torch would take.
    count = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    result = subprocess.run(count, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise AmplifyError("torch could not count the GPUs of this machine, see above")
    os.environ["GPUS_HERE"] = result.stdout.strip()
    if os.environ["GPUS_HERE"] == "0":
        os.environ["DS_ACCELERATOR"] = "cpu"


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"needs a number of ranks, found '{text}'")
    return int(text)


def _value(argv: Sequence[str], option: str) -> str | None:
    """Return the value of an option in another command's arguments, None without it. The last one wins, as there."""
    value = None
    for argument, following in zip(argv, [*argv[1:], None]):
        if argument == option:
            value = following
        elif argument.startswith(f"{option}="):
            value = argument.partition("=")[2]
    return value


if __name__ == "__main__":
    signals = Signals()
    command(lambda: main(signals))
