"""What a machine reports to the preflight: versions, devices, shards, output directory, disk, clock.

`python -m amplify_ds.cluster.node_report QUESTION`. It only reads, except for one small file in the output directory,
or in the part of its path that exists, for the other machines to find; the preflight removes it.
"""

from __future__ import annotations

import time

STARTED = time.time()  # before the imports that take seconds: asked before, answered after

import hashlib
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import amplify_ds
from amplify_ds.cluster.remote_query import answer
from amplify_ds.errors import AmplifyError
from amplify_ds.network import free_port

PACKAGE = Path(amplify_ds.__file__).parent


def report(question: dict[str, Any]) -> dict[str, Any]:
    """run: the run's configuration as JSON, or None. output, token, number: for the file. slots, world_size: ranks."""
    import torch

    gpus = torch.cuda.device_count() if os.environ.get("DS_ACCELERATOR") != "cpu" else 0
    found = {
        "versions": {
            "Python": platform.python_version(),
            "torch": torch.__version__,
            "CUDA": torch.version.cuda or "none",
            **{name: _version(name) for name in ("deepspeed", "transformers", "flash-attn")},
            "amplify_ds": f"{amplify_ds.__version__} ({source_hash()})",
        },
        "gpus": [torch.cuda.get_device_name(i) for i in range(gpus)],
        "cores": len(os.sched_getaffinity(0)),
        "free_port": free_port(""),
    }
    if question["run"] is not None:
        from amplify_ds.config import RunConfig

        run = RunConfig.model_validate_json(question["run"])
        found["shards"] = _shards(run, question["world_size"])
        found["output"] = _output(Path(question["output"]), f".preflight-{question['token']}-{question['number']}")
        found["checkpoint_bytes"] = _checkpoint_bytes(run)
    return {**found, "started": STARTED, "ended": time.time()}


def source_hash() -> str:
    """Of all that the package consists of: copies of one version may differ."""
    digest = hashlib.sha256()
    for path in sorted(p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".yaml")):
        digest.update(f"{path.relative_to(PACKAGE)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _shards(run, world_size: int) -> dict[str, Any]:
    """{directory: fingerprint} of all that will be read; or why it cannot be read, or the batch not be cut."""
    from amplify_ds.training import derived

    try:
        mixture = derived.training_sources(run)
        opened = [*(source.shards for source in mixture.sources), *derived.validation_sets(run).values()]
        derived.split_batch(run, mixture.row_tokens, 0, world_size)
        return {"fingerprints": {str(shards.path): shards.fingerprint for shards in opened}}
    except (AmplifyError, OSError) as error:
        return {"error": str(error)}


def _output(output: Path, name: str) -> dict[str, Any]:
    place = next(path for path in (output, *output.absolute().parents) if path.exists())
    try:
        (place / name).write_text(name, encoding="utf-8")
    except OSError as error:
        return {"error": f"{place}: {error.strerror}"}
    checkpoints = [path for path in (output / "checkpoints").rglob("*") if path.is_file()]
    return {
        "file": str(place / name),
        "free": shutil.disk_usage(place).free,
        "checkpoints": sum(path.stat().st_size for path in checkpoints),
    }


def _checkpoint_bytes(run) -> int:
    """A checkpoint holds weights and AdamW's two moments in float32."""
    from amplify_ds.training import derived

    return 3 * 4 * derived.parameter_count(derived.model_config(run, 512))


if __name__ == "__main__":
    answer(report)
