"""Check whether the machines of a hostfile can train together, in three rounds.

    1. node_report    each machine for itself: versions, devices, shards, output, disk, clock
    2. connectivity   each with the first one: ports both ways, files of the output directory
    3. trial_step     all ranks together: an all-reduce and one step; skipped if an earlier failure makes it pointless

Each round queries all machines at once and has a share of the time, so a machine that hangs does not delay the others.
All failures on all machines are found before anything is printed.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from amplify_ds.cluster import checks
from amplify_ds.cluster.checks import Finding
from amplify_ds.cluster.hostfile import Host
from amplify_ds.cluster.remote import run_each
from amplify_ds.cluster.remote_query import Reply, ask
from amplify_ds.cluster.variables import to_carry
from amplify_ds.config import RunConfig

SHARES = (0.35, 0.25)  # of the time, at most, for the first two rounds; the third has what is left
SECONDS_TO_TIDY = 5


@dataclass(frozen=True)
class Asked:
    """What is to be checked. way: see remote.words_on. run, zero, output: None for the machines alone."""

    hosts: list[Host]
    address: str
    port: int | None  # None: one that is free on the first machine
    seconds: float
    way: str | None
    run: RunConfig | None = None
    zero: dict[str, Any] | None = None
    output: str | None = None

    @property
    def world_size(self) -> int:
        return sum(host.slots for host in self.hosts)


@dataclass
class Found:
    """findings: one for each machine and check that was made. notes: what is true of all."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def failures(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.remedy]


class Preflight:
    def __init__(self, asked: Asked, environment: Mapping[str, str], progress: Callable[[str], object]):
        self.asked, self.progress = asked, progress
        self.variables = to_carry(environment)
        self.token = secrets.token_hex(8)
        self.end = time.monotonic() + asked.seconds - SECONDS_TO_TIDY
        self.found = Found()
        # pdsh reaches every machine by ssh, this one too; a file with one machine that is this one needs none.
        alone = len(asked.hosts) == 1 and asked.hosts[0].is_here
        self.way = asked.way or ("here" if alone else "ssh")

    def check(self) -> Found:
        reports: dict[Host, dict] = {}
        files: dict[Host, str] = {}
        try:
            self.progress("each machine")
            reports = self._look()
            files = {host: r["output"]["file"] for host, r in reports.items() if "file" in r.get("output", {})}
            if self.asked.hosts[0] in reports:
                port = self.asked.port or reports[self.asked.hosts[0]]["free_port"]
                self.progress("machines among each other")
                self._meet(list(reports), files, port)
                if not self._hopeless():
                    self.progress("all ranks")
                    self._rehearse(port)
        finally:
            if files:
                run_each(
                    {host: ["rm", "-f", "--", file] for host, file in files.items()}, SECONDS_TO_TIDY, way=self.way
                )
        return self.found

    def _ask(self, module: str, questions: Mapping[Host, Mapping[str, Any]], share: float = 1.0) -> dict[Host, Reply]:
        seconds = max(6.0, min(self.end - time.monotonic(), share * self.asked.seconds))
        return ask(f"amplify_ds.cluster.{module}", questions, seconds, self.variables, self.way)

    def _look(self) -> dict[Host, dict]:
        """Round 1. Returns the reports of the machines that gave one."""
        asked = self.asked
        run = asked.run and asked.run.model_dump_json()
        common = {"run": run, "output": asked.output, "token": self.token, "world_size": asked.world_size}
        began = time.time()
        replies = self._ask(
            "node_report", {host: common | {"number": i} for i, host in enumerate(asked.hosts)}, SHARES[0]
        )
        took = (began, time.time())
        reports = {}
        for host, reply in replies.items():
            self.found.findings += checks.reached(host, reply.answer, bool(reply.reports), sys.executable, self.way)
            if reply.reports:
                reports[host] = reply.reports[-1]
        versions = _most(reports, lambda report: report["versions"])
        shards = _most(reports, lambda report: report.get("shards", {}).get("fingerprints")) or {}
        on_gpus = any(report["gpus"] for report in reports.values())
        for host, report in reports.items():
            self.found.findings += checks.versions(host, report, versions)
            self.found.findings += checks.slots(host, report, on_gpus)
            self.found.findings += checks.clock(host, report, took)
            if asked.run:
                self.found.findings += checks.shards(host, report, shards)
                self.found.findings += checks.output(host, report)
        if versions:
            self.found.notes.append(", ".join(f"{name} {version}" for name, version in versions.items()))
        first = reports.get(asked.hosts[0])
        if asked.run and first and "free" in first["output"]:
            self.found.findings += checks.disk(asked.hosts[0], first, asked.run)
        return reports

    def _meet(self, hosts: list[Host], files: dict[Host, str], port: int) -> None:
        """Round 2, among the machines that answered."""
        asked, first = self.asked, hosts[0]
        common = {"address": asked.address, "port": port, "token": self.token}
        others = {host.name: file for host, file in files.items() if host != first}
        own = {first.name: files[first]} if first in files else {}
        questions = {
            host: common
            | {"name": host.name, "peers": len(hosts) - 1 if host == first else None}
            | {"files": others if host == first else own}
            for host in hosts
        }
        replies = self._ask("connectivity", questions, SHARES[1])
        self.found.findings += checks.ports(replies, first, asked.address, port, fixed=asked.port is not None)
        if asked.run:
            self.found.findings += checks.shared(replies, first, files)

    def _hopeless(self) -> bool:
        return any(finding.check in ("ssh", "versions", "slots", "ports") for finding in self.found.failures())

    def _rehearse(self, port: int) -> None:
        """Round 3. The step is left out where the shards cannot be read."""
        asked = self.asked
        unreadable = any(failure.check == "shards" for failure in self.found.failures())
        run = None if unreadable else asked.run
        common = {
            "address": asked.address,
            "port": port,
            "world_size": asked.world_size,
            "zero": asked.zero,
            "run": run and run.model_dump_json(),
        }
        replies = self._ask(
            "trial_step",
            {host: common | {"node": i, "slots": host.slots} for i, host in enumerate(asked.hosts)},
        )
        self.found.findings += checks.all_reduce(replies)
        speeds = [r["bytes_per_second"] for reply in replies.values() for r in reply.reports if "correct" in r]
        if len(speeds) == asked.world_size > 1:
            self.found.notes.append(
                f"all-reduce: {asked.world_size} ranks, {min(speeds) / 1e9:,.2f} GB/s bus bandwidth (bytes / seconds · "
                "2(n-1)/n)"
            )
        if run:
            self.found.findings += checks.step(replies)


def _most(reports: Mapping[Host, dict], part: Callable[[dict], Any]) -> Any:
    """What most machines say, the first of them where it is a draw; None if nobody does."""
    said = [part(report) for report in reports.values()]
    counted = Counter(repr(value) for value in said if value is not None)
    return next((value for value in said if counted and repr(value) == counted.most_common(1)[0][0]), None)
