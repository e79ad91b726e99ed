"""Telemetry of a run: TensorBoard, the progress bar or log lines, and the rows of steps that went wrong.

metrics.py has the sums, guards.py the limits. All ranks count; rank 0 writes and prints.
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

SECONDS_BETWEEN_LINES = 30  # of progress, if there is no terminal for a bar


class Telemetry:
    """Metrics and messages of one run, on every rank.

    Inside `open` the training loop counts each micro batch, then keeps or skips its step, and logs the kept steps.
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
        """progress: updated here, except for `step`, which the training loop counts."""
        self.run, self.output, self.ranks = run, output, ranks
        self.batches, self.shape, self.progress = batches, shape, progress
        self._peak = run.log.device_tflops * 1e12 or device_flops(ranks.device, precision)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Open TensorBoard and the progress bar. Points after the step from which the run continues are replaced."""
        self._last_line = time.perf_counter()
        with self._writer(self.progress.step) as self._events, self._bar(self.progress.step) as self._steps_bar:
            yield

    def warn(self, warnings: Sequence[str]) -> None:
        """Print warnings about this run and add them to TensorBoard."""
        for text in warnings:
            self.ranks.print(f"warning: {text}")
        if warnings:
            self._events.add_text("warnings", "\n\n".join(warnings), self.progress.step)

    def begin(self) -> None:
        """Start the interval of the next log. Call it right before training, so that only training is timed."""
        self._interval = Interval(self.ranks)

    def count(self, batch: PackedBatch, row_losses: torch.Tensor, logits: torch.Tensor, waited: float) -> None:
        """Add a micro batch. row_losses: [rows] sums over each row's targets. waited: seconds waiting for data."""
        self._interval.add(batch, row_losses, logits, waited)

    def keep(self, norm: torch.Tensor, rate: float) -> None:
        """Count the step as applied. norm: gradient norm, on the device."""
        self._interval.keep(self.progress.batch, norm, rate)
        self._steps_bar.update()

    def skip_batch(self) -> None:
        """Count the batch, whose gradient was not finite, as skipped. Raises AmplifyError after too many in a row."""
        self._interval.drop()
        batch, step = self.progress.batch, self.progress.step + 1
        skipped_in_a_row, limit = self.progress.skip(), self.run.guards.skipped_in_a_row
        self._events.add_scalar("train/skipped_steps", len(self.progress.skipped), self.progress.step)
        self._append(guards.SKIPPED, self.batches.global_batch(batch))
        self.ranks.print(
            f"warning: the gradient of step {step} was not finite: batch {batch} is skipped, its rows are listed in "
            f"{self.output / guards.SKIPPED}"
        )
        if skipped_in_a_row >= limit:
            saved = checkpoint.listing(self.output)
            newest = f"The newest checkpoint is {saved[-1]}" if saved else "No checkpoint was saved before"
            raise AmplifyError(
                f"step {step}: the gradient of {limit} batches in a row was not finite (guards.skipped_in_a_row); "
                f"training has diverged. Start again with a lower --optimizer.lr and another --output. {newest}"
            )

    def log(self) -> None:
        """Log the steps kept since `begin`, and report jumps of the loss. Must be called on every rank."""
        interval, progress = self._interval, self.progress
        if not interval.steps:
            return
        totals = interval.totals()
        progress.seconds += totals.seconds
        progress.residues += int(totals.residues)
        self._write(totals, interval.rate)
        self._show_progress(totals)
        spikes, progress.recent_losses = guards.find_spikes(
            progress.recent_losses, totals.step_losses, self.run.guards.spike_deviations
        )
        for number in spikes:
            step = progress.step - interval.steps + 1 + number
            self._report_spike(step, totals.step_losses[number], *interval.row_losses(number))

    def evaluated(self, name: str, score: Score) -> None:
        """Record the score of the validation set `name`."""
        progress = self.progress
        cost = {"residues": progress.residues, "seconds": progress.seconds}  # of training so far
        progress.history.append({"step": progress.step, "set": name, **cost, **score.as_dict()})
        for key in ("loss", "perplexity", "accuracy", "baseline_loss", "baseline_perplexity"):
            tag = f"validation/{name}/{score.protocol}/{key}"
            self._events.add_scalar(tag, score.as_dict()[key], progress.step)
        self.ranks.print(f"step {progress.step}, {name}, {score.describe()}")

    def flush(self) -> None:
        """Write all events to the file. Call it before saving: a resumed run does not log earlier steps again."""
        self._events.flush()

    def saved(self, waited: float, writing: float) -> None:
        """Record how long training waited for a checkpoint and how long writing the previous one took (s; 0: none)."""
        if writing:
            self._events.add_scalar("checkpoint/seconds_writing", writing, self.progress.step)
        self._events.add_scalar("checkpoint/seconds_training_waited", waited, self.progress.step)

    def _write(self, totals: Totals, rate: float) -> None:
        """Add one point to every curve in TensorBoard."""
        sources, world_size = self.batches.mixture, self.ranks.world_size
        epochs = sources.epochs(self.progress.batch * self.batches.split.global_rows, self.run.training.seed)
        flops = model_flops(self.shape, totals.tokens, totals.pairs) / totals.seconds / world_size
        for tag, value in {
            "train/loss": totals.loss,
            "train/perplexity": perplexity(totals.loss),
            "train/accuracy": totals.accuracy,
            "train/learning_rate": rate,
            "train/gradient_norm": totals.norm,
            "train/skipped_steps": len(self.progress.skipped),
            "speed/residues_per_second": totals.residues / totals.seconds,
            "speed/data_wait_fraction": totals.waited / world_size / totals.seconds,
            "speed/model_tflops_per_device": flops / 1e12,
            "speed/share_of_device_peak": flops / self._peak,
            "data/packing_efficiency": totals.tokens / totals.positions,
            **{f"data/epochs/{name}": passes for name, passes in epochs.items()},
            **{f"data/tokens/{name}": passes * sources.tokens(name) for name, passes in epochs.items()},
            **{f"memory/rank_{rank}_GiB": size / 2**30 for rank, size in enumerate(totals.memory)},
        }.items():
            self._events.add_scalar(tag, value, self.progress.step)
        self._events.flush()

    def _show_progress(self, totals: Totals) -> None:
        """Show loss and speed on the progress bar, or print a line every 30 s if there is no terminal."""
        speed = f"loss {totals.loss:.4f}, {totals.tokens / totals.seconds:,.0f} tokens/s"
        self._steps_bar.set_postfix_str(speed, refresh=False)
        if self._steps_bar.disable and time.perf_counter() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.perf_counter()
            step, last = self.progress.step, self.run.training.steps
            left = (last - step) * totals.seconds / len(totals.step_losses)
            self.ranks.print(f"step {step} of {last}: {speed}, about {left / 60:.0f} min left")

    def _report_spike(self, step: int, loss: float, batch: int, loss_sums: torch.Tensor) -> None:
        """Report a jump of the loss and the rows behind it.

        loss_sums: [rows of this rank] sums over each row's targets.
        """
        split = self.batches.split
        row_losses = torch.zeros(split.global_rows, dtype=torch.float64, device=self.ranks.device)
        row_losses[split.share.start : split.share.stop] = loss_sums[: len(split.share)].double() / self.batches.slots
        losses = self.ranks.sum(row_losses).tolist()
        rows = self.batches.global_batch(batch)
        records = [{**rows[index], "step": step, "loss": losses[index]} for index in guards.highest(losses)]
        self._append(guards.SPIKES, records)
        self.ranks.print(
            f"warning: the loss of step {step} jumped to {loss:.4f}; the rows with the highest losses are listed in "
            f"{self.output / guards.SPIKES}"
        )

    def _append(self, name: str, records: list[dict[str, Any]]) -> None:
        """Add lines to a file of the run. If the file cannot be written, print a warning and continue."""
        if self.ranks.leader:
            try:
                guards.append(self.output / name, records)
            except AmplifyError as error:
                self.ranks.print(f"warning: {error} Training continues.")

    def _writer(self, step: int) -> Events | NoEvents:
        """Open TensorBoard, with the step as x. Points that a killed run logged after its checkpoint are replaced."""
        if not self.ranks.leader:
            return NoEvents()
        folder = self.output / run_directory.EVENTS
        with suppress(OSError):  # at worst TensorBoard draws points in the wrong order
            event_files.put_before_now(folder)
        events = Events(folder, step + 1 if step else 0, self.ranks.print)
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
