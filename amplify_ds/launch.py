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
from amplify_ds.cluster.deepspeed_command import PORT_WITHOUT_SSH, Launch, Meeting, MemoryFiles
from amplify_ds.cluster.hostfile import read_hostfile
from amplify_ds.cluster.launcher_process import LauncherProcess
from amplify_ds.cluster.machines import SECONDS_FOR_HOSTS, remaining, that_take_part
from amplify_ds.cluster.supervisor import KILLED, LOST, SAVED, SECONDS_OF_ONE_REQUEST, STALLED, Signals, Supervisor
from amplify_ds.cluster.variables import CARRIED
from amplify_ds.errors import AmplifyError, command
from amplify_ds.errors import print_error as say
from amplify_ds.network import LOOPBACK, free_port

MOST_RANKS = 8  # of this machine, without GPUs, when nobody says how many
NOT_PASSED_ON = ("-i", "--include", "-e", "--exclude", "--num_nodes", "--num_gpus", "--num_accelerators")
SECONDS_BEFORE_RESTART = 10

DESCRIPTION = f"""\
Train under DeepSpeed's launcher; stop and restart without losing a step.

  bash launch/train.sh --recipe tiny --data.train SHARDS --output RUN        every GPU of this machine, or its cores
  bash launch/train.sh --ranks 2 -- --recipe tiny … --output RUN             two of them
  bash launch/train.sh --hostfile hostfile -- --recipe 120M … --output RUN   all machines of the file, by ssh and pdsh
  srun --ntasks-per-node=1 bash launch/train.sh --slurm -- --recipe 120M … --output RUN       all nodes of a SLURM job
  bash launch/train.sh --preflight --hostfile hostfile -- --recipe 120M … --output RUN        check them, do not train

The options below, and others of the deepspeed launcher, come before --, those of amplify_ds.train after it (python -m
amplify_ds.train --help); without -- all are of amplify_ds.train.

SIGTERM, SIGUSR1, SIGHUP or Ctrl-C asks all ranks on all machines to save a checkpoint at the next step and to stop. A
second Ctrl-C kills them at once; so does a second SIGTERM after {SECONDS_OF_ONE_REQUEST:g} s, except under SLURM, which
sends its own. Exit codes:
  0     complete: RUN/result.json
  {SAVED}    stopped on request and saved: RUN/stopped.json; the same command continues
  {STALLED}    a rank stopped responding and was named: RUN/stalled.json; the same command continues from the last
        checkpoint
  {LOST}    a rank or a machine was lost after training had begun; the same command continues from the last checkpoint
  {KILLED}   killed by a second signal; the same command continues from the last checkpoint
  else  failed; the same command continues from the last checkpoint
"""


EPILOG = "Environment variables that reach the ranks on every machine, besides those of .deepspeed_env:\n" + "\n".join(
    f"  {name:<28}{meaning}" for name, meaning in CARRIED.items()
)


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise AmplifyError(f"{message}; see bash launch/train.sh --help")


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Return our options, further ones for the launcher, and those for amplify_ds.train."""
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
        help="of this machine (default: one for each GPU, else for each core, at most 8); with --slurm, of each node "
        "(default: one for each GPU that the job was given, else 1)",
    )
    add("--slurm", action="store_true", help="inside a SLURM job: its nodes, each of which srun starts once")
    add("--preflight", action="store_true", help="check the machines for this run, as launch/preflight.sh, and end")
    add("--hostfile", "-H", type=Path, metavar="FILE", help="lines 'NAME slots=N', see launch/hostfile.example")
    add(
        "--restarts",
        type=int,
        default=0,
        metavar="N",
        help="start again from the newest checkpoint, at most N times, when the run fails after it had begun to train",
    )
    add(
        "--drop-lost-nodes",
        action="store_true",
        help=f"restart without machines that do not answer, instead of waiting {SECONDS_FOR_HOSTS} s for them",
    )
    add("--master_addr", metavar="NAME", help="where the ranks meet (default: the hostfile's first machine)")
    add(
        "--master_port",
        type=int,
        metavar="PORT",
        help=f"and at which port (default: a free one; with --no_ssh {PORT_WITHOUT_SSH})",
    )
    add("--no_ssh", action="store_true", help="start this node only; something else, such as srun, starts the others")
    add("--node_rank", type=int, metavar="N", help="with --no_ssh: this machine's place in the hostfile, from 0")
    split = words.index("--") if "--" in words else 0
    own, training = list(words[:split]), list(words[split + 1 if split or words[:1] == ["--"] else 0 :])
    if {"-h", "--help"} & {*own, *training}:
        parser.print_help()
        sys.exit(0)
    options, rest = parser.parse_known_args(own)
    for word in rest:
        if word.partition("=")[0] in NOT_PASSED_ON:
            raise AmplifyError(
                f"{word}: choose machines by the hostfile's lines, ranks by its slots or --ranks, GPUs by "
                "CUDA_VISIBLE_DEVICES"
            )
    if options.no_ssh and (options.hostfile is None or options.node_rank is None or options.restarts):
        raise AmplifyError("--no_ssh needs --hostfile and --node_rank, and what starts the nodes restarts them")
    if options.slurm and (options.hostfile or options.no_ssh or options.restarts):
        raise AmplifyError("--slurm takes the nodes from SLURM, which also starts them again; see launch/slurm.sbatch")
    if options.preflight and not (options.slurm or options.hostfile):
        raise AmplifyError("--preflight needs --hostfile or --slurm")
    if options.hostfile and options.ranks:
        raise AmplifyError("--ranks is for this machine alone; with --hostfile the slots say how many")
    return options, rest, training


def main(signals: Signals) -> int:
    options, rest, training = parse(sys.argv[1:])
    run = _value(training, "--output")
    if run is None:
        raise AmplifyError("--output RUN is missing; see bash launch/train.sh --help")
    if "GPUS_HERE" not in os.environ:
        look_for_gpus()
    job = slurm.current_job(options.ranks) if options.slurm else None
    hosts = job.hosts if job else read_hostfile(options.hostfile) if options.hostfile else []
    if options.preflight:
        return preflight.check(hosts, options.master_addr, options.master_port, job, training)
    if job and job.node is None:
        raise AmplifyError("--slurm trains on the nodes on which srun starts it: srun --ntasks-per-node=1 bash …")
    if options.node_rank is not None and not 0 <= options.node_rank < len(hosts):
        raise AmplifyError(
            f"--node_rank {options.node_rank}: {options.hostfile} names {len(hosts)} machines, from 0 on"
        )
    if "--dry-run" in training:  # one process says it for all
        ranks = sum(host.slots for host in hosts) or _ranks_here(options) or _gpus()
        words = [sys.executable, "-m", "amplify_ds.train", *training]
        os.execve(words[0], words, {**os.environ, "RANK": "0", "WORLD_SIZE": str(ranks)})
    supervisor, first = Supervisor(Path(run), signals), hosts[0].name if hosts else None
    if job:
        options.node_rank, options.master_port = job.node, options.master_port or job.port
        os.environ.update(AMPLIFY_LAUNCH=job.name, AMPLIFY_ATTEMPT=str(job.restarts))
        if job.predecessor and job.node == 0:
            supervisor.end_launch(job.predecessor)  # its ranks may live on a node that SLURM has lost sight of
    for attempt in range(options.restarts + 1):
        if attempt:
            hosts = remaining(hosts, options.drop_lost_nodes, training, signals)
        if signals.asked:
            say("stopped before training had begun; the same command starts it")
            return SAVED
        if hosts and hosts[0].name != first:
            options.master_addr = None  # that machine is lost
        code = _launch(
            supervisor, options, Launch(training, rest, hosts, _ranks_here(options), options.node_rank), attempt
        )
        if code in (0, SAVED) or signals.asked or attempt == options.restarts:
            break
        if not supervisor.began:
            say("not restarted: the run failed before it had begun to train, and would again")
            break
        say(f"exit code {code}; restart {attempt + 1} of {options.restarts} in {SECONDS_BEFORE_RESTART} s")
        signals.pause(SECONDS_BEFORE_RESTART)
    if code == KILLED and signals.kill:
        say(f"killed by the second signal; the same command continues from the newest checkpoint in {run}")
    elif code not in (0, SAVED, STALLED) and (supervisor.began or code != 1):  # else a rank has refused, and said why
        say(f"error: training ended before its last step (launcher's code {code}); the same command continues it")
    return code


def _launch(supervisor: Supervisor, options: argparse.Namespace, launch: Launch, attempt: int) -> int:
    machines = list(that_take_part(launch.hosts).values()) if launch.by_ssh else []
    name = os.environ.get("AMPLIFY_LAUNCH") or uuid.uuid4().hex[:12]
    own = {"AMPLIFY_LAUNCH": name, "AMPLIFY_ATTEMPT": os.environ.get("AMPLIFY_ATTEMPT") or str(attempt)}
    cores = min((machine.cores for machine in machines), default=len(os.sched_getaffinity(0)))
    here = launch.hosts[0].slots if launch.hosts else launch.ranks or _gpus()
    own["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // max(1, here)))
    if len(launch.hosts) < 2 and not launch.by_ssh:
        meeting = Meeting(options.master_addr or LOOPBACK, options.master_port or free_port())
    else:
        port = machines[0].free_port if machines else PORT_WITHOUT_SSH
        meeting = Meeting(options.master_addr or launch.hosts[0].name, options.master_port or port)
        if any(machine.gpus for machine in machines) and not any(host.is_here for host in launch.hosts):
            os.environ.pop("DS_ACCELERATOR", None)  # "cpu" was meant for this machine, which takes no part
    with MemoryFiles() as files:
        words, environment = launch.words(meeting, files), launch.environment(files, own)
        code = supervisor.watch(lambda: LauncherProcess(words, environment), name, launch.hosts)
    if launch.by_ssh and code not in (0, SAVED):
        cleanup.end_on(launch.hosts, name)
    return code


def _ranks_here(options: argparse.Namespace) -> int | None:
    if options.slurm:
        return None
    return options.ranks or (None if options.hostfile or _gpus() else min(MOST_RANKS, len(os.sched_getaffinity(0))))


def _gpus() -> int:
    """GPUs of this machine, as launch/environment.sh or `look_for_gpus` has counted them."""
    return int(os.environ.get("GPUS_HERE") or 0)


def look_for_gpus() -> None:
    """Set what launch/environment.sh sets, where this was not started by a script that sources it."""
    count = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]  # not here: it takes memory
    found = subprocess.run(count, stdout=subprocess.PIPE, text=True)
    if found.returncode:
        raise AmplifyError("torch could not count the GPUs of this machine, see above")
    os.environ["GPUS_HERE"] = found.stdout.strip()
    if os.environ["GPUS_HERE"] == "0":
        os.environ["DS_ACCELERATOR"] = "cpu"


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"needs a number of ranks, found '{text}'")
    return int(text)


def _value(words: Sequence[str], option: str) -> str | None:
    """The value of an option that stands among words for another command; the last one, which wins there too."""
    found = None
    for word, following in zip(words, [*words[1:], None]):
        if word == option:
            found = following
        elif word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return found


if __name__ == "__main__":
    heard = Signals()
    command(lambda: main(heard))
