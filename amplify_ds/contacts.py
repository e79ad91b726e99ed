"""Contacts between residues from attention maps: `python -m amplify_ds.contacts fit|evaluate|predict …`."""

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
    run = {"fit": _fit, "evaluate": _evaluate, "predict": _predict}[arguments.command]
    left_out: dict[str, str] = {}  # {name: reason} of structures that cannot be used
    try:
        print("\n".join(run(arguments, left_out)))
    finally:  # last, so that the user sees it, and also after an error
        if left_out:
            from amplify_ds.inference.contacts.sources import describe_left_out

            print(f"note: left out: {describe_left_out(left_out)}", file=sys.stderr)
    return 0


def _fit(arguments, left_out: dict[str, str]) -> list[str]:
    require("sklearn", "fitting a head")
    reader, targets, _ = _prepare(arguments, left_out, arguments.output)
    from amplify_ds.inference.contacts import head as heads
    from amplify_ds.inference.contacts.fitting import FitSettings, fit_head

    settings = FitSettings(arguments.inverse_strength, arguments.seed, arguments.pairs_per_protein)
    path = Path(arguments.model)
    name = str(path.resolve()) if path.exists() else arguments.model
    with _bar(len(targets), "proteins") as bar:
        head = fit_head(reader, name, targets, settings, bar.update, list(left_out))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    heads.save(head, arguments.output)
    used = sum(weight != 0 for row in head.weights for weight in row)
    warning = (
        "note: all weights are 0: no attention head predicts the contacts, so every pair gets the same probability"
    )
    return [
        *([] if used else [warning]),
        (
            f"wrote {arguments.output}: {used:,} of {len(head.weights) * len(head.weights[0]):,} heads are used, "
            f"fitted on {len(targets):,} proteins, {head.fit['contacts']:,} contacts among {head.fit['pairs']:,} pairs"
        ),
        next_commands((*EVALUATE, "--head", arguments.output, "--structures", "OTHER_PROTEINS")),
    ]


def _evaluate(arguments, left_out: dict[str, str]) -> list[str]:
    head = _read_head(arguments)
    reader, targets, _ = _prepare(arguments, left_out, arguments.json, arguments.csv)
    head.check_model(reader, str(arguments.head))
    from amplify_ds.files import write_json
    from amplify_ds.inference.contacts import fitting, precision

    seen = fitting.trained_on(head, targets)
    with _bar(len(targets), "proteins") as bar:
        results = list(fitting.evaluate(reader, head, targets, bar.update))
    summary = precision.summary([values for _, values in results])
    lines = [f"precision of contacts, mean over {len(results):,} proteins ± standard error", *precision.table(summary)]
    if seen:
        first = ", ".join(seen[:5]) + (" …" if len(seen) > 5 else "")
        lines.append(
            f"note: the head was fitted on {len(seen):,} of these proteins, so the precision is too optimistic: {first}"
        )
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        fitting.write_precisions(arguments.csv, results)
        lines.append(f"wrote {arguments.csv}: one row per protein")
    if arguments.json:
        content = {"head": str(arguments.head), "model": head.model, "fingerprint": head.fingerprint}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        content |= {"proteins": len(results), "left_out": list(left_out), "trained_on": seen, "precision": summary}
        write_json(arguments.json, content)
        lines.append(f"wrote {arguments.json}: the table")
    return lines


def _predict(arguments, left_out: dict[str, str]) -> list[str]:
    if arguments.plot:
        require("matplotlib", "--plot")
    head = _read_head(arguments)
    reader, targets, stats = _prepare(arguments, left_out, arguments.output, arguments.plot)
    head.check_model(reader, str(arguments.head))
    from amplify_ds.inference.contacts import fitting, picture

    plotted = _choose(targets, arguments.protein) if arguments.plot else None
    lines = []
    if arguments.output:
        with _bar(len(targets), "proteins") as bar:
            names = fitting.predict_file(reader, head, targets, stats.sha256, arguments.output, bar.update)
        if changed := [(old.name, new) for old, new in zip(targets, names) if old.name != new]:
            first = ", ".join(f"{old!r:.60} is now {new!r:.60}" for old, new in changed[:5])
            more = " …" if len(changed) > 5 else ""
            lines.append(f"note: {len(changed):,} names are not valid file names and were changed: {first}{more}")
        lines.append(f"wrote {arguments.output}: contact probabilities of {len(targets):,} proteins, float16")
        lines.append(f"next: numpy.load({str(arguments.output)!r})[{names[0]!r}]: residue × residue, from 0")
    if plotted:
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        picture.draw(arguments.plot, plotted, fitting.predict(reader, head, plotted.tokens))
        lines.append(f"wrote {arguments.plot}: contacts of {plotted.name}, {len(plotted.tokens):,} residues")
    return lines


def _choose(targets, name: str | None):
    """Return the target to plot. Raises AmplifyError if the name is missing or unknown."""
    if name is None and len(targets) > 1:
        raise AmplifyError(f"there are {len(targets):,} proteins; choose the one to plot with --protein")
    target = next((target for target in targets if name in (None, target.name)), None)
    if target is None:
        raise AmplifyError(f"no protein is named {name!r}; the first is {targets[0].name!r}")
    return target


def _read_head(arguments):
    """Return the head. If --model is not given, set it to the model that the head was fitted to."""
    from amplify_ds.inference.contacts.head import read

    head = read(arguments.head)
    arguments.model = arguments.model or head.model
    return head


def _prepare(arguments, left_out: dict[str, str], *outputs: Path | None):
    """Refuse existing outputs, check the proteins and load the model. Return (reader, targets, stats).

    Adds {name: reason} of each structure that cannot be used to `left_out`.
    """
    from amplify_ds.inference.resumable import refuse_existing

    for output in filter(None, outputs):
        refuse_existing(output)
    from amplify_ds.inference.contacts.sources import from_records, from_structures
    from amplify_ds.inference.contacts.targets import limit_length
    from amplify_ds.inference.model import load
    from amplify_ds.inference.reading import describe_unknown
    from amplify_ds.inference.shared_options import records_from

    with _bar(None, "read") as bar:
        if arguments.structures:
            targets, stats = from_structures(arguments.structures, bar.update, arguments.strict, left_out)
        else:
            targets, stats = from_records(records_from(arguments), arguments.contacts, bar.update, arguments.strict)
    reader = load(arguments.model, arguments.device, "fp32")
    targets, note = limit_length(targets, reader.max_length, arguments.skip_long)
    for line in filter(None, (describe_unknown(stats), note)):
        print(f"note: {line}", file=sys.stderr)
    return reader, targets, stats


def _bar(total: int | None, unit: str):
    return bars.bar(total=total, unit=f" {unit}", leave=total is not None)


if __name__ == "__main__":
    command(main)
