"""The `amplify-ds` command (or `python -m amplify_ds`): list the commands, or run one of them.

    amplify-ds embed --help     is     python -m amplify_ds.embed --help

Only the chosen command is imported, so listing them takes no longer than starting Python.
"""

from __future__ import annotations

import sys

from amplify_ds import start

# name: (module, what it does)
COMMANDS = {
    "fetch": ("fetch_ur100p", "download UR100P, the sequences AMPLIFY was trained on"),
    "build": ("build_shards", "turn protein sequences into shards for training"),
    "decontaminate": ("decontaminate", "find training sequences that are similar to validation sequences"),
    "inspect": ("inspect_shards", "describe and check a directory of shards"),
    "preflight": ("preflight", "check whether the machines of a hostfile can train together"),
    "launch": ("launch", "train with DeepSpeed's launcher, on one machine or several"),
    "train": ("train", "train as one rank; the launcher starts this on each device"),
    "plot": ("plot", "plot the losses and perplexities of a run"),
    "checkpoints": ("checkpoints", "list the checkpoints of a run"),
    "replay": ("replay", "show the batch of an earlier step"),
    "evaluate": ("evaluate", "compute the perplexity of models on shards"),
    "export": ("export", "export a model, or convert it to another layout"),
    "embed": ("embed", "compute embeddings of proteins"),
    "score": ("score", "compute perplexities of proteins and effects of mutations"),
    "contacts": ("contacts", "predict contacts between residues from attention maps"),
    "benchmark": ("benchmark", "measure speed and memory on this machine"),
}
UNKNOWN_COMMAND = 2  # the exit code of argparse for unknown arguments


def main() -> None:
    start.begin()
    name, *rest = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        _run(COMMANDS[name][0], rest)
    else:
        from amplify_ds.errors import command

        command(lambda: _help_or_error(name))


def _run(module: str, arguments: list[str]) -> None:
    """Run `python -m amplify_ds.MODULE ARGUMENTS` in this process. Worker processes import the same main module."""
    from runpy import run_module

    sys.argv = ["-m", *arguments]
    run_module(f"amplify_ds.{module}", run_name="__main__", alter_sys=True)


def _help_or_error(name: str) -> int:
    """Print the help, or an error for an unknown command; return the exit code."""
    if name in ("-h", "--help"):
        print(_help())
        return 0
    from amplify_ds.errors import print_error

    print_error(f"error: {_unknown(name)}")
    return UNKNOWN_COMMAND


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        ["usage: amplify-ds COMMAND …", "", *lines, "", "amplify-ds COMMAND --help shows the options of a command."]
    )


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    known = {module: name for name, (module, _) in COMMANDS.items()} | {name: name for name in COMMANDS}
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {known[near[0]]}?" if near else f"the commands are {', '.join(COMMANDS)}"
    return f"unknown command {name}; {hint}"


if __name__ == "__main__":
    main()
