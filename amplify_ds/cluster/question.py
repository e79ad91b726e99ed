"""A question to every machine at once: `ask` here, `answer` in the module of ours that runs there.

A question is one word of JSON, a report one line of it. The answering process ends by itself when its time is over,
also if the connection is gone: nothing runs or listens on a machine for longer than it was asked to.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from amplify_ds.cluster.hostfile import Host
from amplify_ds.cluster.remote import Answer, python_words, run_each

MARK = "amplify_ds report "  # login scripts print lines of their own
TIME_OVER = 124
SECONDS_TO_CONNECT = 3  # for ssh itself, on top of the time that a question may take


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
    asked = {
        host: python_words(module, json.dumps({**question, "seconds": max(1, int(seconds - SECONDS_TO_CONNECT))}))
        for host, question in questions.items()
    }
    answers = run_each(asked, seconds, variables, way)
    return {host: Reply(answer, _reports(answer.output)) for host, answer in answers.items()}


def _reports(output: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix(MARK)) for line in output.splitlines() if line.startswith(MARK)]


def answer(report: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Read the question from the command line and print the report that follows from it."""
    question = json.loads(sys.argv[1])
    end_after(question["seconds"])
    say(report(question))


def say(report: Mapping[str, Any]) -> None:
    """One write a line: ranks share standard output."""
    os.write(1, f"{MARK}{json.dumps(report)}\n".encode())


def end_after(seconds: int) -> None:
    """End this process then, whatever it is waiting for."""
    timer = threading.Timer(seconds, os._exit, [TIME_OVER])
    timer.daemon = True
    timer.start()
    if hasattr(signal, "alarm"):
        signal.alarm(seconds + 2)  # for what holds the interpreter
