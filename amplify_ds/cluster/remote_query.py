"""Query all machines at once: `ask` starts a module on each of them, where `answer` prints a report.

A query is one JSON argument, a report one line of JSON. timeout(1) ends the module when its time is over, even if the
connection is lost, so no process remains or listens on a machine longer than intended.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from amplify_ds.cluster.hostfile import Host
from amplify_ds.cluster.remote import Answer, python_command, run_each

MARK = "amplify_ds report "  # distinguishes reports from lines that login scripts print
TIME_OVER = 124  # exit code of timeout, and of run_on
SECONDS_TO_CONNECT = 3  # part of the time of a query


class Reply(NamedTuple):
    """The result of a query on one machine: that of the command, and the reports that it printed."""

    answer: Answer
    reports: list[dict[str, Any]]


def ask(
    module: str,
    queries: Mapping[Host, Mapping[str, Any]],
    seconds: float,
    variables: Mapping[str, str],
    transport: str | None,
) -> dict[Host, Reply]:
    """Run `module` on each machine with its query, for `seconds` at most, and return the replies."""
    remote_seconds = max(1.0, seconds - SECONDS_TO_CONNECT)
    timeout = ["timeout", "--kill-after=2", f"{remote_seconds:.1f}"]
    commands = {
        host: [*timeout, *python_command(module, json.dumps({**query, "seconds": remote_seconds}))]
        for host, query in queries.items()
    }
    answers = run_each(commands, seconds, variables, transport)
    return {host: Reply(answer, _reports(answer.output)) for host, answer in answers.items()}


def _reports(output: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix(MARK)) for line in output.splitlines() if line.startswith(MARK)]


def answer(report: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Read the query from the command line, pass it to `report`, and print the result."""
    print_report(report(json.loads(sys.argv[1])))


def print_report(report: Mapping[str, Any]) -> None:
    """Print a report in one write, because ranks share standard output."""
    os.write(1, f"{MARK}{json.dumps(report)}\n".encode())
