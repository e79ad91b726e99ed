"""The flags of `amplify_ds.contacts`, and the check of their combinations."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from amplify_ds.inference.shared_options import DEVICE, INPUT, STRICT, add_reading

DESCRIPTION = """\
Predict contacts between residues with a logistic regression on the model's attention maps, fitted on a few proteins of
known structure (Rao et al. 2021, with 20 proteins). Two residues are in contact if their C-betas are less than 8 A
apart; pairs closer than 6 residues along the chain are ignored in fitting and evaluation.

  python -m amplify_ds.contacts fit --model exported/first --structures training/ --output head.json
  python -m amplify_ds.contacts evaluate --head head.json --structures test/ --csv precisions.csv
  python -m amplify_ds.contacts predict --head head.json --input proteins.fasta --output contacts.npz
  python -m amplify_ds.contacts predict --head head.json --structures 1abc.cif:A --plot contacts.png

`fit --help`, `evaluate --help` and `predict --help` show the flags. A head is stored as JSON, and works only with the
model that it was fitted to.
"""

STRUCTURES = """\
--structures: PDB or mmCIF, plain or gzip: a folder, FILE, or FILE:CHAIN if a file has several protein chains. The
sequence is that of the experiment (SEQRES or entity); residues without coordinates are ignored. In a file without it, a
jump in residue numbers counts as missing residues only if no peptide bond joins the neighbours. Structures that cannot
be used are left out and listed at the end; it is an error if none is left.
--contacts: a folder with one file for each protein NAME of --input: NAME.txt (one line "i j" per contact, residues
numbered from 1) or NAME.npy (a matrix of 1 for contact, 0 for no contact and -1 for unknown).
"""
EVALUATE = """\
Print the precision of the L, L/2 and L/5 most probable pairs, where L is the number of residues with coordinates, at
short (6 to 11), medium (12 to 23) and long (24 or more) range: the mean over proteins and its standard error. The
column `chance` is the precision of a random ranking.

  python -m amplify_ds.contacts evaluate --head head.json --structures test/*.cif --json precisions.json
"""
FIT = """\
Fit the regression (L1 penalty, liblinear) to proteins of known structure; about 20 are enough. Attention is computed
once per protein, in float32. It needs 40 bytes of memory for each pair of residues, layer and head: for 20 proteins of
250 residues 6 GB with the 120M model and 12 GB with the 350M model. --pairs-per-protein reduces it.

  python -m amplify_ds.contacts fit --model chandar-lab/AMPLIFY_120M --structures training/*.cif --output head.json
"""
PREDICT = """\
Write the contact probability of every pair of residues: an .npz with one float16 matrix per protein under its name, or
a plot of one protein. Probabilities of pairs closer than 6 residues along the chain are not meaningful. If the command
is interrupted, run it again to continue.

  python -m amplify_ds.contacts predict --head head.json --input proteins.fasta --output contacts.npz
"""


def parse() -> argparse.Namespace:
    """Return the arguments; `command` is fit, evaluate or predict. Exits if flags contradict each other."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="amplify_ds.contacts", description=DESCRIPTION, formatter_class=raw)
    commands = parser.add_subparsers(required=True, dest="command", metavar="fit|evaluate|predict")
    for name, text, add in (
        ("fit", FIT, _add_fit),
        ("evaluate", EVALUATE, _add_evaluate),
        ("predict", PREDICT, _add_predict),
    ):
        part = commands.add_parser(name, description=text, epilog=STRUCTURES, formatter_class=raw)
        add(part)
        _add_common(part)
    arguments = parser.parse_args()
    if message := _contradiction(arguments):
        commands.choices[arguments.command].error(message)
    return arguments


def _contradiction(arguments: argparse.Namespace) -> str | None:
    """Return an error message if flags are invalid together, else None."""
    if arguments.contacts and not arguments.input:
        return "--contacts needs --input"
    if arguments.command == "predict":
        if not (arguments.output or arguments.plot):
            return "give --output, --plot or both"
        if arguments.protein and not arguments.plot:
            return "--protein needs --plot"
    elif arguments.input and not arguments.contacts:
        return f"{arguments.command} needs known contacts: give --structures, or --contacts with --input"
    if arguments.command == "fit":
        pairs_valid = arguments.pairs_per_protein is None or arguments.pairs_per_protein > 0
        if not 0 < arguments.inverse_strength < math.inf or not pairs_valid or not 0 <= arguments.seed < 2**32:
            return "--inverse-strength and --pairs-per-protein must be positive, --seed must be 0 to 4294967295"
    return None


def _add_common(parser: argparse.ArgumentParser) -> None:
    proteins = parser.add_mutually_exclusive_group(required=True)
    proteins.add_argument("--structures", nargs="+", metavar="PATH", help="proteins of known structure, see below")
    proteins.add_argument("--input", metavar="INPUT", help=INPUT)
    parser.add_argument("--contacts", type=Path, metavar="FOLDER", help="known contacts of --input, see below")
    parser.add_argument("--skip-long", action="store_true", help="leave out proteins longer than the model's limit")
    parser.add_argument("--strict", action="store_true", help=STRICT)
    add_reading(parser)
    parser.add_argument("--device", help=DEVICE)


def _add_head(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--head", required=True, type=Path, metavar="JSON", help="head written by `fit`")
    parser.add_argument(
        "--model", metavar="FOLDER_OR_HUB", help="model of the head (default: the folder or hub name given to `fit`)"
    )


def _add_fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        metavar="FOLDER_OR_HUB",
        help="a checkpoint, a run (its newest checkpoint), a model folder, or a model on the hub (owner/name)",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="JSON", help="file to write; it must not exist")
    parser.add_argument(
        "--inverse-strength",
        type=float,
        default=0.15,
        metavar="C",
        help="inverse strength of the L1 penalty (default: 0.15)",
    )
    parser.add_argument(
        "--pairs-per-protein",
        type=int,
        metavar="N",
        help="fit on N random pairs of each protein (default: all pairs)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the random pairs and of the solver (default: 0)"
    )


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_head(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON; it must not exist")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write one row per protein; it must not exist")


def _add_predict(parser: argparse.ArgumentParser) -> None:
    _add_head(parser)
    parser.add_argument("--output", type=Path, metavar="NPZ", help="file to write; it must not exist")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="PNG",
        help="plot to write; it must not exist; known contacts are shown below the diagonal",
    )
    parser.add_argument("--protein", metavar="NAME", help="protein to plot, if there are several")
