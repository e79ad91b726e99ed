"""Count, on a CPU, how often a training step would make the host wait for a GPU: run by test_host_syncs.py.

    python -m tests.support.host_syncs TRAIN_SHARDS VALIDATION_SHARDS FOLDER '[[stage, precision, spoiled], …]'

Everything is on the CPU here, so reading a tensor stands for a copy from the device, for which the host waits:
`.item()`, `bool(x)`, `.tolist()`, `.cpu()`, shapes that depend on values (nonzero, a boolean index). DeepSpeed's
explicit waits for a device or a stream are counted too, because the accelerator claims to be asynchronous, as a GPU is.
Copies to a device from memory that is not pinned cannot be detected here. spoiled: the loss is read in every micro
batch, as a careless change might do. Prints [[[step, micro batch, operation, location], …], …] for the steps that do
not log; micro batch 1 is the last of the two in a step, with the update.
"""

import json
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from amplify_ds import config
from amplify_ds.training import build, engine, trainer
from tests.support.paths import ROOT
from tests.support.training import SMALL

VALUES_DECIDE = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim"}
READS = {torch.Tensor.tolist: "tolist", torch.Tensor.cpu: "cpu"}
ON_THE_HOST = {  # these reads happen only on a CPU, or are of tensors on the host
    "torch/optim/adamw.py": "the plain AdamW counts its steps on the host; GPUs use the fused one",
    "torch/optim/adam.py": "the same",
    "amplify_ds/model/attention.py": "cu_seqlens is on the host with every device; kernels for GPUs need no loop",
    "amplify_ds/training/shared_flags.py": "sums that were copied to the host during the previous step",
}
STEPS, FIRST = 5, 3  # FIRST is the first counted step, when DeepSpeed's timers run; the last step logs


class Recorder:
    def __init__(self):
        self.waits, self.position = [], None  # position: (step, micro batch), None where waits are allowed

    def add(self, operation: str) -> None:
        stack = [
            (frame.filename.rpartition("site-packages/")[2].removeprefix(f"{ROOT}/"), frame)
            for frame in reversed(traceback.extract_stack())
        ]
        if self.position and not any(file.endswith(suffix) for file, _ in stack for suffix in ON_THE_HOST):
            candidates = (entry for entry in stack if entry[0].startswith(("deepspeed/", "amplify_ds/")))
            file, frame = next(candidates, stack[-1])
            self.waits.append([*self.position, operation, f"{frame.name} in {file}:{frame.lineno}"])


class Operations(TorchDispatchMode):
    def __init__(self, recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        by_mask = name in ("index", "index_put_") and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        if name in VALUES_DECIDE or by_mask:
            self.recorder.add(name)
        return func(*args, **(kwargs or {}))


class Calls(TorchFunctionMode):
    def __init__(self, recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in READS:
            self.recorder.add(READS[func])
        return func(*args, **(kwargs or {}))


class Stream:
    """Stands in for the streams and events of a GPU. Everything runs in order, so only waits matter."""

    recorder = None

    def synchronize(self):
        Stream.recorder.add("Stream.synchronize")

    def query(self):
        return True  # the event has happened

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


@contextmanager
def as_on_a_gpu(recorder):
    """Let DeepSpeed wait where it would on an asynchronous device, and record the waits."""
    Stream.recorder = recorder
    accelerator = type(engine.deepspeed.accelerator.get_accelerator())
    answers = {
        "synchronize": lambda self, index=None: recorder.add("synchronize"),
        "is_synchronized_device": lambda self: False,
        "Stream": Stream,
        "Event": Stream,
        "current_stream": lambda self, index=None: Stream(),
        "default_stream": lambda self, index=None: Stream(),
    }
    with mock.patch.multiple(accelerator, **answers):
        yield


def spoiled_loss(logits, labels, rows, right=trainer.masked_language_loss):
    loss, row_losses = right(logits, labels, rows)
    assert loss.item() > 0
    return loss, row_losses


def count(shards: list[str], output: Path, stage: int, precision: str, spoiled: bool) -> list:
    settings = {
        **SMALL,
        "training.steps": STEPS,
        "log.every": STEPS,
        "evaluation.max_rows": 2,
        "training.precision": precision,
        "training.micro_batch_rows": 1,
        "data.train": [shards[0]],
        "data.validation": [shards[1]],
    }
    zero = json.loads((ROOT / f"ds_configs/zero{stage}.json").read_text())
    recorder = Recorder()
    loss = spoiled_loss if spoiled else trainer.masked_language_loss
    with as_on_a_gpu(recorder), mock.patch.object(trainer, "masked_language_loss", loss):
        run = build.build(config.resolve("tiny", None, settings), zero, output, engine.start_ranks())
        at = run.watch.at

        def moved(step, phase):
            at(step, phase)
            if phase == "waiting for data":
                last = recorder.position is not None and recorder.position[0] == step
                recorder.position = (step, int(last)) if FIRST <= step < STEPS else None

        with mock.patch.object(run.watch, "at", moved), Operations(recorder), Calls(recorder):
            run.pretrain()
    return recorder.waits


if __name__ == "__main__":
    *shards, folder, cases = sys.argv[1:]
    waits = [count(shards, Path(folder) / str(number), *case) for number, case in enumerate(json.loads(cases))]
    print("FOUND", json.dumps(waits))
