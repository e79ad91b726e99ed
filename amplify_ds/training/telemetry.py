"""What the loop tells of every step, and what a run says of itself: TensorBoard, a bar or lines, the rows of steps that
went wrong. Sums are in metrics.py, the limits in guards.py. All ranks count; rank 0 writes and speaks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from amplify_ds import bars
from amplify_ds.config import RunConfig
from amplify_ds.data.loader import PackedBatch, TrainingBatches
from amplify_ds.errors import AmplifyError
from amplify_ds.model.shape import Shape
from amplify_ds.training import checkpoint, event_files, guards, run_directory
from amplify_ds.training.events import Events, NoEvents
from amplify_ds.training.metrics import Interval, Totals, device_flops, model_flops
from amplify_ds.training.progress import Progress
from amplify_ds.training.ranks import Ranks
from amplify_ds.training.validation import Score, perplexity

if TYPE_CHECKING:
    from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30  # of progress, where there is no terminal for a bar


class Telemetry:
    """Metrics and messages of one run; every rank has one.

    Inside `open` the loop counts each micro batch, then keeps its step or leaves it out, and logs the steps kept.
    """

    def __init__(
        self,
        run: RunConfig,
        output: Path,
        ranks: Ranks,
        batches: TrainingBatches,
        shape: Shape,
        precision: str,
        progress: Progress,
    ):
        """progress: updated here, except for `step`, which the loop counts."""
        self.run, self.output, self.ranks = run, output, ranks
        self.batches, self.shape, self.progress = batches, shape, progress
        self._peak = run.log.device_tflops * 1e12 or device_flops(ranks.device, precision)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Open TensorBoard and the progress bar. Points after the step that the run continues from are replaced."""
        self._last_line = time.perf_counter()
        with self._writer(self.progress.step) as self._events, self._bar(self.progress.step) as self._steps_bar:
            yield

    def warn(self, warnings: Sequence[str]) -> None:
        """Print warnings about this run and add them to TensorBoard."""
        for text in warnings:
            self.ranks.say(f"warning: {text}")
        if warnings:
            self._events.add_text("warnings", "\n\n".join(warnings), self.progress.step)

    def begin(self) -> None:
        """Start the interval of the next log. Its seconds should contain training only."""
        self._interval = Interval(self.ranks)

    def count(self, batch: PackedBatch, row_losses: torch.Tensor, logits: torch.Tensor, waited: float) -> None:
        """Add a micro batch. row_losses: [rows] sums over each row's targets. waited: seconds waiting for data."""
        self._interval.add(batch, row_losses, logits, waited)

    def keep(self, norm: torch.Tensor, rate: float) -> None:
        """Count the step as applied. norm: gradient norm, on the device."""
        self._interval.keep(self.progress.batch, norm, rate)
        self._steps_bar.update()

    def leave_out(self) -> None:
        """Skip the batch, whose gradient is not finite. Raises AmplifyError after too many in a row."""
        self._interval.drop()
        batch, step = self.progress.batch, self.progress.step + 1
        in_a_row, limit = self.progress.skip(), self.run.guards.skipped_in_a_row
        self._events.add_scalar("train/skipped_steps", len(self.progress.skipped), self.progress.step)
        self._note(guards.SKIPPED, self.batches.global_batch(batch))
        self.ranks.say(
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

    def log(self) -> None:
        """Log the steps kept since `begin`, and report losses that jump. Must be called on every rank."""
        interval, progress = self._interval, self.progress
        if not interval.steps:
            return
        found = interval.totals()
        progress.seconds += found.seconds
        progress.residues += int(found.residues)
        self._write(found, interval.rate)
        self._say_how_far(found)
        spikes, progress.recent_losses = guards.find_spikes(
            progress.recent_losses, found.step_losses, self.run.guards.spike_deviations
        )
        for number in spikes:
            step = progress.step - interval.steps + 1 + number
            self._name_rows(step, found.step_losses[number], *interval.row_losses(number))

    def evaluated(self, name: str, score: Score) -> None:
        """Record the score of the validation set `name`."""
        progress = self.progress
        cost = {"residues": progress.residues, "seconds": progress.seconds}  # of training until now
        progress.history.append({"step": progress.step, "set": name, **cost, **score.as_dict()})
        for key in ("loss", "perplexity", "accuracy", "baseline_loss", "baseline_perplexity"):
            tag = f"validation/{name}/{score.protocol}/{key}"
            self._events.add_scalar(tag, score.as_dict()[key], progress.step)
        self.ranks.say(f"step {progress.step}, {name}, {score.describe()}")

    def flush(self) -> None:
        """Write all events to the file. Call it before a checkpoint: a resumed run does not log earlier steps again."""
        self._events.flush()

    def saved(self, waited: float, writing: float) -> None:
        """Record the seconds that training waited for a checkpoint, and those of writing the previous one (0: none)."""
        if writing:
            self._events.add_scalar("checkpoint/seconds_writing", writing, self.progress.step)
        self._events.add_scalar("checkpoint/seconds_training_waited", waited, self.progress.step)

    def _write(self, found: Totals, rate: float) -> None:
        """Add one point to every curve in TensorBoard."""
        sources, world_size = self.batches.mixture, self.ranks.world_size
        epochs = sources.epochs(self.progress.batch * self.batches.split.global_rows, self.run.training.seed)
        flops = model_flops(self.shape, found.tokens, found.pairs) / found.seconds / world_size
        for tag, value in {
            "train/loss": found.loss,
            "train/perplexity": perplexity(found.loss),
            "train/accuracy": found.accuracy,
            "train/learning_rate": rate,
            "train/gradient_norm": found.norm,
            "train/skipped_steps": len(self.progress.skipped),
            "speed/residues_per_second": found.residues / found.seconds,
            "speed/data_wait_fraction": found.waited / world_size / found.seconds,
            "speed/model_tflops_per_device": flops / 1e12,
            "speed/share_of_device_peak": flops / self._peak,
            "data/packing_efficiency": found.tokens / found.places,
            **{f"data/epochs/{name}": passes for name, passes in epochs.items()},
            **{f"data/tokens/{name}": passes * sources.tokens(name) for name, passes in epochs.items()},
            **{f"memory/rank_{rank}_GiB": size / 2**30 for rank, size in enumerate(found.memory)},
        }.items():
            self._events.add_scalar(tag, value, self.progress.step)
        self._events.flush()

    def _say_how_far(self, found: Totals) -> None:
        """Show loss and speed on the progress bar, or print a line every 30 s where there is no terminal."""
        speed = f"loss {found.loss:.4f}, {found.tokens / found.seconds:,.0f} tokens/s"
        self._steps_bar.set_postfix_str(speed, refresh=False)
        if self._steps_bar.disable and time.perf_counter() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.perf_counter()
            step, last = self.progress.step, self.run.training.steps
            left = (last - step) * found.seconds / len(found.step_losses)
            self.ranks.say(f"step {step} of {last}: {speed}, about {left / 60:.0f} min left")

    def _name_rows(self, step: int, loss: float, batch: int, own: torch.Tensor) -> None:
        """Report the rows behind a jump of the loss. own: [rows of this rank] sums over each row's targets."""
        split = self.batches.split
        row_losses = torch.zeros(split.global_rows, dtype=torch.float64, device=self.ranks.device)
        row_losses[split.share.start : split.share.stop] = own[: len(split.share)].double() / self.batches.slots
        of_rows = self.ranks.sum(row_losses).tolist()
        rows = self.batches.global_batch(batch)
        named = [{**rows[place], "step": step, "loss": of_rows[place]} for place in guards.highest(of_rows)]
        self._note(guards.SPIKES, named)
        self.ranks.say(
            f"warning: the loss of step {step} jumped to {loss:.4f}; the rows with the highest losses are in "
            f"{self.output / guards.SPIKES}"
        )

    def _note(self, name: str, records: list[dict[str, Any]]) -> None:
        """Add lines to a file of the run. That it cannot be written is no reason to end the run."""
        if self.ranks.leader:
            try:
                guards.append(self.output / name, records)
            except AmplifyError as error:
                self.ranks.say(f"warning: {error} Training goes on.")

    def _writer(self, step: int) -> Events | NoEvents:
        """TensorBoard with the step as x. Steps past the checkpoint that a killed run had logged are replaced."""
        if not self.ranks.leader:
            return NoEvents()
        folder = self.output / run_directory.EVENTS
        with suppress(OSError):  # then points may be drawn in the wrong order, no more
            event_files.put_before_now(folder)
        events = Events(folder, step + 1 if step else 0, self.ranks.say)
        events.add_text("configuration", "```yaml\n" + self.run.to_yaml() + "```", step)
        return events

    def _bar(self, step: int) -> tqdm:
        return bars.bar(
            total=self.run.training.steps,
            initial=step,
            unit="step",
            desc="pretraining",
            shown=self.ranks.leader,
        )
