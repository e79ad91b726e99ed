"""An all-reduce and one step on all ranks, for the preflight: `python -m amplify_ds.cluster.trial_step QUERY` on each
machine.

Ranks meet as in training and all-reduce one tensor. With a run's configuration, each then builds model and engine and
takes one optimizer step on the first micro batch that it will read: the run's model, micro batch, precision and ZeRO
stage, through DeepSpeed, on real rows. Left out: accumulation (there is one micro batch per rank), torch.compile (takes
minutes), initial weights, checkpoints. Nothing is written.
"""

from __future__ import annotations

import os
import socket
import time
from functools import partial
from typing import Any

from amplify_ds.cluster.remote_query import answer, print_report
from amplify_ds.errors import AmplifyError
from amplify_ds.processes import process_pool

ELEMENTS = {"cuda": 2**26, "cpu": 2**20}  # float32: 256 MiB, enough for a network's full speed, or 4 MiB
ROUNDS = 5


def report(query: dict[str, Any]) -> dict[str, Any]:
    """Start the ranks of this machine, which print their own reports, and return which ones succeeded, {"done": […]}.

    query: node, the index of this machine; slots, its number of ranks; world_size, address, port; run, the
    configuration as JSON, or None; zero, the DeepSpeed file.
    """
    slots = query["slots"]
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // slots))
    try:
        with process_pool(slots) as pool:
            return {"done": list(pool.map(partial(_rank, query), range(slots)))}
    except AmplifyError:  # a rank was killed; its reports so far are printed already
        return {"done": []}


def _rank(query: dict[str, Any], local_rank: int) -> bool:
    """Run one rank and return whether it succeeded. Prints reports of the all-reduce and the step, or of an error."""
    rank = query["node"] * query["slots"] + local_rank
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(local_rank),
        LOCAL_SIZE=str(query["slots"]),
        WORLD_SIZE=str(query["world_size"]),
        MASTER_ADDR=query["address"],
        MASTER_PORT=str(query["port"]),
    )
    try:
        import torch

        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read by DeepSpeed when it is imported
        from amplify_ds.training import engine

        ranks = engine.start_ranks()
        print_report({"rank": rank, "host": socket.gethostname(), **all_reduce(ranks)})
        if query["run"] is not None:
            print_report({"rank": rank, **step(query, ranks)})
        engine.stop_ranks()
        return True
    except Exception as error:  # any error that would end a rank in training
        lines = str(error).strip().splitlines() or [""]
        print_report({"rank": rank, "error": f"{type(error).__name__}: {lines[0]}"})
        return False


def all_reduce(ranks) -> dict[str, Any]:
    """Return {"correct": whether the sum is correct, "bytes_per_second": bus bandwidth}. Every rank must call it.

    Bus bandwidth: bytes / seconds · 2(n − 1)/n, the rate of the slowest link, independent of the number of ranks n
    (NVIDIA nccl-tests, doc/PERFORMANCE.md).
    """
    import torch

    count = ranks.world_size
    values = torch.full((ELEMENTS[ranks.device.type],), float(ranks.rank + 1), device=ranks.device)
    ranks.sum(values)  # opens the connections
    correct = bool((values == count * (count + 1) / 2).all())
    ranks.barrier()
    _wait_for(ranks.device)
    began = time.perf_counter()
    for _ in range(ROUNDS):
        ranks.sum(values)
    _wait_for(ranks.device)
    seconds = (time.perf_counter() - began) / ROUNDS
    return {"correct": correct, "bytes_per_second": values.nbytes / seconds * 2 * (count - 1) / count}


def step(query: dict[str, Any], ranks) -> dict[str, Any]:
    """Take one optimizer step; return {"loss": of this rank's micro batch, "seconds", "memory": peak in bytes}.

    Every rank must call it. Raises AmplifyError if the gradient is not finite.
    """
    from dataclasses import replace

    import torch.nn.functional as F

    from amplify_ds.config import RunConfig
    from amplify_ds.data.loader import TrainingBatches
    from amplify_ds.training import build, derived, fp8
    from amplify_ds.training.metrics import peak_memory

    run = RunConfig.model_validate_json(query["run"])
    run = run.model_copy(update={"training": run.training.model_copy(update={"compile": False})})
    mixture = derived.training_sources(run)
    split = replace(derived.split_batch(run, mixture.row_tokens, ranks.rank, ranks.world_size), accumulation=1)
    batches = TrainingBatches(mixture, split, run.training.seed, **run.masking.model_dump())
    shape = derived.model_config(run, mixture.max_length)
    fp8.check(run, shape, mixture.row_tokens, ranks.device.type)
    precision = derived.resolve_precision(run.training.precision, ranks.device.type)
    engine = build.build_engine(run, shape, query["zero"], split, precision, ranks)
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
