"""The preflight's checks: what a machine reported, compared with what training needs, and how to fix it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from amplify_ds.cluster.hostfile import Host
from amplify_ds.cluster.remote import Answer
from amplify_ds.cluster.remote_query import TIME_OVER, Reply
from amplify_ds.config import RunConfig

CHECKS = {  # column: what is checked, for --help
    "ssh": "reached without a password",
    "versions": "the same Python at the same path, torch, CUDA, deepspeed, flash-attn and amplify_ds, to the byte",
    "slots": "no more of them than GPUs; without GPUs, than cores",
    "clock": "within 5 s of this machine's, or times in logs and of files mean nothing",
    "shards": "found, complete, with the same fingerprint everywhere; the batch divides over the ranks",
    "output": "writable, and the same directory on all machines",
    "disk": "room for the checkpoints that will be kept, and one being written",
    "ports": "each machine reaches the first one where ranks will meet, and is reached by it",
    "all-reduce": "all ranks together, with the right sum",
    "step": "one optimizer step of the run's model on its first rows, through DeepSpeed",
}
CLOCK_SECONDS = 5.0
GIB, MIB = 2**30, 2**20


class Finding(NamedTuple):
    """remedy: given if the check failed, and then text says what was found."""

    host: str
    check: str
    text: str
    remedy: str = ""


def reached(host: Host, answer: Answer, reported: bool, python: str, way: str) -> Iterator[Finding]:
    """A machine that gave no report: was it not reached, or is something missing there?"""
    if reported:
        yield Finding(host.name, "ssh", "ok" if way != "here" else "here")
        return
    check, text = "ssh", answer.reason
    if answer.code == 255 and way == "ssh":
        remedy = (
            f"`ssh {host.name} true` must work without a password: is the name right, the machine up, your public key "
            f"there (ssh-copy-id {host.name})?"
        )
    elif answer.reason.startswith("srun: "):
        remedy = (
            "the machine must belong to this SLURM job: take the hostfile from `scontrol show hostnames`; --overlap "
            "needs SLURM 20.11 or newer"
        )
    elif answer.code == TIME_OVER:
        text = "reached, but no answer in time"
        remedy = (
            f"look at `ssh {host.name} uptime`; a file system that hangs does this. If it is only slow, give a larger "
            "--seconds"
        )
    else:
        check = "versions"
        remedy = (
            f"{python} and this directory must be there under the same path, on a file system that all machines share, "
            "or as a copy with a .venv of its own"
        )
    yield Finding(host.name, check, text, remedy)


def versions(host: Host, report: Mapping[str, Any], common: Mapping[str, str]) -> Iterator[Finding]:
    differing = [
        f"{name} {found} (elsewhere {common[name]})"
        for name, found in report["versions"].items()
        if found != common[name]
    ]
    if differing:
        yield Finding(
            host.name,
            "versions",
            ", ".join(differing),
            "install requirements.txt there, or update the repository: the same commit everywhere",
        )
    else:
        yield Finding(host.name, "versions", "ok")


def slots(host: Host, report: Mapping[str, Any], on_gpus: bool) -> Iterator[Finding]:
    gpus, cores = len(report["gpus"]), report["cores"]
    kind = f"{gpus} GPUs" if on_gpus else f"{cores} cores"
    if host.slots <= (gpus if on_gpus else cores):
        yield Finding(host.name, "slots", f"{host.slots} of {kind}")
    else:
        also = "; `nvidia-smi` there should list the others" if on_gpus else ", or give it fewer ranks"
        yield Finding(
            host.name,
            "slots",
            f"{host.slots} slots, {kind}",
            f"the hostfile's slots must not exceed what is there{also}",
        )


def clock(host: Host, report: Mapping[str, Any], asked: tuple[float, float]) -> Iterator[Finding]:
    """asked: when this machine began to ask and had the answer. The other's times must lie between."""
    off = max(asked[0] - report["started"], report["ended"] - asked[1], 0.0)
    if off > CLOCK_SECONDS:
        yield Finding(
            host.name,
            "clock",
            f"off by {off:,.0f} s or more",
            "switch time synchronisation on there (chrony, timedatectl)",
        )
    else:
        yield Finding(host.name, "clock", "ok")


def shards(host: Host, report: Mapping[str, Any], common: Mapping[str, str]) -> Iterator[Finding]:
    if error := report["shards"].get("error"):
        yield Finding(
            host.name, "shards", error, "all machines must see the same shards, and the ranks share the batch"
        )
    elif differing := [path for path, found in report["shards"]["fingerprints"].items() if found != common.get(path)]:
        yield Finding(
            host.name,
            "shards",
            f"{', '.join(differing)}: other rows than elsewhere",
            "copy the shards again, or share them",
        )
    else:
        yield Finding(host.name, "shards", "ok")


def output(host: Host, report: Mapping[str, Any]) -> Iterator[Finding]:
    """A machine that could write is judged when the others have looked, see `shared`."""
    if error := report["output"].get("error"):
        yield Finding(host.name, "output", error, "choose an --output that every machine can write to")


def disk(host: Host, report: Mapping[str, Any], run: RunConfig) -> Iterator[Finding]:
    """The first machine writes. Kept in all: the newest, those of keep_every, and one more while it is written."""
    every = run.checkpoint.keep_every
    number = run.checkpoint.keep_last + 1 + (run.training.steps // every if every else 0)
    size, free = report["checkpoint_bytes"], report["output"]["free"]
    needed = number * size - report["output"]["checkpoints"]
    if free < needed:
        yield Finding(
            host.name,
            "disk",
            f"{_size(free)} free, {_size(needed)} needed for {number} checkpoints",
            "make room, choose another --output, or keep fewer: --checkpoint.keep_last, --checkpoint.keep_every",
        )
    else:
        yield Finding(host.name, "disk", _size(free))


def ports(replies: Mapping[Host, Reply], first: Host, address: str, port: int, fixed: bool) -> Iterator[Finding]:
    """fixed: the user chose the port."""
    said = {host: reply.reports[-1] if reply.reports else None for host, reply in replies.items()}
    leader = said[first]
    if leader is None or leader["listening"]:
        text = f"{address}:{port}: {leader['listening']}" if leader else replies[first].answer.reason
        other = "another --master_port, or none: a free one is taken" if fixed else "another --master_addr"
        yield Finding(
            first.name,
            "ports",
            text,
            f"the ranks are to meet there; end what holds the port, or give {other}. {address} must be an address of "
            f"{first.name}",
        )
        return
    yield Finding(first.name, "ports", "ok")
    for host, report in said.items():
        if host == first:
            continue
        if report is None:
            yield Finding(host.name, "ports", replies[host].answer.reason, f"look at `ssh {host.name} uptime`")
        elif report["to_first"]:
            yield Finding(
                host.name,
                "ports",
                f"cannot connect to {address}:{port}: {report['to_first']}",
                f"the name must lead to {first.name} from there (or give --master_addr), and no firewall may stand "
                "between the machines",
            )
        elif leader["back"].get(host.name, "it was not tried") is not None:
            yield Finding(
                host.name,
                "ports",
                f"not reached from {first.name}: {leader['back'].get(host.name, 'not tried')}",
                "ranks listen at ports that the system chooses: no firewall may stand between the machines",
            )
        else:
            yield Finding(host.name, "ports", "ok")


def shared(replies: Mapping[Host, Reply], first: Host, files: Mapping[Host, str]) -> Iterator[Finding]:
    """files: what each machine that could wrote."""
    unseen = {host: set(reply.reports[-1]["unseen"]) if reply.reports else set() for host, reply in replies.items()}
    for host, file in files.items():
        if host != first and (host.name in unseen[first] or first.name in unseen[host]):
            yield Finding(
                host.name,
                "output",
                f"{Path(file).parent} is another directory there than on {first.name}",
                "choose an --output on a file system that all machines share: signals and checkpoints go through it",
            )
        else:
            yield Finding(host.name, "output", "ok")


def all_reduce(replies: Mapping[Host, Reply]) -> Iterator[Finding]:
    for host, reply in replies.items():
        sums = [report["correct"] for report in reply.reports if "correct" in report]
        if len(sums) == host.slots and all(sums):
            yield Finding(host.name, "all-reduce", "ok")
        else:
            text = "the sum was wrong" if not all(sums) else _why(reply, host.slots - len(sums))
            yield Finding(
                host.name,
                "all-reduce",
                text,
                "the network interface is chosen by NCCL_SOCKET_IFNAME and NCCL_IB_HCA, on CPUs by GLOO_SOCKET_IFNAME "
                "(`ip address` lists them); NCCL_DEBUG=INFO says more",
            )


def step(replies: Mapping[Host, Reply]) -> Iterator[Finding]:
    for host, reply in replies.items():
        steps = [report for report in reply.reports if "loss" in report]
        if len(steps) == host.slots:
            seconds, memory = (max(report[key] for report in steps) for key in ("seconds", "memory"))
            yield Finding(host.name, "step", f"{seconds:,.1f} s, {_size(memory)}")
        elif any("correct" in report for report in reply.reports):
            yield Finding(
                host.name,
                "step",
                _why(reply, host.slots - len(steps)),
                "out of memory: smaller --training.micro_batch_rows, --training.activation_checkpointing true, and see "
                "whether another process holds the GPU; out of time: a larger --seconds",
            )


def _size(number: float) -> str:
    return f"{number / GIB:,.1f} GiB" if number >= GIB else f"{number / MIB:,.0f} MiB"


def _why(reply: Reply, missing: int) -> str:
    errors = [f"rank {report['rank']}: {report['error']}" for report in reply.reports if "error" in report]
    if errors:
        return "; ".join(errors)
    if reply.answer.code == TIME_OVER:
        return f"{missing} ranks were not ready in time"
    return f"{missing} ranks ended: {reply.answer.reason}"
