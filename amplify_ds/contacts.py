"""Contacts of residues from attention: `python -m amplify_ds.contacts fit|evaluate|predict …`."""

from __future__ import annotations

import sys
from pathlib import Path

from amplify_ds import bars
from amplify_ds.errors import AmplifyError, command
from amplify_ds.extras import require
from amplify_ds.inference.contacts.contact_options import parse
from amplify_ds.shell import next_commands

EVALUATE = ("python", "-m", "amplify_ds.contacts", "evaluate")


def main() -> int:
    arguments = parse()
    work = {"fit": _fit, "evaluate": _evaluate, "predict": _predict}[arguments.command]
    left_out: dict[str, str] = {}  # structures that cannot be used, and why
    try:
        print("\n".join(work(arguments, left_out)))
    finally:  # at the end, where they are seen; also if something else fails
        if left_out:
            from amplify_ds.inference.contacts.sources import describe_left_out

            print(f"note: left out: {describe_left_out(left_out)}", file=sys.stderr)
    return 0


def _fit(arguments, left_out: dict[str, str]) -> list[str]:
    require("sklearn", "fitting a head")
    reader, targets, _ = _prepare(arguments, left_out, arguments.output)
    from amplify_ds.inference.contacts import head as heads
    from amplify_ds.inference.contacts.fitting import Fitting, fit_head

    settings = Fitting(arguments.inverse_strength, arguments.seed, arguments.pairs_per_protein)
    path = Path(arguments.model)
    name = str(path.resolve()) if path.exists() else arguments.model
    with _bar(len(targets), "proteins") as bar:
        head = fit_head(reader, name, targets, settings, bar.update, list(left_out))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    heads.save(head, arguments.output)
    used = sum(weight != 0 for row in head.weights for weight in row)
    none = "note: no head of this model tells contacts of these proteins from other pairs; all pairs will be alike"
    return [
        *([] if used else [none]),
        (
            f"wrote {arguments.output}: {used:,} of {len(head.weights) * len(head.weights[0]):,} heads are used, "
            f"fitted on {len(targets):,} proteins, {head.fit['contacts']:,} contacts among {head.fit['pairs']:,} pairs"
        ),
        next_commands((*EVALUATE, "--head", arguments.output, "--structures", "OTHER_PROTEINS")),
    ]


def _evaluate(arguments, left_out: dict[str, str]) -> list[str]:
    head = _head(arguments)
    reader, targets, _ = _prepare(arguments, left_out, arguments.json, arguments.csv)
    head.check_model(reader, str(arguments.head))
    from amplify_ds.files import write_json
    from amplify_ds.inference.contacts import fitting, precision

    seen = fitting.trained_on(head, targets)
    with _bar(len(targets), "proteins") as bar:
        found = list(fitting.evaluate(reader, head, targets, bar.update))
    summary = precision.summary([values for _, values in found])
    lines = [f"precision of contacts, mean over {len(found):,} proteins ± standard error", *precision.table(summary)]
    if seen:
        some = ", ".join(seen[:5]) + (" …" if len(seen) > 5 else "")
        lines.append(f"note: {len(seen):,} of these proteins trained the head, which flatters it: {some}")
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        fitting.write_precisions(arguments.csv, found)
        lines.append(f"wrote {arguments.csv}: a row for each protein")
    if arguments.json:
        content = {"head": str(arguments.head), "model": head.model, "fingerprint": head.fingerprint}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        content |= {"proteins": len(found), "left_out": list(left_out), "trained_on": seen, "precision": summary}
        write_json(arguments.json, content)
        lines.append(f"wrote {arguments.json}: the table")
    return lines


def _predict(arguments, left_out: dict[str, str]) -> list[str]:
    if arguments.plot:
        require("matplotlib", "--plot")
    head = _head(arguments)
    reader, targets, contents = _prepare(arguments, left_out, arguments.output, arguments.plot)
    head.check_model(reader, str(arguments.head))
    from amplify_ds.inference.contacts import fitting, picture

    drawn = _chosen(targets, arguments.protein) if arguments.plot else None
    lines = []
    if arguments.output:
        with _bar(len(targets), "proteins") as bar:
            names = fitting.predict_file(reader, head, targets, contents.sha256, arguments.output, bar.update)
        if changed := [(old.name, new) for old, new in zip(targets, names) if old.name != new]:
            some = ", ".join(f"{old!r:.60} is {new!r:.60}" for old, new in changed[:5])
            more = " …" if len(changed) > 5 else ""
            lines.append(f"note: {len(changed):,} names cannot be file names and were changed: {some}{more}")
        lines.append(f"wrote {arguments.output}: probabilities of contact of {len(targets):,} proteins, float16")
        lines.append(f"next: numpy.load({str(arguments.output)!r})[{names[0]!r}]: residue × residue, from 0")
    if drawn:
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        picture.draw(arguments.plot, drawn, fitting.predict(reader, head, drawn.tokens))
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


def _prepare(arguments, left_out: dict[str, str], *outputs: Path | None):
    """(reader, targets, contents): refuse outputs that exist, check the proteins, load the model.

    left_out: {name: why} is added of structures that cannot be used.
    """
    from amplify_ds.inference.resumable import refuse_existing

    for output in filter(None, outputs):
        refuse_existing(output)
    from amplify_ds.inference.contacts.sources import from_records, from_structures
    from amplify_ds.inference.contacts.targets import fitting
    from amplify_ds.inference.model import load
    from amplify_ds.inference.reading import describe_unknown
    from amplify_ds.inference.shared_options import records_from

    with _bar(None, "read") as bar:
        if arguments.structures:
            targets, contents = from_structures(arguments.structures, bar.update, arguments.strict, left_out)
        else:
            targets, contents = from_records(records_from(arguments), arguments.contacts, bar.update, arguments.strict)
    reader = load(arguments.model, arguments.device, "fp32")
    targets, note = fitting(targets, reader.max_length, arguments.skip_long)
    for line in filter(None, (describe_unknown(contents), note)):
        print(f"note: {line}", file=sys.stderr)
    return reader, targets, contents


def _bar(total: int | None, unit: str):
    return bars.bar(total=total, unit=f" {unit}", leave=total is not None)


if __name__ == "__main__":
    command(main)
