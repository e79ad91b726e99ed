"""Pretraining of the AMPLIFY protein language model with DeepSpeed, and inference with it.

    amplify_ds.embed(model, sequences)                embeddings
    amplify_ds.score(model, sequences)                pseudo-perplexities
    amplify_ds.mutation_effects(model, protein, …)    effects of mutations
    amplify_ds.contacts(model, head, sequences)       probabilities of contacts between residues
    amplify_ds.load(model)                            a loaded model, which the functions above accept

These functions are imported on first use, because the commands of the same names are run as modules.
"""

import sys

from amplify_ds import start

if start.is_command(sys.argv, sys.orig_argv):
    start.begin()

__version__ = "0.1.0"

_MODULES = {"embed": "api", "score": "api", "mutation_effects": "api", "contacts": "api", "load": "model"}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"amplify_ds.inference.{_MODULES[name]}"), name)
