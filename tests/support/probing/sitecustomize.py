"""With this folder on PYTHONPATH, the environment variable PROBE, as JSON, changes what a command does:

{"signal": [NAME, TEXT]}  send the command the signal when it first opens a file whose path contains TEXT
{"flags": true}           print its flags on standard output, as JSON, instead of parsing its arguments
"""

import argparse
import json
import os
import signal
import sys
from unittest import mock


def _send_to_self(name: str, text: str) -> None:
    pending = [signal.Signals[name]]

    def hook(event, arguments):
        if event == "open" and pending and text in str(arguments[0]):
            os.kill(os.getpid(), pending.pop())

    sys.addaudithook(hook)


def _list_flags(parser, *arguments, **options):
    print(json.dumps(_flags(parser)))
    sys.exit(0)


def _flags(parser, part: str = "") -> dict[str, str]:
    """Return {flag: its properties} of a parser and its subparsers."""
    flags: dict[str, str] = {}
    for action in parser._actions:
        if action.option_strings == ["-h", "--help"]:
            continue
        if isinstance(action, argparse._SubParsersAction):
            for name, subparser in action.choices.items():
                flags |= _flags(subparser, f"{part}{name} ")
            continue
        texts = [action.metavar and str(action.metavar), action.nargs and f"nargs {action.nargs}"]
        texts += [action.choices and f"one of {' '.join(map(str, action.choices))}"]
        texts += [f"default {action.default}" if action.default not in (None, argparse.SUPPRESS) else None]
        texts += ["required" if action.required else None, "hidden" if action.help == argparse.SUPPRESS else None]
        for flag in action.option_strings or [action.dest]:
            flags[part + flag] = "; ".join(text for text in texts if text)
    return flags


_probe = json.loads(os.environ.get("PROBE", "{}"))
if "signal" in _probe:
    _send_to_self(*_probe["signal"])
if "flags" in _probe:
    mock.patch.object(os, "sched_getaffinity", lambda pid: set(range(6))).start()  # some defaults are numbers of cores
    mock.patch.object(argparse.ArgumentParser, "parse_known_args", _list_flags).start()
