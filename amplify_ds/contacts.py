"""Contacts of residues from attention: `python -m amplify_ds.contacts fit|evaluate|predict …`."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from amplify_ds.errors import AmplifyError, command

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
sequence is that of the experiment; pairs of residues without coordinates are left out.
--contacts: a folder with NAME.txt (a line "i j" for each contact, residues from 1) or NAME.npy (a matrix of 1, 0 and
-1 for unknown) for each protein NAME of the FASTA file --input.
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


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="amplify_ds.contacts", description=DESCRIPTION, formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="fit|evaluate|predict")
    for name, work, text in (("fit", _fit, FIT), ("evaluate", _evaluate, EVALUATE), ("predict", _predict, PREDICT)):
        part = commands.add_parser(name, description=text, epilog=STRUCTURES, formatter_class=raw)
        part.set_defaults(work=work, command=name)
        model = "a checkpoint, a run (its newest), a model folder, or a model of the hub (owner/name)"
        if name == "fit":
            part.add_argument("--model", required=True, metavar="FOLDER_OR_HUB", help=model)
        else:
            part.add_argument("--head", required=True, type=Path, metavar="JSON", help="what `fit` wrote")
            part.add_argument("--model", metavar="FOLDER_OR_HUB", help=f"{model} (default: where `fit` found it)")
        proteins = part.add_mutually_exclusive_group(required=True)
        proteins.add_argument("--structures", nargs="+", metavar="PATH", help="proteins of known structure, see below")
        proteins.add_argument("--input", type=Path, metavar="FASTA", help="proteins; plain, gzip, zstd, xz …")
        part.add_argument("--contacts", type=Path, metavar="FOLDER", help="known contacts of --input, see below")
        part.add_argument("--skip-long", action="store_true", help="leave out proteins longer than the model's limit")
        part.add_argument("--strict", action="store_true", help="refuse letters that are no token (default: <unk>)")
        part.add_argument("--device", help="cpu, cuda, cuda:1 … (default: a GPU where there is one)")
        {"fit": _add_fit, "evaluate": _add_evaluate, "predict": _add_predict}[name](part)
    arguments = parser.parse_args()
    if arguments.contacts and not arguments.input:
        parser.error("--contacts are those of the proteins of --input")
    if arguments.command != "predict" and arguments.input and not arguments.contacts:
        parser.error(f"{arguments.command} needs known contacts: --structures, or --contacts beside --input")
    print("\n".join(arguments.work(parser, arguments)))
    return 0


def _add_fit(parser) -> None:
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


def _add_evaluate(parser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table, too; it must not exist")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a row for each protein; it must not exist")


def _add_predict(parser) -> None:
    parser.add_argument("--output", type=Path, metavar="NPZ", help="to write; it must not exist")
    parser.add_argument(
        "--plot", type=Path, metavar="PNG", help="to draw; it must not exist; known contacts stand below the diagonal"
    )
    parser.add_argument("--protein", metavar="NAME", help="to draw, where there are several")


def _fit(parser, arguments) -> list[str]:
    counted = arguments.pairs_per_protein is None or arguments.pairs_per_protein > 0
    if not 0 < arguments.inverse_strength < math.inf or not counted or not 0 <= arguments.seed < 2**32:
        parser.error("--inverse-strength and --pairs-per-protein must be above 0, --seed 0 to 4294967295")
    reader, targets, _ = _prepare(arguments, arguments.output)
    from amplify_ds.inference.contacts import head as heads
    from amplify_ds.inference.contacts.jobs import Fitting, fit_head

    settings = Fitting(arguments.inverse_strength, arguments.seed, arguments.pairs_per_protein)
    path = Path(arguments.model)
    name = str(path.resolve()) if path.exists() else arguments.model
    with _bar(len(targets), "proteins") as bar:
        head = fit_head(reader, name, targets, settings, bar.update)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    heads.save(head, arguments.output)
    used = sum(weight != 0 for row in head.weights for weight in row)
    return [
        f"wrote {arguments.output}: {used:,} of {len(head.weights) * len(head.weights[0]):,} heads are used, fitted on "
        f"{len(targets):,} proteins, {head.fit['contacts']:,} contacts among {head.fit['pairs']:,} pairs",
        f"next: python -m amplify_ds.contacts evaluate --head {arguments.output} --structures OTHER_PROTEINS",
    ]


def _evaluate(parser, arguments) -> list[str]:
    head = _head(arguments)
    reader, targets, _ = _prepare(arguments, arguments.json, arguments.csv)
    head.check_model(reader, str(arguments.head))
    from amplify_ds.files import write_json
    from amplify_ds.inference.contacts import jobs, precision

    seen = jobs.trained_on(head, targets)
    with _bar(len(targets), "proteins") as bar:
        found = list(jobs.evaluate(reader, head, targets, bar.update))
    summary = precision.summary([values for _, values in found])
    lines = [f"precision of contacts, mean over {len(found):,} proteins ± standard error", *precision.table(summary)]
    if seen:
        some = ", ".join(seen[:5]) + (" …" if len(seen) > 5 else "")
        lines.append(f"note: {len(seen):,} of these proteins trained the head, which flatters it: {some}")
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        jobs.write_precisions(arguments.csv, found)
        lines.append(f"wrote {arguments.csv}: a row for each protein")
    if arguments.json:
        content = {"head": str(arguments.head), "model": head.model, "fingerprint": head.fingerprint}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.json, content | {"proteins": len(found), "trained_on": seen, "precision": summary})
        lines.append(f"wrote {arguments.json}: the table")
    return lines


def _predict(parser, arguments) -> list[str]:
    if not (arguments.output or arguments.plot) or (arguments.protein and not arguments.plot):
        parser.error("give --output, --plot or both; --protein names the protein that --plot draws")
    head = _head(arguments)
    reader, targets, contents = _prepare(arguments, arguments.output, arguments.plot)
    head.check_model(reader, str(arguments.head))
    from amplify_ds.inference.contacts import jobs, picture

    drawn = _chosen(targets, arguments.protein) if arguments.plot else None
    lines = []
    if arguments.output:
        with _bar(len(targets), "proteins") as bar:
            jobs.predict_file(reader, head, targets, contents.sha256, arguments.output, bar.update)
        lines.append(f"wrote {arguments.output}: probabilities of contact of {len(targets):,} proteins, float16")
        lines.append(f'next: numpy.load("{arguments.output}")["{targets[0].name}"]: residue × residue, from 0')
    if drawn:
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        picture.draw(arguments.plot, drawn, jobs.predict(reader, head, drawn.tokens))
        lines.append(f"wrote {arguments.plot}: contacts of {drawn.name}, {len(drawn.tokens):,} residues")
    return lines


def _chosen(targets, name: str | None):
    if name is None and len(targets) > 1:
        raise AmplifyError(f"there are {len(targets):,} proteins; name the one to draw with --protein")
    found = next((target for target in targets if name in (None, target.name)), None)
    if found is None:
        raise AmplifyError(f"no protein is named {name!r}; the first is {targets[0].name!r}")
    return found


def _head(arguments):
    """The head; its own model is the default of --model."""
    from amplify_ds.inference.contacts.head import read

    head = read(arguments.head)
    arguments.model = arguments.model or head.model
    return head


def _prepare(arguments, *outputs: Path | None):
    """(reader, targets, contents): refuse outputs that exist, check the proteins, load the model."""
    from amplify_ds.inference.resumable import refuse_existing

    for output in filter(None, outputs):
        refuse_existing(output)
    from amplify_ds.inference.contacts.sources import from_fasta, from_structures
    from amplify_ds.inference.contacts.targets import fitting
    from amplify_ds.inference.model import load
    from amplify_ds.inference.reading import describe_unknown

    with _bar(None, "read") as bar:
        if arguments.structures:
            targets, contents = from_structures(arguments.structures, bar.update, arguments.strict)
        else:
            targets, contents = from_fasta(arguments.input, arguments.contacts, bar.update, arguments.strict)
    reader = load(arguments.model, arguments.device, "fp32")
    targets, note = fitting(targets, reader.max_length, arguments.skip_long)
    for line in filter(None, (describe_unknown(contents), note)):
        print(f"note: {line}", file=sys.stderr)
    return reader, targets, contents


def _bar(total: int | None, unit: str):
    from tqdm import tqdm

    return tqdm(total=total, unit=f" {unit}", disable=not sys.stderr.isatty(), leave=total is not None)


if __name__ == "__main__":
    command(main)
