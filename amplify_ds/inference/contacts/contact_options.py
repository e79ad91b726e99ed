"""The flags of `amplify_ds.contacts`, and which of them go together."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from amplify_ds.inference.shared_options import INPUT, add_reading

DESCRIPTION = """\
Which residues of a protein touch? A logistic regression on the model's attention maps says, after a few proteins of
known structure have shown it which heads to listen to (Rao et al. 2021; 20 proteins there). Two residues are in
contact where their C-betas are less than 8 A apart; pairs nearer than 6 along the chain neither train nor count.

  python -m amplify_ds.contacts fit --model exported/first --structures training/ --output head.json
  python -m amplify_ds.contacts evaluate --head head.json --structures test/ --csv precisions.csv
  python -m amplify_ds.contacts predict --head head.json --input proteins.fasta --output contacts.npz
  python -m amplify_ds.contacts predict --head head.json --structures 1abc.cif:A --plot contacts.png

`fit --help` and so on show the flags. The file of a head is JSON, and is refused for another model than its own.
"""

STRUCTURES = """\
--structures: PDB or mmCIF, plain or gzip: a folder, FILE, or FILE:CHAIN where a file has several protein chains. The
sequence is that of the experiment; pairs of residues without coordinates are left out. Without SEQRES, numbers that
skip are missing residues only where no peptide bond joins the neighbors. Structures that cannot be used are left out
and listed at the end; if none is left, this is an error.
--contacts: a folder with NAME.txt (a line "i j" for each contact, residues from 1) or NAME.npy (a matrix of 1, 0 and
-1 for unknown) for each protein NAME of --input.
"""
EVALUATE = """\
Precision of the L, L/2 and L/5 likeliest pairs, L residues with coordinates, at short (6 to 11), medium (12 to 23) and
long (24 and more) range: the mean over proteins and its standard error. chance: the precision of knowing nothing.

  python -m amplify_ds.contacts evaluate --head head.json --structures test/*.cif --json precisions.json
"""
FIT = """\
Fit the regression (L1 penalty, liblinear) to proteins of known structure: about 20 will do. Attention is computed once
a protein, in float32. Memory: 40 bytes for each pair of residues, layer and head, which for 20 proteins of 250 residues
is 6 GB with the 120M and 12 GB with the 350M; --pairs-per-protein makes it less.

  python -m amplify_ds.contacts fit --model chandar-lab/AMPLIFY_120M --structures training/*.cif --output head.json
"""
PREDICT = """\
Probabilities of contact for every pair of residues: an .npz with a float16 matrix for each protein under its name, or a
picture of one. Nearer than 6 along the chain they mean little. Interrupted, the same command continues.

  python -m amplify_ds.contacts predict --head head.json --input proteins.fasta --output contacts.npz
"""


def parse() -> argparse.Namespace:
    """What the user wants; `command` is fit, evaluate or predict. Ends the process where flags do not go together."""
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
    if wrong := _contradiction(arguments):
        commands.choices[arguments.command].error(wrong)
    return arguments


def _contradiction(arguments: argparse.Namespace) -> str | None:
    if arguments.contacts and not arguments.input:
        return "--contacts are those of the proteins of --input"
    if arguments.command == "predict":
        if not (arguments.output or arguments.plot) or (arguments.protein and not arguments.plot):
            return "give --output, --plot or both; --protein names the protein that --plot draws"
    elif arguments.input and not arguments.contacts:
        return f"{arguments.command} needs known contacts: --structures, or --contacts beside --input"
    if arguments.command == "fit":
        counted = arguments.pairs_per_protein is None or arguments.pairs_per_protein > 0
        if not 0 < arguments.inverse_strength < math.inf or not counted or not 0 <= arguments.seed < 2**32:
            return "--inverse-strength and --pairs-per-protein must be above 0, --seed 0 to 4294967295"
    return None


def _add_common(parser: argparse.ArgumentParser) -> None:
    proteins = parser.add_mutually_exclusive_group(required=True)
    proteins.add_argument("--structures", nargs="+", metavar="PATH", help="proteins of known structure, see below")
    proteins.add_argument("--input", metavar="INPUT", help=INPUT)
    parser.add_argument("--contacts", type=Path, metavar="FOLDER", help="known contacts of --input, see below")
    parser.add_argument("--skip-long", action="store_true", help="leave out proteins longer than the model's limit")
    parser.add_argument("--strict", action="store_true", help="refuse letters that are no token (default: <unk>)")
    add_reading(parser)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 … (default: a GPU where there is one)")


def _add_head(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--head", required=True, type=Path, metavar="JSON", help="what `fit` wrote")
    parser.add_argument("--model", metavar="FOLDER_OR_HUB", help="its model (default: where `fit` found it)")


def _add_fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        metavar="FOLDER_OR_HUB",
        help="a checkpoint, a run (its newest), a model folder, or a model of the hub (owner/name)",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="JSON", help="to write; it must not exist")
    parser.add_argument(
        "--inverse-strength", type=float, default=0.15, metavar="C", help="of the L1 penalty (default: 0.15)"
    )
    parser.add_argument(
        "--pairs-per-protein",
        type=int,
        metavar="N",
        help="fit on N pairs of each, drawn at random (default: all)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of that draw and of the solver (default: 0)")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_head(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table, too; it must not exist")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a row for each protein; it must not exist")


def _add_predict(parser: argparse.ArgumentParser) -> None:
    _add_head(parser)
    parser.add_argument("--output", type=Path, metavar="NPZ", help="to write; it must not exist")
    parser.add_argument(
        "--plot", type=Path, metavar="PNG", help="to draw; it must not exist; known contacts stand below the diagonal"
    )
    parser.add_argument("--protein", metavar="NAME", help="to draw, where there are several")
