"""A question to every machine at once: `ask` here, `answer` in the module of ours that runs there.

A question is one word of JSON, a report one line of it. timeout(1) ends the answering process when its time is over,
also if the connection is gone: nothing runs or listens on a machine for longer than it was asked to.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from amplify_ds.cluster.hostfile import Host
from amplify_ds.cluster.remote import Answer, python_words, run_each

MARK = "amplify_ds report "  # login scripts print lines of their own
TIME_OVER = 124  # timeout's exit code, and that of run_on
SECONDS_TO_CONNECT = 3  # of the time that a question may take


class Reply(NamedTuple):
    answer: Answer
    reports: list[dict[str, Any]]


def ask(
    module: str,
    questions: Mapping[Host, Mapping[str, Any]],
    seconds: float,
    variables: Mapping[str, str],
    way: str | None,
) -> dict[Host, Reply]:
    """Run `module` on each machine with its question, for `seconds` at most."""
    there = max(1.0, seconds - SECONDS_TO_CONNECT)
    bounded = ["timeout", "--kill-after=2", f"{there:.1f}"]
    asked = {
        host: [*bounded, *python_words(module, json.dumps({**question, "seconds": there}))]
        for host, question in questions.items()
    }
    answers = run_each(asked, seconds, variables, way)
    return {host: Reply(answer, _reports(answer.output)) for host, answer in answers.items()}


def _reports(output: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix(MARK)) for line in output.splitlines() if line.startswith(MARK)]


def answer(report: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Read the question from the command line and print the report that follows from it."""
    say(report(json.loads(sys.argv[1])))


def say(report: Mapping[str, Any]) -> None:
    """One write a line: ranks share standard output."""
    os.write(1, f"{MARK}{json.dumps(report)}\n".encode())
