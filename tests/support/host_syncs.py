"""Count the places of a training step at which the host would wait for a GPU, on a CPU: run by test_host_syncs.py.

    python -m tests.support.host_syncs TRAIN_SHARDS VALIDATION_SHARDS FOLDER '[[stage, precision, spoiled], …]'

All is on the CPU here, so a read of a tensor stands for a copy from the device that the host waits for: `.item()`,
`bool(x)`, `.tolist()`, `.cpu()`, shapes that depend on values (nonzero, a boolean index). DeepSpeed's explicit waits
for a device or a stream are counted too: it is told that the device works on beside the host, as a GPU does. What
cannot be seen here: copies to a device from memory that is not pinned. spoiled: the loss reads itself in every micro
batch, as a careless change would have it. Prints [[[step, micro batch, what, where], …], …] of the steps that do not
log; micro batch 1 is the last of a step's two, with the update.
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
ON_THE_HOST = {  # read on a CPU alone, or on it anyway
    "torch/optim/adamw.py": "the plain AdamW counts its steps on the host; GPUs have the fused one",
    "torch/optim/adam.py": "the same",
    "amplify_ds/model/attention.py": "cu_seqlens is on the host on every device, and GPUs have kernels without a loop",
    "amplify_ds/training/shared_flags.py": "sums that were copied to the host during the step before",
}
STEPS, FIRST = 5, 3  # of a run, and the first that is counted: DeepSpeed's timers would have begun; the last one logs


class Recorder:
    def __init__(self):
        self.found, self.place = [], None

    def add(self, what: str) -> None:
        stack = [
            (frame.filename.rpartition("site-packages/")[2].removeprefix(f"{ROOT}/"), frame)
            for frame in reversed(traceback.extract_stack())
        ]
        if self.place and not any(file.endswith(place) for file, _ in stack for place in ON_THE_HOST):
            known = (entry for entry in stack if entry[0].startswith(("deepspeed/", "amplify_ds/")))
            file, frame = next(known, stack[-1])
            self.found.append([*self.place, what, f"{frame.name} in {file}:{frame.lineno}"])


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
    """Stands for a GPU's streams and events: all is done in order here, so that only waits for it matter."""

    recorder = None

    def synchronize(self):
        Stream.recorder.add("Stream.synchronize")

    def query(self):
        return True  # an event of long ago has happened

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


@contextmanager
def as_on_a_gpu(recorder):
    """DeepSpeed waits where it would on a device that works on beside the host; the waits are recorded."""
    Stream.recorder = recorder
    kind = type(engine.deepspeed.accelerator.get_accelerator())
    answers = {
        "synchronize": lambda self, index=None: recorder.add("synchronize"),
        "is_synchronized_device": lambda self: False,
        "Stream": Stream,
        "Event": Stream,
        "current_stream": lambda self, index=None: Stream(),
        "default_stream": lambda self, index=None: Stream(),
    }
    with mock.patch.multiple(kind, **answers):
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
                last = recorder.place is not None and recorder.place[0] == step
                recorder.place = (step, int(last)) if FIRST <= step < STEPS else None

        with mock.patch.object(run.watch, "at", moved), Operations(recorder), Calls(recorder):
            run.pretrain()
    return recorder.found


if __name__ == "__main__":
    *shards, folder, asked = sys.argv[1:]
    found = [count(shards, Path(folder) / str(number), *words) for number, words in enumerate(json.loads(asked))]
    print("FOUND", json.dumps(found))
