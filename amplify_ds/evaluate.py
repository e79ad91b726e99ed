"""Perplexity of models on packed shards: `python -m amplify_ds.evaluate --model … --data DIR`."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

from amplify_ds import bars
from amplify_ds.errors import AmplifyError, command, first_line

DESCRIPTION = """\
Print the perplexity of models on shards with fixed masks (15 % of the residues of each protein, which depend on the
protein only), under two protocols that are not comparable with each other:

  published   80/10/10 masking, comparable with the published 4.23 (120M) and 3.05 (350M); a tenth of the targets
              are visible in the input, so copying alone scores well
  mask_only   every target is replaced by <mask>

The perplexity of residue frequencies at the same positions is shown for comparison. Several models are compared in a
table, one for each set of shards. A model of another family, such as ESM-2, reads the same proteins with the same
residues masked, through its own tokenizer. Targets for which a model has no token are skipped for all models, and the
probabilities of such a model are normalised over AMPLIFY's tokens (amplify_ds/hub/others.py).

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
        "hub; can be given several times",
    )
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        type=Path,
        metavar="DIR",
        help="shards from data_prep/build_shards.py; can be given several times",
    )
    parser.add_argument("--max-rows", type=int, default=0, metavar="N", help="score the first N rows (default: all)")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 … (default: a GPU if there is one)")
    parser.add_argument("--json", action="store_true", help="print one JSON list of scores instead of text")
    arguments = parser.parse_args()
    if arguments.max_rows < 0:
        parser.error(f"--max-rows must be 0 (all) or more, found {arguments.max_rows}")
    for option in ("model", "data"):
        if len(values := getattr(arguments, option)) != len(set(values)):
            parser.error(f"--{option}: a value appears twice")

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
                    score = evaluate(logits, shards, protocol, ranks, rows[name], progress=bar.update, targets=targets)
                    scores.append((name, model, score))
            del logits  # keep only one model in memory
    if arguments.json:
        table = [
            {"data": data, "model": model.name, "step": model.step, **score.as_dict()} for data, model, score in scores
        ]
        print(json.dumps(table, indent=1))
        return 0
    for name, shards in sets.items():
        _print_scores(
            name, rows[name], shards, [(_title(model), score) for data, model, score in scores if data == name]
        )
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


def _print_scores(data: str, rows: int, shards, scores: list) -> None:
    """Print the scores of one model as text, those of several as a table."""
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
        rows_of_table = [(model, score) for model, score in scores if score.protocol == protocol]
        for model, score in rows_of_table:
            error = score.perplexity * score.loss_se
            print(f"| {model} | {protocol} | {score.perplexity:.3f} | {error:.3f} | {score.accuracy:.1%} |")
        score = rows_of_table[0][1]
        error = score.baseline_perplexity * score.baseline_loss_se
        print(f"| residue frequencies alone | {protocol} | {score.baseline_perplexity:.3f} | {error:.3f} | |")
    print()


if __name__ == "__main__":
    command(main)
