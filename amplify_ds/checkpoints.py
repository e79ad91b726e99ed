"""List the checkpoints of a run: `python -m amplify_ds.checkpoints RUN`."""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from amplify_ds import bars
from amplify_ds.errors import AmplifyError, command

DESCRIPTION = """\
List the checkpoints of a run with size, condition, and the loss of each validation set at that step (nats per target,
<mask>-only masking). Training continues from the newest one that is not damaged. With --verify, every file is read and
compared with its checksum.

  python -m amplify_ds.checkpoints runs/first --verify
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="amplify_ds.checkpoints", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run directory (--output of amplify_ds.train)")
    parser.add_argument("--verify", action="store_true", help="compare every file with its checksum")
    arguments = parser.parse_args()
    from amplify_ds.training import checkpoint, run_directory

    if not (arguments.run / run_directory.DESCRIPTION).exists():
        raise AmplifyError(f"{arguments.run}: not a run directory, because it contains no {run_directory.DESCRIPTION}")
    paths = checkpoint.listing(arguments.run)
    hidden = sorted(checkpoint.folder(arguments.run).glob(".step-*"))
    aside = sorted(checkpoint.folder(arguments.run).glob(f"step-*{checkpoint.SET_ASIDE}*"))
    lines, unusable = [], 0
    for path in bars.bar(paths, desc="verifying", unit="checkpoint", shown=arguments.verify):
        losses = "-"
        try:
            opened = checkpoint.open_checkpoint(path)
            if arguments.verify:
                checkpoint.verify(opened)
            at_step = [entry for entry in opened.state["progress"]["history"] if entry["step"] == opened.step]
            losses = "  ".join(f"{e['set']} {e['loss']:.4f}" for e in at_step if e["protocol"] == "mask_only") or "-"
            condition = "verified" if arguments.verify else "complete"
        except AmplifyError as error:
            kind = "damaged: " if isinstance(error, checkpoint.Damaged) else ""
            condition, unusable = f"{kind}{str(error).removeprefix(f'{path}: ')}", unusable + 1
        lines.append((path.name, _size(path), condition, losses))
    lines += [(path.name, _size(path), "damaged, no longer used; may be deleted", "-") for path in aside]
    lines += [(path.name, _size(path), "incomplete: deleted at the next save", "-") for path in hidden]
    if not lines:
        print(f"{arguments.run} has no checkpoint yet")
        return 0
    titles = ("checkpoint", "size", "condition", "validation loss")
    widths = [max(len(line[column]) for line in (titles, *lines)) for column in range(3)]
    for line in (titles, *lines):
        print("  ".join([*(text.ljust(width) for text, width in zip(line, widths)), line[3]]))
    return 1 if unusable else 0


def _size(path: Path) -> str:
    try:
        return tqdm.format_sizeof(sum(file.stat().st_size for file in path.iterdir()), "B", 1024)
    except OSError:
        return "-"


if __name__ == "__main__":
    command(main)
