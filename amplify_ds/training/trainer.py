"""Pretraining: the loop, and what happens around a step.

    for each step:  micro batches -> logits at masked positions -> cross-entropy -> backward;  one optimizer step
    every so often: log | evaluate | checkpoint

The state of a run is its weights, AdamW's moments and one integer, the number of batches read: data and masks are pure
functions of it, the learning rate is one of the steps taken, fewer where an update was not applied (guards.py).
Sums for the log stay on the device; they are copied to the host at logging steps only. In the others the host waits for
the device at the update alone, where it must know whether the gradient is finite (test_host_syncs.py counts).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from amplify_ds.config import RunConfig
from amplify_ds.data.loader import BatchPlan, PackedBatch, TrainingBatches
from amplify_ds.data.skips import add_skips, read_skip_rows
from amplify_ds.data.verify import verify
from amplify_ds.data.workers import TrainingLoader
from amplify_ds.errors import AmplifyError
from amplify_ds.files import write_json
from amplify_ds.model.encoder import Encoder
from amplify_ds.training import checkpoint, engine, fp8, guards, logs, orphans, overlap, runs, stopping, visibility
from amplify_ds.training.agreement import Agreement
from amplify_ds.training.evaluate import PROTOCOLS, evaluate
from amplify_ds.training.hub_fields import hub_fields
from amplify_ds.training.metrics import Interval, device_flops
from amplify_ds.training.plan import batch_plan, model_config, resolve_precision, training_sources, validation_sets
from amplify_ds.training.progress import Progress
from amplify_ds.training.telemetry import Report, say
from amplify_ds.training.retention import Checkpoints
from amplify_ds.training.saving import BackgroundWriter
from amplify_ds.training.schedule import learning_rate
from amplify_ds.training.watchdog import Watchdog

VERIFIED_BYTES = 2**30  # shards up to this size are checked against their checksums at every start, in a second or two


def masked_language_loss(logits: torch.Tensor, labels: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy in float32 over M slots, a constant number: means over micro batches and ranks are true means.

    Returns the mean over the slots, an empty one counting as 0, and the sums of each row [rows].
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return losses.sum() / labels.numel(), losses.detach().view(rows, -1).sum(1)


class Trainer:
    """One run on this rank. Construct it on every rank, call `pretrain` on every rank."""

    def __init__(
        self,
        run: RunConfig,
        zero: dict[str, Any],
        output: Path,
        resume: str = "auto",
        initial: Callable[[Path], tuple[dict[str, torch.Tensor], dict[str, Any]]] | None = None,
        initial_path: Path | None = None,
        skip_rows: Path | None = None,
    ):
        """`initial` reads the weights to begin with from `initial_path`, and says where they come from. skip_rows: a
        list of rows that are left out from now on (data/skips.py).
        """
        self.run, self.output = run, output
        self.leader = engine.rank() == 0
        self.sources = training_sources(run)
        self.validation = validation_sets(run)
        self.plan = batch_plan(run, self.sources.row_tokens, engine.rank(), engine.world_size())
        self.binding = {**run.binding(), "training data": self.sources.binding()}
        shape = model_config(run, self.sources.max_length)
        device_type = engine.deepspeed.accelerator.get_accelerator().device_name()
        fp8.check(run, shape, self.sources.row_tokens, device_type)
        if self.leader:
            for shards in (*(source.shards for source in self.sources.sources), *self.validation.values()):
                if sum(file["bytes"] for file in shards.files().values()) <= VERIFIED_BYTES:
                    verify(shards.path)
            self._lock = runs.open_run(output, run, self.binding, resume)
            self.checkpoints = Checkpoints(output, run.checkpoint.keep_last, run.checkpoint.keep_every, say)
        self.warnings = overlap.warnings(self.sources, self.validation) if self.leader else []
        self.device = engine.start_ranks()
        # Also a barrier: the run directory exists and is ours.
        drawn = torch.tensor([secrets.randbits(48) if self.leader else 0], dtype=torch.int64, device=self.device)
        job = int(engine.sum_over_ranks(drawn).item())
        self.watch = Watchdog(output, engine.rank(), engine.world_size(), run.watchdog.seconds, job).start()
        logs.open_log(output, engine.rank())
        stopping.listen_to_file(output)

        torch.manual_seed(run.training.seed)  # every rank draws the same initial weights
        model = Encoder(shape)
        model.gradient_checkpointing = run.training.activation_checkpointing
        self.parameters = sum(p.numel() for p in model.parameters())
        model_shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        precision = resolve_precision(run.training.precision, self.device.type)
        self.engine = engine.Engine(model, run, zero, self.plan.accumulation, precision, self.device)
        self.progress, self.skips, self.origin = Progress(), [], None
        self.saved = True  # nothing that could be lost
        found = self._choose_checkpoint(resume)
        if found is not None:
            self.engine.load_state(found.reader(), found.step)
            self.saved = found.path.parent.resolve() == checkpoint.folder(output).resolve()
            self.progress, self.skips = Progress(**found.state["progress"]), found.state["skips"]
            self.origin = found.state["origin"]
            runs.check_origin(self.origin, initial_path, output)
            say(f"continuing from {found.path} ({found.step} of {run.training.steps} steps are done)")
        elif initial_path is not None:
            assert initial is not None, "initial reads what initial_path names"
            weights, self.origin = initial(initial_path)
            runs.check_weights(weights, model_shapes, self.origin["path"])
            self.engine.load_state(lambda kind, name: weights[name], 0)
            say(f"beginning with the weights of {self.origin['path']}")
        if skip_rows is not None:
            self.skips = add_skips(self.skips, read_skip_rows(skip_rows, self.sources), self.progress.batch)
        self.batches = self._batches(self.plan)
        peak = run.log.device_tflops * 1e12 or device_flops(self.device, precision)
        self.report = Report(output, run, self.sources, self.plan, model.config, peak)
        self.writer = BackgroundWriter(self.checkpoints if self.leader else None)
        self.agreement = Agreement(2, self.device)

    def _choose_checkpoint(self, resume: str) -> checkpoint.CheckpointFile | None:
        """Rank 0 looks at every byte and tells the others. Collective."""
        path = ""
        if self.leader:
            found = runs.choose_checkpoint(self.checkpoints, resume, self.binding, self.run.training.steps)
            path = "" if found is None else str(found.path)
        path = engine.from_leader(path)
        if path:
            visibility.wait_for(Path(path) / checkpoint.STATE)
        return checkpoint.open_checkpoint(Path(path)) if path else None

    def pretrain(self) -> dict[str, Any] | None:
        """Train to the last step; returns what result.json holds. None: stopped and saved. Collective."""
        run, progress = self.run, self.progress
        padding_share = self.plan.computed_rows / self.plan.global_rows  # padding rows are no part of the batch's mean
        loader = TrainingLoader(self.batches, progress.batch, run.data.workers, self.device.type == "cuda")
        if self.leader and progress.step < run.training.steps:
            (self.output / runs.RESULT).unlink(missing_ok=True)  # of a run that is now made longer
        with loader, self.report.open(progress.step):
            self.report.warn(self.warnings, progress.step)
            if progress.step == 0:
                self._evaluate()
            interval = Interval(self.device)
            self._tell()
            while progress.step < run.training.steps:
                if self._agreed_to_stop():
                    self._stop(interval)
                    return None
                self._tell()
                for _ in range(self.plan.accumulation):
                    batch, waited = self._next_batch(loader)
                    logits = self.engine.forward(**batch.model_inputs())
                    loss, row_losses = masked_language_loss(logits, batch.labels, self.plan.micro_rows)
                    self.engine.backward(loss * padding_share)
                    interval.add(batch, row_losses, logits, waited)
                rate = learning_rate(progress.step, run.optimizer)
                norm = self.engine.update(rate)
                if norm is None:  # not finite: nothing has changed, and the batch is left out
                    interval.drop()
                    self._leave_out_batch()
                    continue
                interval.keep(progress.batch, norm, rate)
                progress.step += 1
                self.saved = False
                self.watch.at(progress.step, "between steps")
                self.report.bar.update()
                if logging := due(progress.step, run.log.every, run.training.steps):
                    self._log(interval)
                if due(progress.step, run.evaluation.every, run.training.steps):
                    self._evaluate()
                if due(progress.step, run.checkpoint.every, run.training.steps):
                    self._save()
                if logging:
                    interval = Interval(self.device)  # begins now: its seconds are of training alone
            return self._finish()

    def _tell(self) -> None:
        """What this rank knows between two steps: that the run is to stop, or that it cannot save. Collective."""
        self.agreement.send(stopping.requested(), self.writer.problem is not None)

    def _agreed_to_stop(self) -> bool:
        """Whether any rank was to stop when all told each other last. AmplifyError if one could not save."""
        stop, failed = self.agreement.received()
        if failed:
            raise self.writer.problem or AmplifyError("rank 0 could not write the checkpoint")
        return stop

    def _wait_for_checkpoint(self) -> None:
        """Until the last one is written; AmplifyError on all ranks if it could not be. Collective."""
        self.writer.wait()
        self._tell()
        self._agreed_to_stop()

    def _stop(self, interval: Interval) -> None:
        """Save, say so in stopped.json, and let every rank go. Collective."""
        if interval.steps:
            self._log(interval)
        if not self.saved:
            self._save()
        self._wait_for_checkpoint()
        if self.leader:
            newest = self.checkpoints.newest.path if self.checkpoints.newest else None
            try:
                stopping.write_stopped(self.output, self.progress.step, newest)
            except OSError as error:  # the checkpoint is saved: that is what counts
                say(f"warning: {self.output / stopping.STOPPED}: cannot be written ({error.strerror})")
            where = newest or "before the first checkpoint"
            say(f"stopped at step {self.progress.step}, {where}: the same command continues")
        self._leave()

    def _leave(self) -> None:
        engine.barrier()  # none leaves before rank 0 has written
        orphans.finished()
        self.watch.close()

    def _next_batch(self, loader: TrainingLoader) -> tuple[PackedBatch, float]:
        """This rank's next micro batch, on its device, and the seconds that it was waited for."""
        self.watch.at(self.progress.step + 1, "waiting for data")
        began = time.perf_counter()
        batch = next(loader)
        waited = time.perf_counter() - began
        self.watch.at(self.progress.step + 1, "forward and backward")
        return batch.to(self.device), waited

    def _leave_out_batch(self) -> None:
        """The update was not applied. AmplifyError if it was one too many in a row."""
        batch = self.progress.batch
        in_a_row = self.progress.skip()
        self.report.skipped(self.progress, batch, self._rows_of(batch), in_a_row)

    def _log(self, interval: Interval) -> None:
        """Collective."""
        found = interval.totals()
        self.progress.seconds += found.seconds
        self.progress.residues += int(found.residues)
        self.report.log(self.progress, found, interval)
        spikes, self.progress.recent_losses = guards.find_spikes(
            self.progress.recent_losses, found.step_losses, self.run.guards.spike_deviations
        )
        for number in spikes:
            batch, own = interval.row_losses(number)
            row_losses = torch.zeros(self.plan.global_rows, dtype=torch.float64, device=self.device)
            share = self.plan.share
            row_losses[share.start : share.stop] = own[: len(share)].double() / self.batches.slots
            step = self.progress.step - interval.steps + 1 + number
            of_rows = engine.sum_over_ranks(row_losses).tolist()
            self.report.jumped(step, found.step_losses[number], self._rows_of(batch), of_rows)

    def _rows_of(self, batch: int) -> list[dict[str, Any]]:
        """The rows of a global batch, in order."""
        whole = BatchPlan(self.plan.global_rows, self.plan.global_rows, 1, 0, 1)
        found = self._batches(whole).places(batch)
        names = [self.sources.names[source] for source in found.sources]
        return [
            {"source": name, "row": row, "epoch": epoch, "batch": batch}
            for name, row, epoch in zip(names, found.rows.tolist(), found.epochs.tolist())
        ]

    def _batches(self, plan: BatchPlan) -> TrainingBatches:
        run = self.run
        return TrainingBatches(self.sources, plan, run.training.seed, **run.masking.model_dump(), skips=self.skips)

    def _evaluate(self) -> None:
        for name, shards in self.validation.items():
            for protocol in PROTOCOLS:
                score = evaluate(
                    self.engine.evaluation(),
                    shards,
                    protocol,
                    self.device,
                    self.run.evaluation.max_rows,
                    self.run.training.micro_batch_rows,
                    engine.rank(),
                    engine.world_size(),
                    engine.sum_over_ranks,
                    progress=lambda rows: self.watch.at(self.progress.step, "evaluation"),
                )
                cost = {"residues": self.progress.residues, "seconds": self.progress.seconds}  # of training until now
                self.progress.history.append({"step": self.progress.step, "set": name, **cost, **score.as_dict()})
                for key in ("loss", "perplexity", "accuracy", "baseline_loss", "baseline_perplexity"):
                    self.report.events.add_scalar(
                        f"validation/{name}/{protocol}/{key}", score.as_dict()[key], self.progress.step
                    )
                say(f"step {self.progress.step}, {name}, {score.describe()}")
        self.engine.training()

    def _save(self) -> None:
        """Copy the state to rank 0's memory; it is written while training goes on. Collective."""
        began = time.perf_counter()
        self.watch.at(self.progress.step, "writing the checkpoint")  # the one before
        self.writer.wait()
        self.watch.at(self.progress.step, "checkpoint")
        self.report.events.flush()  # what a resumed run will not log again
        state = {
            "step": self.progress.step,
            "progress": asdict(self.progress),
            "binding": self.binding,
            "settings": self.run.model_dump(mode="json"),
            "model": hub_fields(self.engine.module.config),
            "precision": self.engine.precision,
            "skips": self.skips,
            "origin": self.origin,
        }
        gathered = []
        for name, weight, moments in self.engine.named_state():
            if self.leader:
                gathered.append((name, _host_copy(weight), {key: _host_copy(value) for key, value in moments.items()}))
        if self.writer.seconds:
            self.report.events.add_scalar("checkpoint/seconds_writing", self.writer.seconds, self.progress.step)
        if self.leader:
            self.writer.start(gathered, state)
        self.saved = True
        self.report.events.add_scalar(
            "checkpoint/seconds_training_waited", time.perf_counter() - began, self.progress.step
        )

    def _finish(self) -> dict[str, Any]:
        """Collective."""
        progress = self.progress
        if not self.saved:  # begun from the last checkpoint of another run
            self._save()
        self._wait_for_checkpoint()
        newest = self.checkpoints.newest if self.leader else None
        result = {
            "steps": progress.step,
            "parameters": self.parameters,
            "devices": engine.world_size(),
            "device": self.device.type,
            "residues": progress.residues,
            "seconds": progress.seconds,
            "residues_per_second": progress.residues / progress.seconds,
            "packing_efficiency": self.sources.packing_efficiency(),
            "checkpoint": str(newest.path) if newest else None,
            "evaluations": progress.history,
            "warnings": self.warnings,
        }
        if self.leader:
            write_json(self.output / runs.RESULT, result)
        self._leave()
        return result


def _host_copy(x: torch.Tensor) -> torch.Tensor:
    return x.detach().to("cpu", torch.float32, copy=True).contiguous()


def due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)
