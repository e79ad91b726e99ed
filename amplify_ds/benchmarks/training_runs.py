"""Training runs as a user starts them, one after another, for benchmarks: started, continued, or reused.

RUN.yaml holds all settings of a run, RUN.log what it said. The ranks end with this process, however it ends: they watch
AMPLIFY_LAUNCHER_PID (training/launcher_watch.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from amplify_ds.benchmarks.common import gpus
from amplify_ds.config import RunConfig
from amplify_ds.errors import AmplifyError
from amplify_ds.training import checkpoint, run_directory
from amplify_ds.training.derived import training_sources
from amplify_ds.training.stopping import SAVED

ROOT = Path(__file__).parents[2]
_SECONDS_BETWEEN_LOOKS = 1.0
# A resumed run may change these, but they belong to what is measured. Rows a micro batch: the number of ranks.
_MEASURED = (("training", "steps"), ("training", "micro_batch_rows"), ("evaluation", "every"))


def check(run: Path, config: RunConfig) -> None:
    """AmplifyError if `run` was made with other settings."""
    if not (run / run_directory.DESCRIPTION).exists():
        return
    found = run_directory.read_description(run)
    has = {**found["binding"], **_measured(found["settings"])}
    asked = {**config.binding(), "training data": training_sources(config).binding()}
    asked |= _measured(config.model_dump(mode="json"))
    if differing := run_directory.differences(has, asked):
        raise AmplifyError(
            f"{run}: is a run with other settings:\n  "
            + "\n  ".join(differing)
            + "\nChoose another --directory, or ask for the same settings to reuse it."
        )


def _measured(settings: dict) -> dict:
    return {f"{section}.{name}": settings.get(section, {}).get(name) for section, name in _MEASURED}


def train(run: Path, config: RunConfig, recipe: str, ranks: int, progress: Callable[[int], object]) -> None:
    """Train to the end, unless that has been done. progress: called with further steps done, now and then.

    Interrupted, it lets the run save a checkpoint before it passes the interruption on; a second one kills the run.
    """
    done = 0
    if not (run / run_directory.RESULT).exists():
        process = _start(run, config, recipe, ranks)
        try:
            while process.poll() is None:
                try:
                    process.wait(_SECONDS_BETWEEN_LOOKS)
                except subprocess.TimeoutExpired:
                    now = max(checkpoint.by_step(run), default=0)
                    progress(now - done)
                    done = now
        except BaseException:
            _stop(process)
            print(f"{run}: stopped; the same command continues", file=sys.stderr)
            raise
        if process.returncode:
            _explain(run, process.returncode)
    progress(config.training.steps - done)


def _start(run: Path, config: RunConfig, recipe: str, ranks: int) -> subprocess.Popen:
    settings = run.with_name(f"{run.name}.yaml")
    settings.write_text(config.to_yaml(), encoding="utf-8")
    devices = gpus()
    environment = {
        **os.environ,
        "AMPLIFY_LAUNCHER_PID": str(os.getpid()),
        "GPUS_HERE": str(devices),
        **({} if devices else {"DS_ACCELERATOR": "cpu"}),
    }
    environment.pop("OMP_NUM_THREADS", None)  # the launcher shares the cores out
    words = [sys.executable, "-m", "amplify_ds.launch", "--ranks", ranks, "--", "--recipe", recipe]
    words += ["--config", settings, "--deepspeed_config", ROOT / "ds_configs/zero1.json", "--output", run]
    with open(run.with_name(f"{run.name}.log"), "a", encoding="utf-8") as log:
        return subprocess.Popen(
            [str(word) for word in words], cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def _stop(process: subprocess.Popen) -> None:
    """Ask to save and stop, and wait; asked again, to stop at once."""
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait()
        except KeyboardInterrupt:
            continue


def _explain(run: Path, code: int) -> None:
    log = run.with_name(f"{run.name}.log")
    if code == SAVED:
        raise AmplifyError(f"{run}: was asked to stop, and saved; the same command continues")
    last = "\n  ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:])
    raise AmplifyError(f"{run}: training ended with code {code}. The end of {log}:\n  {last}")
