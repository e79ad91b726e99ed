"""Measure speed and memory on this machine: `python -m amplify_ds.benchmark PART`."""

from __future__ import annotations

import argparse

from amplify_ds.benchmarks import convergence, embed, growth, loader, prep, start, train
from amplify_ds.errors import command

PARTS = {
    "prep": (prep, "data preparation: speed, memory, scaling"),
    "loader": (loader, "training batches per second, compared with Hugging Face's collator"),
    "train": (train, "training steps, compared with padded batches and with the matrix products alone"),
    "convergence": (convergence, "validation perplexity of the published recipe and of ours, by residues and by time"),
    "embed": (embed, "embeddings per second, compared with a padded loop"),
    "growth": (growth, "cost of a step as sequences, models, shards and ranks grow"),
    "start": (start, "time and memory to resume at a late step of a large data set"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="amplify_ds.benchmark", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    for name, (module, title) in PARTS.items():
        part = parts.add_parser(
            name, help=title, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(part)
    options = parser.parse_args()
    PARTS[options.part][0].run(options)
    return 0


if __name__ == "__main__":
    command(main)
