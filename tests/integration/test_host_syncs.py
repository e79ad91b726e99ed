"""How often a training step makes the host wait for its device at every ZeRO stage, counted on a CPU by host_syncs.py.

During a wait the GPU runs idle, because no further work is queued. Between logs this package must not wait in a micro
batch. Once per step the host must wait, to know whether the gradient is finite before any weight changes.
"""

import json
import os
from collections import Counter

import pytest
import torch

from amplify_ds.training.ranks import Ranks
from amplify_ds.training.shared_flags import SharedFlags
from tests.support.commands import before_path, ranks_of, run
from tests.support.host_syncs import FIRST, STEPS
from tests.support.paths import ROOT
from tests.support.training import launch_words

# Waits in a micro batch and at the update; all but the first are in DeepSpeed.
NORM = "_local_scalar_dense, is_invalid_grad_norm in deepspeed/runtime/utils.py"
EXPECTED = {
    (0, "fp32"): ({}, {"_local_scalar_dense, update in amplify_ds/training/engine.py": 1}),
    (1, "fp32"): ({}, {NORM: 2}),  # once before the update, once more while clipping
    (2, "fp32"): ({}, {NORM: 2}),
    ("2_overlap", "bf16"): (  # communication during the backward pass must have finished
        {"synchronize, independent_gradient_partition_epilogue in deepspeed/runtime/zero/stage_1_and_2.py": 1},
        {NORM: 2, "_local_scalar_dense, has_overflow in deepspeed/runtime/zero/stage_1_and_2.py": 1},
    ),
    (3, "fp32"): (
        {"Stream.synchronize, independent_gradient_partition_epilogue in deepspeed/runtime/zero/stage3.py": 1},
        {NORM: 1, "synchronize, _allgather_params_coalesced in deepspeed/runtime/zero/partition_parameters.py": 1},
    ),
    (1, "bf16"): ({}, {NORM: 1, "_local_scalar_dense, clip_tensors_by_global_norm in deepspeed/runtime/utils.py": 1}),
    (2, "bf16"): ({}, {NORM: 2, "_local_scalar_dense, has_overflow in deepspeed/runtime/zero/stage_1_and_2.py": 1}),
}
CONTROL = (1, "fp32")  # counted once more with a loss that is read in every micro batch
READ = "_local_scalar_dense, pretrain in amplify_ds/training/trainer.py"


@pytest.fixture(scope="module")
def waits(shards, tmp_path_factory) -> dict:
    """Return {(stage, precision, spoiled): [[step, micro batch, operation, location], …]} of rank 0 of two."""
    cases = [(*case, False) for case in EXPECTED] + [(*CONTROL, True)]
    folder = tmp_path_factory.mktemp("syncs")
    arguments = [shards["train"], shards["validation"], folder, json.dumps(cases)]
    result = ranks_of(2, "tests.support.host_syncs", *arguments)
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("FOUND "))
    return dict(zip(cases, json.loads(line[6:])))


def per_step(records, micro_batch) -> dict[int, Counter]:
    """Return {step: {operation and location: count}} for that micro batch of each step."""
    steps: dict[int, Counter] = {step: Counter() for step in range(FIRST, STEPS)}
    for step, index, operation, location in records:
        if index == micro_batch:
            steps[step][f"{operation}, {location.rpartition(':')[0]}"] += 1
    return steps


@pytest.mark.parametrize("stage, precision", EXPECTED)
def test_waits_of_a_step_between_logs(waits, stage, precision):
    records = waits[stage, precision, False]
    of_micro_batch, at_update = EXPECTED[stage, precision]
    listed = "\n".join(f"step {step}, micro batch {index}: {what}, {where}" for step, index, what, where in records)
    for counts in per_step(records, 0).values():
        assert counts == Counter(of_micro_batch), f"the host waits in a micro batch:\n{listed}"
    for counts in per_step(records, 1).values():
        assert counts == Counter(of_micro_batch) + Counter(at_update), f"the host waits in a step:\n{listed}"


def test_a_read_in_the_micro_batch_loop_is_counted(waits):
    records = waits[CONTROL[0], CONTROL[1], True]
    assert all(counts == {READ: 1} for counts in per_step(records, 0).values())
    assert all(counts == Counter({READ: 1}) + Counter(EXPECTED[CONTROL][1]) for counts in per_step(records, 1).values())


def test_a_flag_set_on_one_rank_reaches_all_ranks(monkeypatch):
    others = torch.tensor([0.0, 0.0, 2.0])
    monkeypatch.setattr(Ranks, "sum", lambda ranks, values: values.add_(others))
    flags = SharedFlags(3, Ranks(0, 2, torch.device("cpu")))
    assert flags.received() == [False, False, False]
    flags.send(True, False, False)
    assert flags.received() == flags.received() == [True, False, True]
    flags.send(False, False, True)
    assert flags.received() == [False, False, True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU test: no CUDA device here, not run")
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_on_a_gpu_the_host_waits_at_the_update_alone(shards, tmp_path, stage):
    command = launch_words(1, tmp_path / "run", shards, stage, log__every=5, training__micro_batch_rows=2)
    command[command.index("amplify_ds.train")] = "tests.support.strict_train"
    strict = dict(os.environ) | {"PYTHONPATH": before_path(ROOT)}
    result = run(*command, env=strict)
    assert result.returncode == 0, result.stderr
    command[command.index(str(tmp_path / "run"))] = str(tmp_path / "spoiled")
    spoiled = run(*command, env=strict | {"SPOILED": "1"})
    assert spoiled.returncode != 0 and "synchronizing CUDA operation" in spoiled.stderr, spoiled.stderr
