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

SHARES = (0.35, 0.25)  # of the time, at most, for the first two rounds; the third has the rest
SECONDS_TO_TIDY = 5


@dataclass(frozen=True)
class PreflightRequest:
    """What to check. run, zero, output: None to check the machines without a run."""

    hosts: list[Host]
    address: str  # of the first machine, where the ranks will meet
    port: int | None  # None: one that is free on the first machine
    seconds: float
    transport: str | None  # see remote.command_on
    run: RunConfig | None = None
    zero: dict[str, Any] | None = None
    output: str | None = None

    @property
    def world_size(self) -> int:
        return sum(host.slots for host in self.hosts)


@dataclass
class PreflightReport:
    """findings: one for each machine and check that was made. notes: lines about all machines."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def failures(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.remedy]


class Preflight:
    """One preflight. progress: called with the name of each round."""

    def __init__(self, request: PreflightRequest, environment: Mapping[str, str], progress: Callable[[str], object]):
        self.request, self.progress = request, progress
        self.variables = to_carry(environment)
        self.token = secrets.token_hex(8)
        self.end = time.monotonic() + request.seconds - SECONDS_TO_TIDY
        self.report = PreflightReport()
        # pdsh reaches every machine by ssh, this one too, unless this machine is the only one.
        alone = len(request.hosts) == 1 and request.hosts[0].is_here
        self.transport = request.transport or ("here" if alone else "ssh")

    def check(self) -> PreflightReport:
        """Run the rounds, remove the files that they wrote, and return the report."""
        reports: dict[Host, dict] = {}
        files: dict[Host, str] = {}
        try:
            self.progress("each machine")
            reports = self._check_each()
            files = {host: r["output"]["file"] for host, r in reports.items() if "file" in r.get("output", {})}
            if self.request.hosts[0] in reports:
                port = self.request.port or reports[self.request.hosts[0]]["free_port"]
                self.progress("connections between machines")
                self._check_connections(list(reports), files, port)
                if not self._is_pointless():
                    self.progress("all ranks")
                    self._check_ranks(port)
        finally:
            if files:
                commands = {host: ["rm", "-f", "--", file] for host, file in files.items()}
                run_each(commands, SECONDS_TO_TIDY, transport=self.transport)
        return self.report

    def _ask(self, module: str, queries: Mapping[Host, Mapping[str, Any]], share: float = 1.0) -> dict[Host, Reply]:
        seconds = max(6.0, min(self.end - time.monotonic(), share * self.request.seconds))
        return ask(f"amplify_ds.cluster.{module}", queries, seconds, self.variables, self.transport)

    def _check_each(self) -> dict[Host, dict]:
        """Round 1. Return the reports of the machines that sent one."""
        request = self.request
        run = request.run and request.run.model_dump_json()
        common = {"run": run, "output": request.output, "token": self.token, "world_size": request.world_size}
        queries = {host: common | {"number": i} for i, host in enumerate(request.hosts)}
        began = time.time()
        replies = self._ask("node_report", queries, SHARES[0])
        interval = (began, time.time())
        reports = {}
        for host, reply in replies.items():
            self.report.findings += checks.reached(
                host, reply.answer, bool(reply.reports), sys.executable, self.transport
            )
            if reply.reports:
                reports[host] = reply.reports[-1]
        versions = _most_common(reports, lambda report: report["versions"])
        shards = _most_common(reports, lambda report: report.get("shards", {}).get("fingerprints")) or {}
        on_gpus = any(report["gpus"] for report in reports.values())
        for host, report in reports.items():
            self.report.findings += checks.versions(host, report, versions)
            self.report.findings += checks.slots(host, report, on_gpus)
            self.report.findings += checks.clock(host, report, interval)
            if request.run:
                self.report.findings += checks.shards(host, report, shards)
                self.report.findings += checks.output(host, report)
        if versions:
            self.report.notes.append(", ".join(f"{name} {version}" for name, version in versions.items()))
        first = reports.get(request.hosts[0])
        if request.run and first and "free" in first["output"]:
            self.report.findings += checks.disk(request.hosts[0], first, request.run)
        return reports

    def _check_connections(self, hosts: list[Host], files: dict[Host, str], port: int) -> None:
        """Round 2, between the machines that sent a report."""
        request, first = self.request, hosts[0]
        common = {"address": request.address, "port": port, "token": self.token}
        files_of_others = {host.name: file for host, file in files.items() if host != first}
        file_of_first = {first.name: files[first]} if first in files else {}
        queries = {
            host: common
            | {"name": host.name, "peers": len(hosts) - 1 if host == first else None}
            | {"files": files_of_others if host == first else file_of_first}
            for host in hosts
        }
        replies = self._ask("connectivity", queries, SHARES[1])
        self.report.findings += checks.ports(replies, first, request.address, port, fixed=request.port is not None)
        if request.run:
            self.report.findings += checks.shared(replies, first, files)

    def _is_pointless(self) -> bool:
        """Return whether round 3 would fail because of the failures so far."""
        return any(finding.check in ("ssh", "versions", "slots", "ports") for finding in self.report.failures())

    def _check_ranks(self, port: int) -> None:
        """Round 3. Leaves out the step if the shards cannot be read."""
        request = self.request
        unreadable = any(failure.check == "shards" for failure in self.report.failures())
        run = None if unreadable else request.run
        common = {
            "address": request.address,
            "port": port,
            "world_size": request.world_size,
            "zero": request.zero,
            "run": run and run.model_dump_json(),
        }
        queries = {host: common | {"node": i, "slots": host.slots} for i, host in enumerate(request.hosts)}
        replies = self._ask("trial_step", queries)
        self.report.findings += checks.all_reduce(replies)
        speeds = [r["bytes_per_second"] for reply in replies.values() for r in reply.reports if "correct" in r]
        if len(speeds) == request.world_size > 1:
            self.report.notes.append(
                f"all-reduce: {request.world_size} ranks, {min(speeds) / 1e9:,.2f} GB/s bus bandwidth (bytes / seconds "
                "· 2(n-1)/n)"
            )
        if run:
            self.report.findings += checks.step(replies)


def _most_common(reports: Mapping[Host, dict], part: Callable[[dict], Any]) -> Any:
    """Return the most frequent value of `part(report)`, the first of several equally frequent; None if all are None."""
    values = [part(report) for report in reports.values()]
    counts = Counter(repr(value) for value in values if value is not None)
    return next((value for value in values if counts and repr(value) == counts.most_common(1)[0][0]), None)
