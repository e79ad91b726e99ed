"""Pretraining: the loop, and what is done at a step boundary.

    for each step:  micro batches -> logits at masked positions -> cross-entropy -> backward;  one optimizer step
    every so often: log | evaluate | checkpoint

The state of a run is its weights, AdamW's moments and one integer, the number of batches read: data and masks are pure
functions of it, the learning rate is one of the steps taken, fewer where an update was not applied (guards.py).
Sums for the log stay on the device; they are copied to the host at logging steps only. In the others the host waits for
the device at the update alone, where it must know whether the gradient is finite (test_host_syncs.py counts).
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from amplify_ds.config import RunConfig
from amplify_ds.data.loader import PackedBatch, TrainingBatches
from amplify_ds.data.shards import Shards
from amplify_ds.data.workers import TrainingLoader
from amplify_ds.errors import AmplifyError
from amplify_ds.files import write_json
from amplify_ds.training import launcher_watch, run_directory, stopping
from amplify_ds.training.engine import Engine
from amplify_ds.training.progress import Progress
from amplify_ds.training.ranks import Ranks
from amplify_ds.training.run_directory import Directory
from amplify_ds.training.saving import BackgroundWriter
from amplify_ds.training.schedule import learning_rate
from amplify_ds.training.shared_flags import SharedFlags
from amplify_ds.training.telemetry import Telemetry
from amplify_ds.training.validation import PROTOCOLS, evaluate
from amplify_ds.training.watchdog import Watchdog


def masked_language_loss(logits: torch.Tensor, labels: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy in float32 over M slots, a constant number: means over micro batches and ranks are true means.

    Returns the mean over the slots, an empty one counting as 0, and the sums of each row [rows].
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return losses.sum() / labels.numel(), losses.detach().view(rows, -1).sum(1)


@dataclass
class Trainer:
    """One run on this rank, as build.py makes it. Call `pretrain` on every rank."""

    run: RunConfig
    ranks: Ranks
    engine: Engine
    batches: TrainingBatches
    validation: dict[str, Shards]
    progress: Progress
    telemetry: Telemetry
    flags: SharedFlags
    writer: BackgroundWriter
    watch: Watchdog
    directory: Directory
    unchanging: dict[str, Any]  # of a checkpoint's state, what is the same in all of this run from here on
    warnings: list[str]  # of rank 0
    saved_step: int | None  # of the run's newest checkpoint; before any, 0: nothing could be lost

    def pretrain(self) -> dict[str, Any] | None:
        """Train to the last step and return the content of result.json, or None if stopped on request and saved.

        Must be called on every rank.
        """
        run, split, progress, telemetry = self.run, self.batches.split, self.progress, self.telemetry
        padding_share = split.computed_rows / split.global_rows  # padding rows are no part of the batch's mean
        loader = TrainingLoader(self.batches, progress.batch, run.data.workers, self.ranks.device.type == "cuda")
        last = run.training.steps
        with loader, telemetry.open():
            self._before_the_first_step()
            while progress.step < last:
                if self._agreed_to_stop():
                    self._stop()
                    return None
                self._tell()
                for _ in range(split.accumulation):
                    batch, waited = self._next_batch(loader)
                    logits = self.engine.forward(**batch.model_inputs())
                    loss, row_losses = masked_language_loss(logits, batch.labels, split.micro_rows)
                    self.engine.backward(loss * padding_share)
                    telemetry.count(batch, row_losses, logits, waited)
                rate = learning_rate(progress.step, run.optimizer)
                norm = self.engine.update(rate)
                if norm is None:  # not finite: nothing has changed, and the batch is left out
                    telemetry.leave_out()
                    continue
                telemetry.keep(norm, rate)
                progress.step += 1
                self.watch.at(progress.step, "between steps")
                if logged := due(progress.step, run.log.every, last):
                    telemetry.log()
                if due(progress.step, run.evaluation.every, last):
                    self._evaluate()
                if due(progress.step, run.checkpoint.every, last):
                    self._save()
                if logged:
                    telemetry.begin()
            return self._finish()

    def _before_the_first_step(self) -> None:
        """Print warnings, evaluate a new run, and start the first interval."""
        self.telemetry.warn(self.warnings)
        if self.progress.step == 0:
            self._evaluate()
        self.telemetry.begin()
        self._tell()

    def _next_batch(self, loader: TrainingLoader) -> tuple[PackedBatch, float]:
        """Return this rank's next micro batch, on its device, and the seconds spent waiting for it."""
        self.watch.at(self.progress.step + 1, "waiting for data")
        began = time.perf_counter()
        batch = next(loader)
        waited = time.perf_counter() - began
        self.watch.at(self.progress.step + 1, "forward and backward")
        return batch.to(self.ranks.device), waited

    def _evaluate(self) -> None:
        """Score every validation set under both protocols."""
        logits = self.engine.evaluation()
        settings, micro_rows = self.run.evaluation, self.run.training.micro_batch_rows
        for name, shards in self.validation.items():
            for protocol in PROTOCOLS:
                score = evaluate(
                    logits,
                    shards,
                    protocol,
                    self.ranks,
                    settings.max_rows,
                    micro_rows,
                    progress=lambda rows: self.watch.at(self.progress.step, "evaluation"),
                )
                self.telemetry.evaluated(name, score)
        self.engine.training()

    def _save(self) -> None:
        """Copy the state to rank 0's memory; a thread writes it while training continues."""
        began = time.perf_counter()
        self.watch.at(self.progress.step, "writing the checkpoint")  # the one before
        self.writer.wait()
        self.watch.at(self.progress.step, "checkpoint")
        self.telemetry.flush()
        before = self.writer.seconds
        state = {"step": self.progress.step, "progress": asdict(self.progress), **self.unchanging}
        self.writer.start(self.engine.state.named(), state)
        self.saved_step = self.progress.step
        self.telemetry.saved(time.perf_counter() - began, before)

    def _tell(self) -> None:
        """Publish whether this rank was asked to stop, and whether it failed to save."""
        self.flags.send(stopping.requested(), self.writer.problem is not None)

    def _agreed_to_stop(self) -> bool:
        """Return whether any rank was asked to stop before the last `_tell`. AmplifyError if one failed to save."""
        stop, failed = self.flags.received()
        if failed:
            raise self.writer.problem or AmplifyError("rank 0 could not write the checkpoint")
        return stop

    def _complete_checkpoint(self) -> str | None:
        """Save the current step if necessary, wait until it is written, and return the newest checkpoint (on rank 0).

        Raises AmplifyError on all ranks if it could not be written.
        """
        if self.saved_step != self.progress.step:
            self._save()
        self.writer.wait()
        self._tell()
        self._agreed_to_stop()
        newest = self.directory.checkpoints and self.directory.checkpoints.newest
        return str(newest.path) if newest else None

    def _stop(self) -> None:
        """Save a checkpoint, write stopped.json, and leave together with the other ranks."""
        self.telemetry.log()
        newest, step = self._complete_checkpoint(), self.progress.step
        if self.ranks.leader:
            try:
                stopping.write_stopped(self.directory.path, step, newest)
            except OSError as error:  # the checkpoint is saved: that is what counts
                file = self.directory.path / stopping.STOPPED
                self.ranks.say(f"warning: {file}: cannot be written ({error.strerror})")
        where = newest or "before the first checkpoint"
        self.ranks.say(f"stopped at step {step}, {where}: the same command continues")
        self._leave()

    def _finish(self) -> dict[str, Any]:
        """Save a checkpoint, write result.json and return its content."""
        progress, checkpoint = self.progress, self._complete_checkpoint()
        result = {
            "steps": progress.step,
            "parameters": sum(math.prod(shape) for shape in self.engine.shapes.values()),
            "devices": self.ranks.world_size,
            "device": self.ranks.device.type,
            "residues": progress.residues,
            "seconds": progress.seconds,
            "residues_per_second": progress.residues / progress.seconds,
            "packing_efficiency": self.batches.mixture.packing_efficiency(),
            "checkpoint": checkpoint,
            "evaluations": progress.history,
            "warnings": self.warnings,
        }
        if self.ranks.leader:
            write_json(self.directory.path / run_directory.RESULT, result)
        self._leave()
        return result

    def _leave(self) -> None:
        self.ranks.barrier()  # none leaves before rank 0 has written
        launcher_watch.finished()
        self.watch.close()


def due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)
