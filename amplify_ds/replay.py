"""Show the batch of a step: `python -m amplify_ds.replay RUN --step S`."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from amplify_ds.errors import command
from amplify_ds.files import write_json
from amplify_ds.vocab import MASK, decode

DESCRIPTION = """\
Rebuild the batch of a training step from run.json and the training shards, and print it: every row with its source
and epoch, every protein with its targets. One CPU is enough; a batch does not depend on the number of GPUs, of loader
workers or of rows per micro batch.

  python -m amplify_ds.replay runs/first --step 1200
  python -m amplify_ds.replay runs/first --step 1200 --rows 0 7 --json batch.json

Step S is the S-th optimizer step, counted from 1, as on the x-axis of TensorBoard. Skipped batches, which are not
steps, and skipped rows are looked up in the newest checkpoint of RUN.
"""
LEGEND = "lower case: a target that is <mask> in the input; [A>K]: target A, K in the input; [A]: target A, unchanged"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="amplify_ds.replay", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run directory")
    parser.add_argument("--step", metavar="S", type=int, required=True, help="optimizer step, counted from 1")
    parser.add_argument(
        "--rows", metavar="I", type=int, nargs="+", default=[], help="only these rows of the batch, counted from 0"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the batch to FILE")
    parser.add_argument(
        "--data.train",
        dest="data",
        metavar="[NAME=]DIR[:WEIGHT]",
        nargs="+",
        default=[],
        help="the training shards, if they have moved",
    )
    arguments = parser.parse_args()
    from amplify_ds.training.past_batches import rebuild  # takes seconds to import

    batch = rebuild(arguments.run, arguments.step, arguments.rows, arguments.data)
    print(describe(batch))
    if arguments.json:
        write_json(arguments.json, as_json(batch))
        print(f"wrote {arguments.json}")
    return 0


def describe(batch) -> str:
    """Return the batch as text."""
    sources = ", ".join(f"{count} of {name}" for name, count in Counter(batch.sources).items())
    shown = f"; {len(batch.rows)} of them follow" if len(batch.rows) < len(batch.sources) else ""
    lines = [
        f"step {batch.step}: batch {batch.index}, {len(batch.sources)} rows of {batch.row_tokens:,} tokens ({sources})"
        + shown,
        (
            f"{sum(row.tokens for row in batch.rows):,} tokens, {sum(row.residues for row in batch.rows):,} residues, "
            f"{sum(row.targets for row in batch.rows):,} targets"
        ),
        LEGEND,
    ]
    for row in batch.rows:
        lines += [
            "",
            (
                f"row {row.number}: row {row.row:,} of {row.source}, epoch {row.epoch}; {row.tokens:,} tokens, "
                f"{len(row.windows)} proteins, {row.targets:,} targets"
            ),
        ]
        for number, window in enumerate(row.windows):
            targets = [f"{p} {decode([t])}" for p, t in zip(window.positions.tolist(), window.labels.tolist())]
            lines.append(f"  {number:>3}  {marked(window)}")
            lines.append(f"       {len(window.tokens)} tokens; targets {', '.join(targets) or 'none'}")
    return "\n".join(lines)


def marked(window) -> str:
    """Return the protein as text, with its targets marked as described in LEGEND."""
    targets = set(window.positions.tolist())
    text = []
    for position, (token, input_id) in enumerate(zip(window.tokens.tolist(), window.input_ids.tolist())):
        name = decode([token])
        if position not in targets:
            text.append(name)
        elif input_id == MASK and name.isupper():
            text.append(name.lower())
        else:
            text.append(f"[{name}]" if input_id == token else f"[{name}>{decode([input_id])}]")
    return "".join(text)


def as_json(batch) -> dict:
    """Return the whole batch for JSON. Positions are counted from 0 in each protein, including <bos>."""
    return {
        "step": batch.step,
        "batch": batch.index,
        "row_tokens": batch.row_tokens,
        "sources": batch.sources,
        "rows": [
            {
                "number": row.number,
                "source": row.source,
                "row": row.row,
                "epoch": row.epoch,
                "tokens": row.tokens,
                "residues": row.residues,
                "targets": row.targets,
                "windows": [
                    {
                        "text": decode(window.tokens.tolist()),
                        "input_ids": window.input_ids.tolist(),
                        "positions": window.positions.tolist(),
                        "labels": window.labels.tolist(),
                    }
                    for window in row.windows
                ],
            }
            for row in batch.rows
        ],
    }


if __name__ == "__main__":
    command(main)
