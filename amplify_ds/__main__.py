"""The front door: `amplify-ds` or `python -m amplify_ds` lists the commands in the order of the work, and starts one.

    amplify-ds embed --help     is     python -m amplify_ds.embed --help

Nothing is imported but the command that is asked for, so that the list costs no more than Python's own start.
"""

from __future__ import annotations

import sys

from amplify_ds import start

# name: (module, what it does)
COMMANDS = {
    "fetch": ("fetch_ur100p", "download UR100P, the sequences AMPLIFY was trained on"),
    "build": ("build_shards", "turn protein sequences into shards, which training reads"),
    "decontaminate": ("decontaminate", "find training sequences that are similar to a validation sequence"),
    "inspect": ("inspect_shards", "show what a directory of shards holds, and check it"),
    "preflight": ("preflight", "check whether the machines of a hostfile can train together"),
    "launch": ("launch", "train under DeepSpeed's launcher, on one machine or many"),
    "train": ("train", "train as one rank: what the launcher starts on each device"),
    "plot": ("plot", "draw the losses and perplexities of a run"),
    "checkpoints": ("checkpoints", "list the checkpoints of a run"),
    "replay": ("replay", "show the batch of a step again"),
    "evaluate": ("evaluate", "perplexity of models on shards"),
    "export": ("export", "export a model, or convert one layout into another"),
    "embed": ("embed", "embeddings of proteins"),
    "score": ("score", "perplexities of proteins, and effects of mutations"),
    "contacts": ("contacts", "contacts of residues from attention"),
    "benchmark": ("benchmark", "measure speed and memory on this machine"),
}
UNKNOWN = 2  # as argparse ends for words that it does not know


def main() -> None:
    start.begin()
    name, *rest = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        _run(COMMANDS[name][0], rest)
    else:
        from amplify_ds.errors import command

        command(lambda: _answer(name))


def _run(module: str, words: list[str]) -> None:
    """Be `python -m amplify_ds.MODULE WORDS`, to worker processes too, which import the main module again."""
    from runpy import run_module

    sys.argv = ["-m", *words]
    run_module(f"amplify_ds.{module}", run_name="__main__", alter_sys=True)


def _answer(name: str) -> int:
    """Answer a word that is no command; return the exit code."""
    if name in ("-h", "--help"):
        print(_listed())
        return 0
    from amplify_ds.errors import report

    report(f"error: {_unknown(name)}")
    return UNKNOWN


def _listed() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(["usage: amplify-ds COMMAND …", "", *lines, "", "amplify-ds COMMAND --help says more of each."])


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    known = {module: name for name, (module, _) in COMMANDS.items()} | {name: name for name in COMMANDS}
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {known[near[0]]}?" if near else f"there are {', '.join(COMMANDS)}"
    return f"there is no command {name}; {hint}"


if __name__ == "__main__":
    main()
