"""Training runs for benchmarks, through the same launcher that users call: started, continued or reused.

RUN.yaml holds all settings of a run, RUN.log its output. The ranks end when this process ends, however it ends: they
watch AMPLIFY_LAUNCHER_PID (training/launcher_watch.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from amplify_ds.benchmarks.common import gpus
from amplify_ds.config import RunConfig
from amplify_ds.errors import AmplifyError
from amplify_ds.training import checkpoint, run_directory
from amplify_ds.training.derived import training_sources
from amplify_ds.training.stopping import SAVED

ROOT = Path(__file__).parents[2]
_SECONDS_BETWEEN_CHECKS = 1.0
# A resumed run may change these settings, but a benchmark may not. The rows per micro batch give the number of ranks.
_MEASURED = (("training", "steps"), ("training", "micro_batch_rows"), ("evaluation", "every"))


def check(run: Path, config: RunConfig) -> None:
    """Raise AmplifyError if `run` was started with different settings."""
    if not (run / run_directory.DESCRIPTION).exists():
        return
    description = run_directory.read_description(run)
    existing = {**description["binding"], **_measured(description["settings"])}
    requested = {**config.binding(), "training data": training_sources(config).binding()}
    requested |= _measured(config.model_dump(mode="json"))
    if differing := run_directory.differences(existing, requested):
        raise AmplifyError(
            f"{run}: was started with different settings:\n  "
            + "\n  ".join(differing)
            + "\nChoose another --directory, or give the same settings to reuse it."
        )


def _measured(settings: dict) -> dict:
    return {f"{section}.{name}": settings.get(section, {}).get(name) for section, name in _MEASURED}


def train(run: Path, config: RunConfig, recipe: str, ranks: int, progress: Callable[[int], object]) -> None:
    """Train to the end, unless the run is complete. `progress` is called with the number of new steps.

    After an interrupt, the run saves a checkpoint before the interrupt is raised again; a second interrupt kills it.
    """
    done = 0
    if not (run / run_directory.RESULT).exists():
        process = _start(run, config, recipe, ranks)
        try:
            while process.poll() is None:
                try:
                    process.wait(_SECONDS_BETWEEN_CHECKS)
                except subprocess.TimeoutExpired:
                    step = max(checkpoint.by_step(run), default=0)
                    progress(step - done)
                    done = step
        except BaseException:
            _stop(process)
            print(f"{run}: stopped; run the same command to continue", file=sys.stderr)
            raise
        if process.returncode:
            _fail(run, process.returncode)
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
    environment.pop("OMP_NUM_THREADS", None)  # the launcher divides the cores among ranks
    command = [sys.executable, "-m", "amplify_ds.launch", "--ranks", ranks, "--", "--recipe", recipe]
    command += ["--config", settings, "--deepspeed_config", ROOT / "ds_configs/zero1.json", "--output", run]
    with open(run.with_name(f"{run.name}.log"), "a", encoding="utf-8") as log:
        return subprocess.Popen(
            [str(argument) for argument in command],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _stop(process: subprocess.Popen) -> None:
    """Send SIGTERM, upon which the run saves a checkpoint, and wait. A KeyboardInterrupt sends it again: stop now."""
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait()
        except KeyboardInterrupt:
            continue


def _fail(run: Path, code: int) -> NoReturn:
    """Raise AmplifyError with the end of the log."""
    log = run.with_name(f"{run.name}.log")
    if code == SAVED:
        raise AmplifyError(f"{run}: stopped on request after a checkpoint was saved; run the same command to continue")
    last = "\n  ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:])
    raise AmplifyError(f"{run}: training ended with exit code {code}. The end of {log}:\n  {last}")
