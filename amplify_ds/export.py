"""Export a checkpoint to a Hugging Face folder: `python -m amplify_ds.export CHECKPOINT_OR_RUN OUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

from amplify_ds.errors import command

DESCRIPTION = """\
Write a checkpoint, or the newest one of a run, as a Hugging Face folder in the layout of the published
chandar-lab/AMPLIFY checkpoints. AutoModel, AutoModelForMaskedLM and AutoTokenizer load it with torch and transformers
alone (trust_remote_code=True). Its logits are compared with the checkpoint's before it is given its name.

  python -m amplify_ds.export runs/first exported/first
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="amplify_ds.export", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="CHECKPOINT_OR_RUN", type=Path, help="a step-… directory, or a run directory")
    parser.add_argument("target", metavar="OUT", type=Path, help="the folder to make; it must not exist")
    arguments = parser.parse_args()
    from amplify_ds.hub.folder import TOLERANCE, export

    found = export(arguments.source, arguments.target)
    print(f"exported {found.path} (step {found.step}) to {arguments.target}; logits agree within {TOLERANCE:.0e}")
    print(f"next: AutoModelForMaskedLM.from_pretrained({str(arguments.target)!r}, trust_remote_code=True)")
    return 0


if __name__ == "__main__":
    command(main)
