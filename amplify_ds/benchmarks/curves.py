"""Curves of validation loss over several seeds: a table, a picture, and when one curve reaches another's final loss.

Losses are in nats per target, with every selected residue replaced by <mask>. Means over seeds are means of losses, and
a perplexity is exp of such a mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amplify_ds.extras import CURVES, pyplot
from amplify_ds.files import replacing
from amplify_ds.structured import read_json


@dataclass(frozen=True)
class Curve:
    """n evaluations of s runs: steps [n], seconds of training [s, n], residues read [s, n] and losses [s, n]."""

    steps: np.ndarray
    seconds: np.ndarray
    residues: np.ndarray
    losses: np.ndarray

    @property
    def final(self) -> np.ndarray:
        return self.losses[:, -1]

    def describe(self) -> str:
        return f"perplexity {math.exp(self.final.mean()):.2f} after {self.seconds[:, -1].mean():,.0f} s"


def read(run: Path) -> Curve:
    """Return the curve of a complete run."""
    evaluations = read_json(run / "result.json")["evaluations"]
    scores = [score for score in evaluations if score["protocol"] == "mask_only"]
    steps, seconds, residues, losses = (
        np.array([score[key] for score in scores]) for key in ("step", "seconds", "residues", "loss")
    )
    return Curve(steps, seconds[None], residues[None].astype(float), losses[None])


def join(curves: Sequence[Curve]) -> Curve:
    """Return one curve of several runs that were evaluated after the same steps."""
    return Curve(
        curves[0].steps, *(np.concatenate([getattr(c, x) for c in curves]) for x in ("seconds", "residues", "losses"))
    )


def reached(x: np.ndarray, losses: np.ndarray, target: float) -> float | None:
    """Return the first x at which the curve, interpolated linearly, is down to `target`; None if it never is."""
    below = np.flatnonzero(losses <= target)
    if not len(below):
        return None
    after = int(below[0])
    if after == 0:
        return float(x[0])
    (x0, x1), (y0, y1) = x[after - 1 : after + 1], losses[after - 1 : after + 1]
    return float(x0 + (x1 - x0) * (y0 - target) / (y0 - y1))


def table(curves: dict[str, Curve], seeds: int) -> str:
    """Return a Markdown table. All contestants are compared with the first."""
    first, *others = curves
    reference, count = curves[first], "one seed" if seeds == 1 else f"{seeds} seeds"
    lines = [
        f"| {count} | steps | loss, nats | perplexity | seconds | million residues | loss − {first}, per seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, curve in curves.items():
        loss, seconds = (
            _with_error(x, 1.0, form) for x, form in ((curve.final, ".4f"), (curve.seconds[:, -1], ",.1f"))
        )
        paired = _with_error(curve.final - reference.final, seeds**-0.5, "+.4f") if name != first else ""
        lines.append(
            f"| {name} | {curve.steps[-1]:,} | {loss} | {math.exp(curve.final.mean()):.2f} | {seconds} | "
            f"{curve.residues[:, -1].mean() / 1e6:.3f} | {paired} |"
        )
    legend = (
        "Loss and seconds: mean ± standard deviation of the seeds; difference of the losses: mean ± standard error."
    )
    lines += ["", legend if seeds > 1 else "One seed: the spread is not known."]
    target = float(reference.final.mean())
    lines.append(f"The final loss of {first} is {target:.4f} on average, perplexity {math.exp(target):.2f}:")
    return "\n".join(lines + [_time_to_target(name, curves[name], first, reference, target) for name in others])


def _time_to_target(name: str, curve: Curve, first: str, reference: Curve, target: float) -> str:
    """Return a line with the time and residues that `curve` needs to reach `target`, as shares of the reference's."""
    losses = curve.losses.mean(0)
    seconds, residues = (reached(x.mean(0), losses, target) for x in (curve.seconds, curve.residues))
    if seconds is None or residues is None:  # both or neither
        return f"- {name}: not reached"
    time, amount = seconds / reference.seconds[:, -1].mean(), residues / reference.residues[:, -1].mean()
    goal = "no more than half" if time <= 0.5 else "more than half"
    return (
        f"- {name}: reached after {seconds:,.1f} s and {residues / 1e6:.3f} million residues, {time:.1%} of the time "
        f"of {first} ({goal}) and {amount:.1%} of its residues"
    )


def _with_error(values: np.ndarray, factor: float, form: str) -> str:
    mean = f"{values.mean():{form}}"
    return f"{mean} ± {values.std(ddof=1) * factor:{form.lstrip('+')}}" if len(values) > 1 else mean


def draw(curves: dict[str, Curve], title: str, path: Path) -> None:
    """Plot perplexity against residues and against seconds: the mean of the seeds in a band from lowest to highest.

    The untrained model is above the upper limit of the axis, which would leave no room for the rest otherwise.
    """
    plt = pyplot()
    first = next(iter(curves))
    target = math.exp(curves[first].final.mean())
    with plt.rc_context(CURVES):
        figure, panels = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
        for axes, quantity, label, unit in (
            (panels[0], "residues", "residues read while training (millions)", 1e6),
            (panels[1], "seconds", "time of training steps (seconds)", 1.0),
        ):
            for number, (name, curve) in enumerate(curves.items()):
                x = getattr(curve, quantity).mean(0) / unit
                axes.plot(x, np.exp(curve.losses.mean(0)), "o-", color=f"C{number}", label=name, markersize=3)
                lowest, highest = (np.exp(edge(curve.losses, axis=0)) for edge in (np.min, np.max))
                axes.fill_between(x, lowest, highest, color=f"C{number}", alpha=0.2, linewidth=0)
            axes.axhline(target, color="0.35", linestyle="--", linewidth=1, label=f"{first}, final: {target:.2f}")
            axes.set(xlabel=label)
            axes.margins(x=0.02)
        panels[0].set_ylabel("validation perplexity, <mask> only")
        trained = np.exp(np.concatenate([curve.losses[:, 1:].ravel() for curve in curves.values()]))
        panels[0].set_ylim(0.98 * trained.min(), 1.02 * trained.max())
        panels[1].legend(fontsize=9)
        figure.suptitle(title)
        with replacing(path) as partial:
            figure.savefig(partial, format="png")
        plt.close(figure)
