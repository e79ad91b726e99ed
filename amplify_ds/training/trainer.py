"""Pretraining: the loop, and what happens around a step.

    for each step:  micro batches -> logits at masked positions -> cross-entropy -> backward;  one optimizer step
    every so often: log | evaluate | checkpoint

The state of a run is its weights, AdamW's moments and one integer, the step: data, masks and learning rate are pure
functions of it. Sums for the log stay on the device; they are copied to the host at logging steps only.
"""

from __future__ import annotations

import math
import secrets
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from amplify_ds.config import RunConfig
from amplify_ds.data.loader import TrainingBatches, training_loader
from amplify_ds.data.shards import Shards
from amplify_ds.data.verify import verify
from amplify_ds.errors import AmplifyError
from amplify_ds.files import write_json
from amplify_ds.model.modeling_amplify import AMPLIFY
from amplify_ds.training import checkpoint, engine, orphans, runs, stopping
from amplify_ds.training.evaluate import PROTOCOLS, evaluate, perplexity
from amplify_ds.training.plan import batch_plan, model_config, resolve_precision, validation_sets
from amplify_ds.training.schedule import learning_rate
from amplify_ds.training.watchdog import Watchdog

VERIFIED_BYTES = 2**30  # shards up to this size are checked against their checksums at every start, in a second or two
SECONDS_BETWEEN_LINES = 30  # of progress, where there is no terminal for a bar


def masked_language_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in float32 over M slots, a constant number: means over micro batches and ranks are true means."""
    return F.cross_entropy(logits.float(), labels, reduction="sum") / labels.numel()


@dataclass
class Progress:
    """What is carried from step to step, and through checkpoints."""

    step: int = 0
    seconds: float = 0.0  # spent training, without evaluation and checkpoints
    residues: int = 0  # read while training, over all ranks
    history: list[dict[str, Any]] = field(default_factory=list)  # every evaluation


@dataclass
class Interval:
    """Sums since the last log, of this rank; `totals` names them in order."""

    device_sums: torch.Tensor
    host_sums: torch.Tensor
    began: float

    @classmethod
    def start(cls, device: torch.device) -> Interval:
        return cls(torch.zeros(2, device=device), torch.zeros(5, dtype=torch.float64), time.perf_counter())

    def add(self, batch, loss: torch.Tensor, logits: torch.Tensor, waited: float) -> None:
        with torch.no_grad():
            loss_sum = loss.detach() * batch.labels.numel()
            self.device_sums += torch.stack((loss_sum, (logits.argmax(-1) == batch.labels).sum().float()))
        self.host_sums += torch.tensor(
            [batch.targets, batch.residues, batch.tokens, batch.input_ids.numel(), waited], dtype=torch.float64
        )

    def totals(self) -> list[float]:
        """Over all ranks: loss, correct, targets, residues, tokens, places for tokens, seconds waited for data.

        Collective, and the only copy from the device.
        """
        both = torch.cat((self.device_sums.double(), self.host_sums.to(self.device_sums.device)))
        return engine.sum_over_ranks(both).tolist()


class Trainer:
    """One run on this rank. Construct it on every rank, call `pretrain` on every rank."""

    def __init__(self, run: RunConfig, zero: dict[str, Any], output: Path, resume: str = "auto"):
        self.run, self.output = run, output
        self.leader = engine.rank() == 0
        self.shards = Shards(run.data.train)
        self.validation = validation_sets(run)
        self.plan = batch_plan(run, self.shards.row_tokens, engine.rank(), engine.world_size())
        self.binding = {**run.binding(), "training data": self.shards.fingerprint}
        self.batches = TrainingBatches(self.shards, self.plan, run.training.seed, **run.masking.model_dump())
        shape = model_config(run, self.shards.max_length)
        if self.leader:
            for shards in (self.shards, *self.validation.values()):
                if sum(file["bytes"] for file in shards.files().values()) <= VERIFIED_BYTES:
                    verify(shards.path)
            self._lock = runs.open_run(output, run, self.binding, resume)
        self.device = engine.start_ranks()
        # Also a barrier: the run directory exists and is ours.
        drawn = torch.tensor([secrets.randbits(48) if self.leader else 0], dtype=torch.int64, device=self.device)
        job = int(engine.sum_over_ranks(drawn).item())
        self.watch = Watchdog(output, engine.rank(), engine.world_size(), run.watchdog.seconds, job).start()
        if self.leader:
            stopping.listen_to_file(output)

        torch.manual_seed(run.training.seed)  # every rank draws the same initial weights
        model = AMPLIFY(shape)
        model.gradient_checkpointing = run.training.activation_checkpointing
        self.parameters = sum(p.numel() for p in model.parameters())
        precision = resolve_precision(run.training.precision, self.device.type)
        self.engine = engine.Engine(model, run, zero, self.plan.accumulation, precision, self.device)
        self.progress, self.saved = Progress(), True  # nothing that could be lost
        found = runs.choose_checkpoint(output, resume, self.binding, run.training.steps, self.say)
        if found is not None:
            self.engine.load_state(found.reader(), found.step)
            self.saved = found.path.parent.resolve() == checkpoint.folder(output).resolve()
            self.progress = Progress(**found.state["progress"])
            self.say(f"continuing from {found.path} ({found.step} of {run.training.steps} steps are done)")

    def say(self, text: str) -> None:
        if self.leader:
            tqdm.write(text, file=sys.stderr)

    def pretrain(self) -> dict[str, Any] | None:
        """Train to the last step; returns what result.json holds. None: stopped and saved. Collective."""
        run, progress = self.run, self.progress
        loader = training_loader(
            self.batches, progress.step, run.training.steps, run.data.workers, self.device.type == "cuda"
        )
        if self.leader and progress.step < run.training.steps:
            (self.output / runs.RESULT).unlink(missing_ok=True)  # of a run that is now made longer
        with self._writer() as self.events, self._bar() as self.bar:
            if progress.step == 0:
                self._evaluate()
            self._last_line = time.perf_counter()
            interval = Interval.start(self.device)
            while progress.step < run.training.steps:
                if self._asked_to_stop():
                    return self._stop()
                logging = (progress.step + 1) % run.log.every == 0 or progress.step + 1 == run.training.steps
                rate = learning_rate(progress.step, run.optimizer)
                try:
                    norm = self.engine.step(self._losses(loader, interval), rate, logging)
                except engine.NotFinite as error:
                    raise self._diverged(str(error)) from None
                progress.step += 1
                self.saved = False
                self.watch.at(progress.step, "between steps")
                if logging:
                    self._log(interval, norm, rate)
                self.bar.update()
                if due(progress.step, run.evaluation.every, run.training.steps):
                    self._evaluate()
                if due(progress.step, run.checkpoint.every, run.training.steps):
                    self._save()
                if logging:
                    interval = Interval.start(self.device)
        orphans.finished()
        self.watch.close()
        return self._finish()

    def _asked_to_stop(self) -> bool:
        """Whether any rank was asked to. Collective."""
        asked = torch.tensor([float(stopping.requested())], device=self.device)
        return engine.sum_over_ranks(asked).item() > 0

    def _stop(self) -> None:
        """Save, say so in stopped.json, and let every rank go. Collective."""
        if not self.saved:
            self._save()
        if self.leader:
            newest = (checkpoint.complete(self.output) or [None])[-1]
            stopping.write_stopped(self.output, self.progress.step, newest)
            where = newest or "before the first one"
            self.say(f"stopped at step {self.progress.step}, {where}: the same command continues")
        engine.barrier()  # none leaves before that is written
        orphans.finished()
        self.watch.close()

    def _losses(self, loader, interval: Interval):
        """The losses of one step's micro batches; the engine goes backward through each before the next is made."""
        for _ in range(self.plan.accumulation):
            self.watch.at(self.progress.step + 1, "waiting for data")
            began = time.perf_counter()
            batch = next(loader)
            self.watch.at(self.progress.step + 1, "forward and backward")
            waited = time.perf_counter() - began
            batch = batch.to(self.device)
            logits = self.engine.forward(**batch.model_inputs()).logits
            loss = masked_language_loss(logits, batch.labels)
            interval.add(batch, loss, logits, waited)
            yield loss

    def _log(self, interval: Interval, norm, rate: float) -> None:
        progress = self.progress
        loss_sum, correct, targets, residues, tokens, places, waited = interval.totals()
        seconds = time.perf_counter() - interval.began
        loss, norm = loss_sum / targets, float(norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._diverged(f"loss {loss}, gradient norm {norm}")
        progress.seconds += seconds
        progress.residues += int(residues)
        for tag, value in {
            "train/loss": loss,
            "train/perplexity": perplexity(loss),
            "train/accuracy": correct / targets,
            "train/learning_rate": rate,
            "train/gradient_norm": norm,
            "speed/residues_per_second": residues / seconds,
            "speed/seconds_waiting_for_data": waited / engine.world_size(),
            "data/packing_efficiency": tokens / places,
            "data/epoch": progress.step * self.plan.global_rows / self.shards.num_rows,
        }.items():
            self.events.add_scalar(tag, value, progress.step)
        self.bar.set_postfix_str(f"loss {loss:.4f}, {tokens / seconds:,.0f} tokens/s", refresh=False)
        if self.bar.disable and time.perf_counter() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.perf_counter()
            left = (self.run.training.steps - progress.step) * seconds / self.run.log.every
            self.say(
                f"step {progress.step} of {self.run.training.steps}: loss {loss:.4f}, {tokens / seconds:,.0f} tokens/s, "
                f"about {left / 60:.0f} min left"
            )

    def _diverged(self, found: str) -> AmplifyError:
        return AmplifyError(
            f"step {self.progress.step}: {found}; training has diverged. Start again with a lower --optimizer.lr in "
            f"another --output; checkpoints from before it are in {checkpoint.folder(self.output)}"
        )

    def _evaluate(self) -> None:
        for name, shards in self.validation.items():
            for protocol in PROTOCOLS:
                score = evaluate(
                    self.engine.evaluation(), shards, protocol, self.device, self.run.evaluation.max_rows,
                    self.run.training.micro_batch_rows, engine.rank(), engine.world_size(), engine.sum_over_ranks,
                    progress=lambda rows: self.watch.at(self.progress.step, "evaluation"),
                )  # fmt: skip
                self.progress.history.append({"step": self.progress.step, "set": name, **score.as_dict()})
                for key in ("loss", "perplexity", "accuracy", "baseline_loss", "baseline_perplexity"):
                    self.events.add_scalar(
                        f"validation/{name}/{protocol}/{key}", score.as_dict()[key], self.progress.step
                    )
                self.say(f"step {self.progress.step}, {name}, {score.describe()}")
        self.engine.training()

    def _save(self) -> None:
        """Collective. If rank 0 cannot write, every rank ends with the same error."""
        self.watch.at(self.progress.step, "checkpoint")
        self.events.flush()  # what a resumed run will not log again
        state = {
            "step": self.progress.step,
            "progress": vars(self.progress),
            "binding": self.binding,
            "settings": self.run.model_dump(mode="json"),
            "model": self.engine.module.config.to_dict(),
            "precision": self.engine.precision,
        }
        gathered = []
        for name, weight, moments in self.engine.named_state():
            if self.leader:
                gathered.append((name, _host_copy(weight), {key: _host_copy(value) for key, value in moments.items()}))
        problem = None
        if self.leader:
            try:
                checkpoint.write(self.output, gathered, state)
                checkpoint.prune(self.output, self.run.checkpoint.keep_last, self.run.checkpoint.keep_every)
            except (AmplifyError, OSError) as error:
                problem = (
                    error if isinstance(error, AmplifyError) else AmplifyError(f"{error.filename}: {error.strerror}")
                )
        failed = engine.sum_over_ranks(torch.tensor([float(problem is not None)], device=self.device)).item()
        if failed:
            raise problem or AmplifyError("rank 0 could not write the checkpoint")
        self.saved = True

    def _finish(self) -> dict[str, Any]:
        progress = self.progress
        result = {
            "steps": progress.step,
            "parameters": self.parameters,
            "devices": engine.world_size(),
            "device": self.device.type,
            "residues": progress.residues,
            "seconds": progress.seconds,
            "residues_per_second": progress.residues / progress.seconds,
            "packing_efficiency": self.shards.manifest["packing_efficiency"],
            "checkpoint": str(checkpoint.complete(self.output)[-1]) if self.leader else None,
            "evaluations": progress.history,
        }
        if self.leader:
            write_json(self.output / runs.RESULT, result)
        return result

    def _writer(self) -> SummaryWriter:
        """TensorBoard with the step as x. Steps past the checkpoint that a killed run had logged are replaced."""
        if not self.leader:
            return _NoEvents()
        replaced_from = self.progress.step + 1 if self.progress.step else 0
        writer = SummaryWriter(self.output / runs.EVENTS, purge_step=replaced_from)
        writer.add_text("configuration", "```yaml\n" + self.run.to_yaml() + "```", self.progress.step)
        return writer

    def _bar(self) -> tqdm:
        return tqdm(
            total=self.run.training.steps, initial=self.progress.step, unit="step", desc="pretraining",
            disable=not (self.leader and sys.stderr.isatty()), dynamic_ncols=True,
        )  # fmt: skip


class _NoEvents:
    """What the other ranks log to."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def _host_copy(x: torch.Tensor) -> torch.Tensor:
    return x.detach().to("cpu", torch.float32, copy=True).contiguous()


def due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)
