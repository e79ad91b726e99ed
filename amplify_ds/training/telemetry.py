"""What a run says of itself: TensorBoard, a bar or lines, the rows of steps that went wrong. Rank 0 speaks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amplify_ds import bars
from amplify_ds.config import RunConfig
from amplify_ds.data.loader import BatchPlan
from amplify_ds.data.mixture import Mixture
from amplify_ds.errors import AmplifyError
from amplify_ds.model.shape import Shape
from amplify_ds.training import checkpoint, engine, event_files, guards, runs
from amplify_ds.training.evaluate import perplexity
from amplify_ds.training.events import Events, NoEvents
from amplify_ds.training.metrics import Interval, Totals, model_flops
from amplify_ds.training.progress import Progress

if TYPE_CHECKING:
    from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30  # of progress, where there is no terminal for a bar


def say(text: str) -> None:
    if engine.rank() == 0:
        bars.say(text)


class Report:
    """Of one run. peak: FLOP/s of a device, to compare with."""

    def __init__(
        self,
        output: Path,
        run: RunConfig,
        sources: Mixture,
        plan: BatchPlan,
        config: Shape,
        peak: float,
    ):
        self.output, self.run, self.sources, self.plan = output, run, sources, plan
        self.config, self.peak = config, peak
        self.leader = engine.rank() == 0

    @contextmanager
    def open(self, step: int) -> Iterator[None]:
        """The run goes on after `step`."""
        self._last_line = time.perf_counter()
        with self._writer(step) as self.events, self._bar(step) as self.bar:
            yield

    def warn(self, warnings: Sequence[str], step: int) -> None:
        """Show what is to be known of this run, and keep it among its events."""
        for text in warnings:
            say(f"warning: {text}")
        if warnings:
            self.events.add_text("warnings", "\n\n".join(warnings), step)

    def log(self, progress: Progress, found: Totals, interval: Interval) -> None:
        """A point of TensorBoard, and a line now and then where there is no terminal for the bar."""
        epochs = self.sources.epochs(progress.batch * self.plan.global_rows, self.run.training.seed)
        world_size = engine.world_size()
        flops = model_flops(self.config, found.tokens, found.pairs) / found.seconds / world_size
        for tag, value in {
            "train/loss": found.loss,
            "train/perplexity": perplexity(found.loss),
            "train/accuracy": found.accuracy,
            "train/learning_rate": interval.rate,
            "train/gradient_norm": found.norm,
            "train/skipped_steps": len(progress.skipped),
            "speed/residues_per_second": found.residues / found.seconds,
            "speed/data_wait_fraction": found.waited / world_size / found.seconds,
            "speed/model_tflops_per_device": flops / 1e12,
            "speed/share_of_device_peak": flops / self.peak,
            "data/packing_efficiency": found.tokens / found.places,
            **{f"data/epochs/{name}": passes for name, passes in epochs.items()},
            **{f"data/tokens/{name}": passes * self.sources.tokens(name) for name, passes in epochs.items()},
            **{f"memory/rank_{rank}_GiB": size / 2**30 for rank, size in enumerate(found.memory)},
        }.items():
            self.events.add_scalar(tag, value, progress.step)
        self.events.flush()
        speed = f"loss {found.loss:.4f}, {found.tokens / found.seconds:,.0f} tokens/s"
        self.bar.set_postfix_str(speed, refresh=False)
        if self.bar.disable and time.perf_counter() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.perf_counter()
            left = (self.run.training.steps - progress.step) * found.seconds / len(found.step_losses)
            say(f"step {progress.step} of {self.run.training.steps}: {speed}, about {left / 60:.0f} min left")

    def skipped(self, progress: Progress, batch: int, rows: list[dict[str, Any]], in_a_row: int) -> None:
        """The batch, of these rows, gave a gradient that is not finite. AmplifyError if it was one too many."""
        step, limit = progress.step + 1, self.run.guards.skipped_in_a_row
        self.events.add_scalar("train/skipped_steps", len(progress.skipped), progress.step)
        self._note(guards.SKIPPED, rows)
        say(
            f"warning: the gradient of step {step} was not finite: batch {batch} is left out, its rows are in "
            f"{self.output / guards.SKIPPED}"
        )
        if in_a_row >= limit:
            saved = checkpoint.listing(self.output)
            newest = f"The newest checkpoint is {saved[-1]}" if saved else "No checkpoint was saved before"
            raise AmplifyError(
                f"step {step}: {limit} batches in a row gave a gradient that is not finite (guards.skipped_in_a_row); "
                f"training has diverged. Start again with a lower --optimizer.lr in another --output. {newest}"
            )

    def jumped(self, step: int, loss: float, rows: list[dict[str, Any]], row_losses: list[float]) -> None:
        """The loss of a step jumped; its rows and their losses."""
        if self.leader:
            named = guards.highest(row_losses)
            lines = [{**rows[place], "step": step, "loss": row_losses[place]} for place in named]
            self._note(guards.SPIKES, lines)
        say(
            f"warning: the loss of step {step} jumped to {loss:.4f}; the rows with the highest losses are in "
            f"{self.output / guards.SPIKES}"
        )

    def _note(self, name: str, records: list[dict[str, Any]]) -> None:
        """Add lines to a file of the run. That it cannot be written is no reason to end the run."""
        if self.leader:
            try:
                guards.append(self.output / name, records)
            except AmplifyError as error:
                say(f"warning: {error} Training goes on.")

    def _writer(self, step: int) -> Events | NoEvents:
        """TensorBoard with the step as x. Steps past the checkpoint that a killed run had logged are replaced."""
        if not self.leader:
            return NoEvents()
        folder = self.output / runs.EVENTS
        with suppress(OSError):  # then points may be drawn in the wrong order, no more
            event_files.put_before_now(folder)
        events = Events(folder, step + 1 if step else 0, say)
        events.add_text("configuration", "```yaml\n" + self.run.to_yaml() + "```", step)
        return events

    def _bar(self, step: int) -> tqdm:
        return bars.bar(
            total=self.run.training.steps,
            initial=step,
            unit="step",
            desc="pretraining",
            shown=self.leader,
        )
