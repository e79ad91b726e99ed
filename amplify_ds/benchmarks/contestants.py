"""The contestants of the training benchmark. Each runs in a process of its own.

`step` takes one optimizer step and returns its seconds, residues, windows and model FLOPs. `parts` takes one more step
and returns the seconds of each part of it. `memory` returns the peak memory in bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from amplify_ds.benchmarks.padded_model import ReferenceAMPLIFY
from amplify_ds.config import RunConfig
from amplify_ds.data.loader import BatchSplit, PackedBatch, TrainingBatches
from amplify_ds.data.workers import TrainingLoader
from amplify_ds.training import derived
from amplify_ds.training.metrics import model_flops, peak_memory
from amplify_ds.vocab import PAD, TOKENS

COLLECTIVES = (
    "all_reduce",
    "reduce_scatter_tensor",
    "all_gather_into_tensor",
    "_all_gather_base",
    "broadcast",
    "reduce",
    "all_gather",
)


class Contestant:
    def __init__(self, run: RunConfig, rows: int, rank: int, ranks: int, threads: int):
        torch.set_num_threads(threads)
        self.run = run
        mixture = derived.training_sources(run)
        self.config = derived.model_config(run, mixture.max_length)
        self.device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
        self.precision = derived.resolve_precision(run.training.precision, self.device.type)
        split = BatchSplit(rows * ranks, rows, 1, rank, ranks)
        self.batches = TrainingBatches(mixture, split, run.training.seed, **run.masking.model_dump())
        self.loader = TrainingLoader(self.batches, 0, 0, self.device.type == "cuda")
        self.times: dict[str, float] = {}
        torch.manual_seed(run.training.seed)
        self.build(ranks)

    def step(self) -> dict[str, float]:
        self._wait()
        began = time.perf_counter()
        batch = self.train_step()
        self._wait()
        seconds = time.perf_counter() - began
        lengths = batch.cu_seqlens.diff().double()
        return {
            "seconds": seconds,
            "residues": batch.residues,
            "windows": int((lengths > 0).sum()),
            "flops": model_flops(self.config, batch.tokens, lengths.square().sum().item()),
        }

    def parts(self) -> dict[str, float]:
        self.times = dict.fromkeys(("data", "forward", "backward", "communication", "optimizer", "host sync"), 0.0)
        self.train_step()
        seconds = self.times
        seconds["backward"] -= seconds.pop("communication in backward", 0.0)
        seconds["optimizer"] -= seconds.pop("communication in optimizer", 0.0)
        self.times = {}
        return seconds

    def memory(self) -> dict[str, float]:
        return {"memory": peak_memory(self.device)}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of the block to part `name` while `parts` is measuring."""
        if not self.times:
            yield
            return
        self._wait()
        began, self.current_part = time.perf_counter(), name
        yield
        self._wait()
        self.times[name] += time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def build(self, ranks: int) -> None:
        raise NotImplementedError

    def train_step(self) -> PackedBatch:
        raise NotImplementedError


class Padded(Contestant):
    """The published code's padded batches, with the independent model of padded_model.py."""

    def build(self, ranks: int) -> None:
        shape = self.run.model
        self.model = ReferenceAMPLIFY(
            len(TOKENS),
            shape.hidden_size,
            shape.num_hidden_layers,
            shape.num_attention_heads,
            shape.intermediate_size,
            shape.norm_eps,
        ).to(self.device)
        settings = self.run.optimizer
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )

    def train_step(self) -> PackedBatch:
        with self.part("data"):
            batch = next(self.loader)
            ids, mask, labels = (x.to(self.device) for x in self.pad(batch))
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision != "fp32")
        with self.part("forward"), autocast:
            logits = self.model(ids, mask)
            loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
        with self.part("backward"):
            loss.backward()
        with self.part("optimizer"):
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.run.optimizer.gradient_clipping)
            self.optimizer.step()
            self.optimizer.zero_grad()
        with self.part("host sync"):
            loss.item()
        return batch

    def pad(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return ids, attention mask and labels of padded windows, each [B, L]; labels are -100 except at targets."""
        ends = batch.cu_seqlens.tolist()
        windows = [(a, b) for a, b in zip(ends, ends[1:]) if (batch.input_ids[a:b] != PAD).any()]  # not padding
        all_labels = torch.full((batch.input_ids.numel(),), -100)
        all_labels[batch.masked_positions] = batch.labels
        shape = len(windows), batch.max_seqlen
        ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
        lengths = torch.tensor(
            [end - begin for begin, end in windows]
        )  # not from ids: a masked position may hold a random <pad>
        for row, (begin, end) in enumerate(windows):
            ids[row, : end - begin], labels[row, : end - begin] = batch.input_ids[begin:end], all_labels[begin:end]
        return ids, torch.arange(batch.max_seqlen) < lengths[:, None], labels


class Ours(Contestant):
    """The training path of this package."""

    def build(self, ranks: int) -> None:
        from amplify_ds.training import build, engine

        group = engine.start_ranks()
        self.device = group.device
        zero = {"zero_optimization": {"stage": 1}}
        self.engine = build.build_engine(self.run, self.config, zero, self.batches.split, self.precision, group)
        for name in COLLECTIVES:
            setattr(torch.distributed, name, self._timed(getattr(torch.distributed, name)))

    def train_step(self) -> PackedBatch:
        from amplify_ds.training.trainer import masked_language_loss

        with self.part("data"):
            batch = next(self.loader).to(self.device)
        with self.part("forward"):
            loss, _ = masked_language_loss(self.engine.forward(**batch.model_inputs()), batch.labels, 1)
        with self.part("backward"):
            self.engine.backward(loss)
        with self.part("optimizer"):
            self.engine.update(self.run.optimizer.lr)
        return batch

    def _timed(self, collective):
        def call(*arguments, **options):
            began = time.perf_counter()
            result = collective(*arguments, **options)
            if self.times:
                self._wait()
                seconds = time.perf_counter() - began
                self.times["communication"] += seconds
                key = f"communication in {self.current_part}"
                self.times[key] = self.times.get(key, 0.0) + seconds
            return result

        return call


class Matrices(Contestant):
    """The matrix products of all blocks, forward and backward, and nothing else."""

    def build(self, ranks: int) -> None:
        size, width = self.config.hidden_size, self.config.ffn_size
        dtype = torch.float32 if self.precision == "fp32" else torch.bfloat16
        shapes = [(size, size)] * 4 + [(size, 2 * width), (width, size)]
        rows = self.batches.split.micro_rows * self.batches.mixture.row_tokens
        factory: dict[str, Any] = {"device": self.device, "dtype": dtype}
        self.products = [
            (torch.randn(rows, a, **factory), torch.randn(b, a, **factory), torch.randn(rows, b, **factory))
            for a, b in shapes
        ]

    def step(self) -> dict[str, float]:
        self._wait()
        began = time.perf_counter()
        flops = 0.0
        for _ in range(self.config.num_hidden_layers):
            for x, weight, grad in self.products:
                x @ weight.T
                grad @ weight
                grad.T @ x
                flops += 6.0 * x.shape[0] * weight.numel()
        self._wait()
        return {"seconds": time.perf_counter() - began, "residues": 0, "windows": 0, "flops": flops}


KINDS: dict[str, Any] = {"padded": Padded, "ours": Ours, "matrices": Matrices}
