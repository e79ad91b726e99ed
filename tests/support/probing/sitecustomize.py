"""With this folder on PYTHONPATH, a command does what PROBE, JSON in its environment, says:

{"signal": [NAME, TEXT]}  it gets the signal when it first opens a file whose path has TEXT in it
{"flags": true}           instead of parsing its words it lists its flags on standard output, as JSON
"""

import argparse
import json
import os
import signal
import sys
from unittest import mock


def _send_to_self(name: str, text: str) -> None:
    waiting = [signal.Signals[name]]

    def look(event, arguments):
        if event == "open" and waiting and text in str(arguments[0]):
            os.kill(os.getpid(), waiting.pop())

    sys.addaudithook(look)


def _list_flags(parser, *arguments, **options):
    print(json.dumps(_flags(parser)))
    sys.exit(0)


def _flags(parser, part: str = "") -> dict[str, str]:
    """{flag: how it is used} of a parser and of those for parts of its command."""
    found: dict[str, str] = {}
    for action in parser._actions:
        if action.option_strings == ["-h", "--help"]:
            continue
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found |= _flags(below, f"{part}{name} ")
            continue
        about = [action.metavar and str(action.metavar), action.nargs and f"nargs {action.nargs}"]
        about += [action.choices and f"one of {' '.join(map(str, action.choices))}"]
        about += [f"default {action.default}" if action.default not in (None, argparse.SUPPRESS) else None]
        about += ["required" if action.required else None, "hidden" if action.help == argparse.SUPPRESS else None]
        for flag in action.option_strings or [action.dest]:
            found[part + flag] = "; ".join(text for text in about if text)
    return found


_asked = json.loads(os.environ.get("PROBE", "{}"))
if "signal" in _asked:
    _send_to_self(*_asked["signal"])
if "flags" in _asked:
    mock.patch.object(os, "sched_getaffinity", lambda pid: set(range(6))).start()  # some defaults are numbers of cores
    mock.patch.object(argparse.ArgumentParser, "parse_known_args", _list_flags).start()
