"""The checks of the preflight: compare what the machines reported with what training needs, and say how to fix it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from amplify_ds.cluster.hostfile import Host
from amplify_ds.cluster.remote import Answer
from amplify_ds.cluster.remote_query import TIME_OVER, Reply
from amplify_ds.config import RunConfig

CHECKS = {  # column of the table: description for --help
    "ssh": "reached without a password",
    "versions": "same Python path and version, torch, CUDA, deepspeed, flash-attn, and the same amplify_ds to the byte",
    "slots": "not more than GPUs; without GPUs, not more than cores",
    "clock": "within 5 s of this machine's, so that times in logs and of files can be compared",
    "shards": "present, complete, same fingerprint on all machines; the batch is divisible by the ranks",
    "output": "writable, and the same directory on all machines",
    "disk": "room for the checkpoints that are kept, and for one being written",
    "ports": "connections to the first machine at the port where the ranks meet, and back",
    "all-reduce": "over all ranks, with the correct sum",
    "step": "one optimizer step of this run's model on its first rows, through DeepSpeed",
}
CLOCK_SECONDS = 5.0
GIB, MIB = 2**30, 2**20


class Finding(NamedTuple):
    """The result of one check on one machine. remedy: empty if the check passed; otherwise `text` is the problem."""

    host: str
    check: str
    text: str
    remedy: str = ""


def reached(host: Host, answer: Answer, reported: bool, python: str, transport: str) -> Iterator[Finding]:
    """Yield whether the machine was reached and sent a report.

    reported: whether it did. python: the interpreter that it should have. transport: see `remote.command_on`.
    """
    if reported:
        yield Finding(host.name, "ssh", "ok" if transport != "here" else "here")
        return
    check, text = "ssh", answer.reason
    if answer.code == 255 and transport == "ssh":
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
            f"see `ssh {host.name} uptime`; a file system that hangs has this effect. If the machine is only slow, use "
            "a larger --seconds"
        )
    else:
        check = "versions"
        remedy = (
            f"{python} and this directory must exist there under the same path: on a file system that all machines "
            "share, or as a copy with its own .venv"
        )
    yield Finding(host.name, check, text, remedy)


def versions(host: Host, report: Mapping[str, Any], common: Mapping[str, str]) -> Iterator[Finding]:
    """Yield whether the versions are those of most machines, `common`."""
    differing = [
        f"{name} {version} (elsewhere {common[name]})"
        for name, version in report["versions"].items()
        if version != common[name]
    ]
    if differing:
        yield Finding(
            host.name,
            "versions",
            ", ".join(differing),
            "install requirements.txt there, or update the repository: the same commit on all machines",
        )
    else:
        yield Finding(host.name, "versions", "ok")


def slots(host: Host, report: Mapping[str, Any], on_gpus: bool) -> Iterator[Finding]:
    """Yield whether the machine has a device for each slot."""
    gpus, cores = len(report["gpus"]), report["cores"]
    devices = f"{gpus} GPUs" if on_gpus else f"{cores} cores"
    if host.slots <= (gpus if on_gpus else cores):
        yield Finding(host.name, "slots", f"{host.slots} of {devices}")
    else:
        advice = "; `nvidia-smi` there should list all GPUs" if on_gpus else ": use fewer ranks"
        yield Finding(
            host.name,
            "slots",
            f"{host.slots} slots, {devices}",
            f"the slots in the hostfile must not exceed the devices{advice}",
        )


def clock(host: Host, report: Mapping[str, Any], interval: tuple[float, float]) -> Iterator[Finding]:
    """Yield whether the machine's clock agrees with this one's.

    interval: this machine's times before the query and after the answer; the reported times must lie in between.
    """
    offset = max(interval[0] - report["started"], report["ended"] - interval[1], 0.0)
    if offset > CLOCK_SECONDS:
        yield Finding(
            host.name,
            "clock",
            f"off by {offset:,.0f} s or more",
            "switch time synchronisation on there (chrony, timedatectl)",
        )
    else:
        yield Finding(host.name, "clock", "ok")


def shards(host: Host, report: Mapping[str, Any], common: Mapping[str, str]) -> Iterator[Finding]:
    """Yield whether the shards can be read and have the fingerprints of most machines, {directory: fingerprint}."""
    if error := report["shards"].get("error"):
        yield Finding(
            host.name, "shards", error, "all machines must see the same shards, and the ranks share the batch"
        )
    elif differing := [
        path for path, fingerprint in report["shards"]["fingerprints"].items() if fingerprint != common.get(path)
    ]:
        yield Finding(
            host.name,
            "shards",
            f"{', '.join(differing)}: other rows than on the other machines",
            "copy the shards again, or use a shared file system",
        )
    else:
        yield Finding(host.name, "shards", "ok")


def output(host: Host, report: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield a failure if the output directory is not writable. `shared` decides about the others."""
    if error := report["output"].get("error"):
        yield Finding(host.name, "output", error, "choose an --output that every machine can write to")


def disk(host: Host, report: Mapping[str, Any], run: RunConfig) -> Iterator[Finding]:
    """Yield whether the first machine, which writes, has room for the newest checkpoints, those of keep_every, and one
    more while it is written.
    """
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
    """Yield whether the first machine listens, and whether each other one connects to it and is reached from it.

    fixed: whether the user chose the port.
    """
    reports = {host: reply.reports[-1] if reply.reports else None for host, reply in replies.items()}
    leader = reports[first]
    if leader is None or leader["listening"]:
        text = f"{address}:{port}: {leader['listening']}" if leader else replies[first].answer.reason
        advice = "use another --master_port, or none for a free one" if fixed else "use another --master_addr"
        yield Finding(
            first.name,
            "ports",
            text,
            f"the ranks meet there: end the process that uses the port, or {advice}. {address} must be an address of "
            f"{first.name}",
        )
        return
    yield Finding(first.name, "ports", "ok")
    for host, report in reports.items():
        if host == first:
            continue
        if report is None:
            yield Finding(host.name, "ports", replies[host].answer.reason, f"see `ssh {host.name} uptime`")
        elif report["to_first"]:
            yield Finding(
                host.name,
                "ports",
                f"cannot connect to {address}:{port}: {report['to_first']}",
                f"the name must resolve to {first.name} there (or use --master_addr), and no firewall may block "
                "connections between the machines",
            )
        elif leader["back"].get(host.name, "not tried") is not None:
            yield Finding(
                host.name,
                "ports",
                f"not reached from {first.name}: {leader['back'].get(host.name, 'not tried')}",
                "ranks listen at ports that the system chooses: no firewall may block connections between the machines",
            )
        else:
            yield Finding(host.name, "ports", "ok")


def shared(replies: Mapping[Host, Reply], first: Host, files: Mapping[Host, str]) -> Iterator[Finding]:
    """Yield whether each machine sees the first one's file in the output directory, and the first one the others'.

    files: the file of each machine that could write one.
    """
    unseen = {host: set(reply.reports[-1]["unseen"]) if reply.reports else set() for host, reply in replies.items()}
    for host, file in files.items():
        if host != first and (host.name in unseen[first] or first.name in unseen[host]):
            yield Finding(
                host.name,
                "output",
                f"{Path(file).parent} is another directory there than on {first.name}",
                "choose an --output on a file system that all machines share, for stop requests and checkpoints",
            )
        else:
            yield Finding(host.name, "output", "ok")


def all_reduce(replies: Mapping[Host, Reply]) -> Iterator[Finding]:
    """Yield whether all ranks of each machine computed the correct sum."""
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
                "choose the network interface with NCCL_SOCKET_IFNAME and NCCL_IB_HCA, on CPUs with GLOO_SOCKET_IFNAME "
                "(`ip address` lists them); NCCL_DEBUG=INFO prints details",
            )


def step(replies: Mapping[Host, Reply]) -> Iterator[Finding]:
    """Yield the duration and peak memory of the step on each machine, or why it failed."""
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
                "out of memory: use a smaller --training.micro_batch_rows or --training.activation_checkpointing true, "
                "and check that no other process uses the GPU; out of time: use a larger --seconds",
            )


def _size(number: float) -> str:
    return f"{number / GIB:,.1f} GiB" if number >= GIB else f"{number / MIB:,.0f} MiB"


def _why(reply: Reply, missing: int) -> str:
    """Return the ranks' errors, or why reports of `missing` ranks are missing."""
    errors = [f"rank {report['rank']}: {report['error']}" for report in reply.reports if "error" in report]
    if errors:
        return "; ".join(errors)
    if reply.answer.code == TIME_OVER:
        return f"{missing} ranks were not ready in time"
    return f"{missing} ranks ended: {reply.answer.reason}"
