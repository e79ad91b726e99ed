"""Perplexity of models on packed shards: `python -m amplify_ds.evaluate --model … --data DIR`."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

from amplify_ds import bars
from amplify_ds.errors import AmplifyError, command, first_line

DESCRIPTION = """\
Score models on shards with frozen masks (15 % of the residues of each protein, chosen by the protein itself), under
two protocols that must not be mixed up:

  published   80/10/10 masking, comparable with the published 4.23 (120M) and 3.05 (350M); a tenth of the targets
              stand unmasked in the input, so copying alone scores well
  mask_only   every target is replaced by <mask>

Beside the models stands what residue frequencies alone score on the same positions. Several models and several sets of
shards make a table. A model of another family, such as ESM-2, reads the same proteins with the same residues masked,
through its own tokenizer; targets that one of the models has no token for are left out for all of them, and its
prediction is made among our tokens alone (amplify_ds/hub/others.py).

  python -m amplify_ds.evaluate --model runs/first --data shards/validation
  python -m amplify_ds.evaluate --model runs/120M --model chandar-lab/AMPLIFY_120M \\
      --model facebook/esm2_t30_150M_UR50D --data shards/uniprot --data shards/oas
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="amplify_ds.evaluate", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        metavar="MODEL",
        help="a checkpoint, a run (its newest checkpoint), a model folder in any layout, or NAME[@REVISION] on the "
        "hub; may be given several times",
    )
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        type=Path,
        metavar="DIR",
        help="shards, from data_prep/build_shards.py; may be given several times",
    )
    parser.add_argument("--max-rows", type=int, default=0, metavar="N", help="score the first N rows (default: all)")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 … (default: a GPU where there is one)")
    parser.add_argument("--json", action="store_true", help="print one JSON list of scores instead of text")
    arguments = parser.parse_args()
    if arguments.max_rows < 0:
        parser.error(f"--max-rows must be 0 (all) or more, found {arguments.max_rows}")
    for option in ("model", "data"):
        if len(given := getattr(arguments, option)) != len(set(given)):
            parser.error(f"--{option}: the same is given twice")

    import numpy as np
    import torch

    from amplify_ds.data.shards import Shards
    from amplify_ds.hub.others import scorable
    from amplify_ds.training.ranks import Ranks
    from amplify_ds.training.validation import PROTOCOLS, evaluate

    sets = {str(path): Shards(path) for path in arguments.data}
    models = [scorable(source) for source in arguments.model]
    targets = np.logical_and.reduce([model.known for model in models])
    device = _device(torch, arguments.device)
    ranks = Ranks(0, 1, device)
    rows = {name: min(arguments.max_rows or shards.num_rows, shards.num_rows) for name, shards in sets.items()}
    scores = []
    with bars.bar(total=2 * len(models) * sum(rows.values()), unit="row") as bar:
        for model in models:
            with torch.no_grad():
                logits = model.load(device)
                for (name, shards), protocol in itertools.product(sets.items(), PROTOCOLS):
                    found = evaluate(logits, shards, protocol, ranks, rows[name], progress=bar.update, targets=targets)
                    scores.append((name, model, found))
            del logits  # one model at a time in memory
    if arguments.json:
        table = [
            {"data": data, "model": model.name, "step": model.step, **score.as_dict()} for data, model, score in scores
        ]
        print(json.dumps(table, indent=1))
        return 0
    for name, shards in sets.items():
        _report(name, rows[name], shards, [(_title(model), score) for data, model, score in scores if data == name])
    return 0


def _device(torch, name: str | None):
    try:
        if name == "meta":
            raise RuntimeError("the meta device computes nothing")
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise AmplifyError(f"--device {name}: {first_line(error)}") from None
    return device


def _title(model) -> str:
    return model.name if model.step is None else f"{model.name} (step {model.step})"


def _report(data: str, rows: int, shards, scores: list) -> None:
    """One model in sentences, several as a table."""
    models = list(dict.fromkeys(model for model, _ in scores))
    first = scores[0][1]
    title = models[0] if len(models) == 1 else f"{len(models)} models"
    print(
        f"{title} on {rows} of {shards.num_rows} rows of {data}: {first.targets:,} targets in {first.windows:,} windows"
    )
    if len(models) == 1:
        print("\n".join(score.describe() for _, score in scores))
        return
    print("\n| model | protocol | perplexity | standard error | accuracy |\n|---|---|---|---|---|")
    for protocol in dict.fromkeys(score.protocol for _, score in scores):
        of_protocol = [(model, score) for model, score in scores if score.protocol == protocol]
        for model, score in of_protocol:
            error = score.perplexity * score.loss_se
            print(f"| {model} | {protocol} | {score.perplexity:.3f} | {error:.3f} | {score.accuracy:.1%} |")
        score = of_protocol[0][1]
        error = score.baseline_perplexity * score.baseline_loss_se
        print(f"| residue frequencies alone | {protocol} | {score.baseline_perplexity:.3f} | {error:.3f} | |")
    print()


if __name__ == "__main__":
    command(main)
