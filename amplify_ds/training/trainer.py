"""Pretraining: the training loop, and the work at step boundaries.

    for each step:  micro batches -> logits at masked positions -> cross-entropy -> backward;  one optimizer step
    every so often: log | evaluate | checkpoint

The state of a run consists of its weights, the optimizer's moments and one integer, the number of batches read. Data
and masks are pure functions of this integer. The learning rate is a pure function of the steps taken, which are fewer
if an update was not applied (guards.py).

Sums for the log stay on the device and are copied to the host at logging steps only. In every other step the host waits
for the device once, in the update, where it must know whether the gradient is finite (tested by test_host_syncs.py).
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
    """Return the mean cross-entropy (float32) over the M slots of a micro batch, and its sum over each row [rows].

    logits: [M, V]; labels: [M], -100 in an unused slot, whose loss is 0. M is the same in every micro batch, so that
    means over micro batches and ranks are true means.
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return losses.sum() / labels.numel(), losses.detach().view(rows, -1).sum(1)


@dataclass
class Trainer:
    """A training run on this rank, made by build.py. Call `pretrain` on every rank."""

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
    constant_state: dict[str, Any]  # the part of a checkpoint's state that does not change from step to step
    warnings: list[str]  # on rank 0
    saved_step: int | None  # step of this run's newest checkpoint; 0 if new, None if continued from another run's

    def pretrain(self) -> dict[str, Any] | None:
        """Train to the last step and return the content of result.json, or None if stopped on request and saved.

        Must be called on every rank.
        """
        run, split, progress, telemetry = self.run, self.batches.split, self.progress, self.telemetry
        padding_factor = split.computed_rows / split.global_rows  # padding rows do not count in the batch's mean
        loader = TrainingLoader(self.batches, progress.batch, run.data.workers, self.ranks.device.type == "cuda")
        last = run.training.steps
        with loader, telemetry.open():
            self._begin()
            while progress.step < last:
                if self._agreed_to_stop():
                    self._stop()
                    return None
                self._send_flags()
                for _ in range(split.accumulation):
                    batch, waited = self._next_batch(loader)
                    logits = self.engine.forward(**batch.model_inputs())
                    loss, row_losses = masked_language_loss(logits, batch.labels, split.micro_rows)
                    self.engine.backward(loss * padding_factor)
                    telemetry.count(batch, row_losses, logits, waited)
                rate = learning_rate(progress.step, run.optimizer)
                norm = self.engine.update(rate)
                if norm is None:  # the gradient was not finite: no weight has changed
                    telemetry.skip_batch()
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

    def _begin(self) -> None:
        """Print warnings, evaluate the model if the run is new, and start the first logging interval."""
        self.telemetry.warn(self.warnings)
        if self.progress.step == 0:
            self._evaluate()
        self.telemetry.begin()
        self._send_flags()

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
        """Copy the state to rank 0's memory. A thread writes it to disk while training continues."""
        began = time.perf_counter()
        self.watch.at(self.progress.step, "writing the checkpoint")  # the previous one
        self.writer.wait()
        self.watch.at(self.progress.step, "checkpoint")
        self.telemetry.flush()
        seconds_writing = self.writer.seconds  # of the previous checkpoint
        state = {"step": self.progress.step, "progress": asdict(self.progress), **self.constant_state}
        self.writer.start(self.engine.state.named(), state)
        self.saved_step = self.progress.step
        self.telemetry.saved(time.perf_counter() - began, seconds_writing)

    def _send_flags(self) -> None:
        """Send the other ranks two flags: whether this rank has a stop request, and whether it failed to save."""
        self.flags.send(stopping.requested(), self.writer.problem is not None)

    def _agreed_to_stop(self) -> bool:
        """Return whether any rank had a stop request before the last `_send_flags`.

        Raises AmplifyError if a rank failed to save.
        """
        stop, failed = self.flags.received()
        if failed:
            raise self.writer.problem or AmplifyError("rank 0 could not write the checkpoint")
        return stop

    def _complete_checkpoint(self) -> str | None:
        """Return the path of the newest checkpoint (on rank 0), after saving the current step if it is not saved yet.

        Raises AmplifyError on all ranks if the checkpoint could not be written.
        """
        if self.saved_step != self.progress.step:
            self._save()
        self.writer.wait()
        self._send_flags()
        self._agreed_to_stop()
        newest = self.directory.checkpoints and self.directory.checkpoints.newest
        return str(newest.path) if newest else None

    def _stop(self) -> None:
        """Save a checkpoint, write stopped.json and finish together with the other ranks."""
        self.telemetry.log()
        newest, step = self._complete_checkpoint(), self.progress.step
        if self.ranks.leader:
            try:
                stopping.write_stopped(self.directory.path, step, newest)
            except OSError as error:  # the checkpoint is saved, which is what matters
                file = self.directory.path / stopping.STOPPED
                self.ranks.print(f"warning: {file}: cannot be written ({error.strerror})")
        saved = f"saved in {newest}" if newest else "before the first checkpoint"
        self.ranks.print(f"stopped at step {step} ({saved}); the same command continues")
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
        """Wait for all ranks; from then on, they may end in any order."""
        self.ranks.barrier()  # no rank ends before rank 0 has written
        launcher_watch.finished()
        self.watch.close()


def due(step: int, every: int, last: int) -> bool:
    """Return whether `step` is the last one or a multiple of `every` (0: only the last one)."""
    return step == last or (every > 0 and step % every == 0)
