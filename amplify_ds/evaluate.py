"""Perplexity of a model on packed shards: `python -m amplify_ds.evaluate --model … --data DIR`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from amplify_ds.errors import command

DESCRIPTION = """\
Score a model on shards with frozen masks (15 % of the residues of each protein, chosen by the protein itself), under
two protocols that must not be mixed up:

  published   80/10/10 masking, comparable with the published 4.23 (120M) and 3.05 (350M); a tenth of the targets
              stand unmasked in the input, so copying alone scores well
  mask_only   every target is replaced by <mask>

Beside the model stands what residue frequencies alone score on the same positions.

  python -m amplify_ds.evaluate --model runs/first --data shards/validation
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="amplify_ds.evaluate", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, metavar="MODEL",
        help="a checkpoint, a run (its newest checkpoint), a model folder in any layout, or NAME[@REVISION] on the hub",
    )  # fmt: skip
    parser.add_argument(
        "--data", required=True, type=Path, metavar="DIR", help="shards, from data_prep/build_shards.py"
    )
    parser.add_argument("--max-rows", type=int, default=0, metavar="N", help="score the first N rows (default: all)")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 … (default: a GPU where there is one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    arguments = parser.parse_args()

    import torch

    from amplify_ds.data.shards import Shards
    from amplify_ds.hub.folder import load_model
    from amplify_ds.training.evaluate import PROTOCOLS, evaluate

    if arguments.max_rows < 0:
        parser.error(f"--max-rows must be 0 (all) or more, found {arguments.max_rows}")
    shards = Shards(arguments.data)
    model = load_model(arguments.model)
    try:
        device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {arguments.device}: {str(error).splitlines()[0]}")

    def logits(**inputs):
        with torch.no_grad():
            return model(**inputs).logits

    rows = min(arguments.max_rows or shards.num_rows, shards.num_rows)
    with tqdm(total=2 * rows, unit="row", disable=not sys.stderr.isatty()) as bar:
        scores = [evaluate(logits, shards, p, device, rows, progress=bar.update) for p in PROTOCOLS]
    if arguments.json:
        print(json.dumps({score.protocol: score.as_dict() for score in scores}, indent=1))
        return 0
    first = scores[0]
    print(
        f"{arguments.model} on {rows} of {shards.num_rows} rows of {arguments.data}: {first.targets:,} targets in "
        f"{first.windows:,} windows"
    )
    for score in scores:
        print(score.describe())
    return 0


if __name__ == "__main__":
    command(main)
