"""All ranks for a moment, for the preflight: `python -m amplify_ds.cluster.trial_step QUESTION` on every machine.

Ranks meet as in training and add up one tensor. With a run's configuration, each then builds model and engine and takes
one optimizer step on the first micro batch that it will read: the run's model, micro batch, precision and ZeRO stage,
through DeepSpeed, on real rows. Left out: accumulation (one micro batch a rank), torch.compile (minutes of compiling),
weights to begin with, checkpoints. Nothing is written.
"""

from __future__ import annotations

import os
import socket
import time
from functools import partial
from typing import Any

from amplify_ds.cluster.remote_query import answer, say
from amplify_ds.errors import AmplifyError
from amplify_ds.processes import process_pool

ELEMENTS = {"cuda": 2**26, "cpu": 2**20}  # float32: 256 MiB, large enough for a network's full speed, or 4 MiB
ROUNDS = 5


def report(question: dict[str, Any]) -> dict[str, Any]:
    """node: this machine's place, slots: ranks here, world_size; address, port; run (JSON or None), zero."""
    slots = question["slots"]
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // slots))
    try:
        with process_pool(slots) as pool:
            return {"done": list(pool.map(partial(_rank, question), range(slots)))}
    except AmplifyError:  # a rank was killed; what it had reported is printed
        return {"done": []}


def _rank(question: dict[str, Any], local_rank: int) -> bool:
    rank = question["node"] * question["slots"] + local_rank
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(local_rank),
        LOCAL_SIZE=str(question["slots"]),
        WORLD_SIZE=str(question["world_size"]),
        MASTER_ADDR=question["address"],
        MASTER_PORT=str(question["port"]),
    )
    try:
        import torch

        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read by DeepSpeed when it is imported
        from amplify_ds.training import engine

        ranks = engine.start_ranks()
        say({"rank": rank, "host": socket.gethostname(), **all_reduce(ranks)})
        if question["run"] is not None:
            say({"rank": rank, **step(question, ranks)})
        engine.stop_ranks()
        return True
    except Exception as error:  # whatever a rank dies of in training, it would die of here
        lines = str(error).strip().splitlines() or [""]
        say({"rank": rank, "error": f"{type(error).__name__}: {lines[0]}"})
        return False


def all_reduce(ranks) -> dict[str, Any]:
    """{"correct": bool, "bytes_per_second": bus bandwidth}.

    Bus bandwidth: bytes / seconds · 2(n − 1)/n, what the slowest link must carry whatever the number of ranks n
    (NVIDIA nccl-tests, doc/PERFORMANCE.md).
    """
    import torch

    count = ranks.world_size
    values = torch.full((ELEMENTS[ranks.device.type],), float(ranks.rank + 1), device=ranks.device)
    ranks.sum(values)  # the first one makes the connections
    correct = bool((values == count * (count + 1) / 2).all())
    ranks.barrier()
    _wait_for(ranks.device)
    began = time.perf_counter()
    for _ in range(ROUNDS):
        ranks.sum(values)
    _wait_for(ranks.device)
    seconds = (time.perf_counter() - began) / ROUNDS
    return {"correct": correct, "bytes_per_second": values.nbytes / seconds * 2 * (count - 1) / count}


def step(question: dict[str, Any], ranks) -> dict[str, Any]:
    """{"loss": of this rank's micro batch, "seconds", "memory": peak bytes}"""
    from dataclasses import replace

    import torch.nn.functional as F

    from amplify_ds.config import RunConfig
    from amplify_ds.data.loader import TrainingBatches
    from amplify_ds.training import build, derived, fp8
    from amplify_ds.training.metrics import peak_memory

    run = RunConfig.model_validate_json(question["run"])
    run = run.model_copy(update={"training": run.training.model_copy(update={"compile": False})})
    mixture = derived.training_sources(run)
    cut = replace(derived.split_batch(run, mixture.row_tokens, ranks.rank, ranks.world_size), accumulation=1)
    batches = TrainingBatches(mixture, cut, run.training.seed, **run.masking.model_dump())
    shape = derived.model_config(run, mixture.max_length)
    fp8.check(run, shape, mixture.row_tokens, ranks.device.type)
    precision = derived.resolve_precision(run.training.precision, ranks.device.type)
    engine = build.build_engine(run, shape, question["zero"], cut, precision, ranks)
    batch = batches[0].to(ranks.device)
    began = time.perf_counter()
    loss = F.cross_entropy(engine.forward(**batch.model_inputs()).float(), batch.labels)
    engine.backward(loss)
    norm = engine.update(run.optimizer.lr)
    _wait_for(ranks.device)
    seconds = time.perf_counter() - began
    if norm is None:
        raise AmplifyError("the gradient of the first step is not finite")
    return {"loss": loss.item(), "seconds": seconds, "memory": peak_memory(ranks.device)}


def _wait_for(device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


if __name__ == "__main__":
    answer(report)
