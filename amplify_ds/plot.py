"""Draw a run's losses and perplexities from its TensorBoard events: `python -m amplify_ds.plot RUN`."""

from __future__ import annotations

import argparse
from pathlib import Path

from amplify_ds.errors import AmplifyError, command
from amplify_ds.extras import CURVES, pyplot
from amplify_ds.files import replacing
from amplify_ds.shell import next_commands

DESCRIPTION = """\
Draw training_loss.png, validation_loss.png and validation_ppl.png from the TensorBoard events of a run.

  python -m amplify_ds.plot runs/first
"""
PROTOCOL_TITLES = {"published": "80/10/10 masking", "mask_only": "<mask> only"}


def read_scalars(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return {tag: (steps, values)} for all events of a run, without those that a resumed run has replaced."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
    from tensorboard.util.tb_logging import get_logger

    get_logger().setLevel("ERROR")  # it warns at each resumption of a run
    folder = run / "events"
    if not folder.is_dir():
        raise AmplifyError(f"{run}: no TensorBoard events (expected {folder}); is it a run directory?")
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    events.Reload()
    series = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    return {tag: ([p.step for p in points], [p.value for p in points]) for tag, points in series.items()}


def draw(run: Path, output: Path) -> list[Path]:
    """Write the three figures to `output` and return their paths. Raises AmplifyError if no loss was logged."""
    plt = pyplot()
    scalars = read_scalars(run)
    if "train/loss" not in scalars:
        raise AmplifyError(f"{run}: its events contain no training loss yet")
    with plt.rc_context(CURVES):
        figures = [
            _figure(
                plt,
                [("training", *scalars["train/loss"], "C0", "-")],
                "Training loss",
                "loss (nats per masked residue)",
            ),
            _figure(plt, _validation(scalars, "loss"), "Validation loss", "loss (nats per masked residue)"),
            _figure(plt, _validation(scalars, "perplexity"), "Validation perplexity", "perplexity"),
        ]
        paths = [output / name for name in ("training_loss.png", "validation_loss.png", "validation_ppl.png")]
        output.mkdir(parents=True, exist_ok=True)
        for figure, path in zip(figures, paths):
            with replacing(path) as partial:
                figure.savefig(partial, format="png")
            plt.close(figure)
    return paths


def _validation(scalars, quantity: str) -> list[tuple]:
    """Return a line for each validation set and protocol, and a dashed line for its baseline of residue frequencies.

    A line is (label, steps, values, colour, format of matplotlib).
    """
    lines = []
    names = sorted({tag.split("/")[1] for tag in scalars if tag.startswith("validation/")})
    pairs = [(name, protocol) for protocol in PROTOCOL_TITLES for name in names]
    for number, (name, protocol) in enumerate(pairs):
        title = f"{name}, {PROTOCOL_TITLES[protocol]}" if len(names) > 1 else PROTOCOL_TITLES[protocol]
        tag = f"validation/{name}/{protocol}/"
        if tag + quantity in scalars:
            lines.append((f"model, {title}", *scalars[tag + quantity], f"C{number}", "o-"))
            lines.append((f"residue frequencies, {title}", *scalars[f"{tag}baseline_{quantity}"], f"C{number}", "--"))
    return lines


def _figure(plt, lines: list[tuple], title: str, ylabel: str):
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for label, steps, values, colour, form in lines:
        axes.plot(steps, values, form, color=colour, label=label, markersize=4)
    axes.set(title=title, xlabel="optimizer step", ylabel=ylabel)
    axes.margins(x=0.02)
    if len(lines) > 1:
        axes.legend(fontsize=9)
    elif not lines:
        axes.text(0.5, 0.5, "the run has no validation set", ha="center", transform=axes.transAxes)
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="amplify_ds.plot", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run directory")
    parser.add_argument("--output", type=Path, metavar="DIR", help="directory for the figures (default: RUN/plots)")
    arguments = parser.parse_args()
    for path in draw(arguments.run, arguments.output or arguments.run / "plots"):
        print(f"wrote {path}")
    print(next_commands(("tensorboard", "--logdir", arguments.run)))
    return 0


if __name__ == "__main__":
    command(main)
