"""What a machine reports to the preflight: versions, devices, shards, output directory, disk, clock.

`python -m amplify_ds.cluster.node_report QUERY`. It only reads, except for one small file in the output directory, or
in the part of its path that exists, which the other machines look for; the preflight removes it.
"""

from __future__ import annotations

import time

STARTED = time.time()  # before the imports, which take seconds

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


def report(query: dict[str, Any]) -> dict[str, Any]:
    """Return versions, devices, a free port and the times of start and end; with a run also shards, output and size.

    query: run, its configuration as JSON, or None; output, token, number: for the file; world_size: number of ranks.
    """
    import torch

    gpus = torch.cuda.device_count() if os.environ.get("DS_ACCELERATOR") != "cpu" else 0
    content: dict[str, Any] = {
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
    if query["run"] is not None:
        from amplify_ds.config import RunConfig

        run = RunConfig.model_validate_json(query["run"])
        content["shards"] = _shards(run, query["world_size"])
        content["output"] = _output(Path(query["output"]), f".preflight-{query['token']}-{query['number']}")
        content["checkpoint_bytes"] = _checkpoint_bytes(run)
    return {**content, "started": STARTED, "ended": time.time()}


def source_hash() -> str:
    """Return a hash of the package's source and recipes: copies of the same version may differ."""
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
    """Return {"fingerprints": {directory: fingerprint}} of all shards of the run, or {"error": message} if they cannot
    be read or the batch cannot be divided among the ranks.
    """
    from amplify_ds.training import derived

    try:
        mixture = derived.training_sources(run)
        directories = [*(source.shards for source in mixture.sources), *derived.validation_sets(run).values()]
        derived.split_batch(run, mixture.row_tokens, 0, world_size)
        return {"fingerprints": {str(shards.path): shards.fingerprint for shards in directories}}
    except (AmplifyError, OSError) as error:
        return {"error": str(error)}


def _output(output: Path, name: str) -> dict[str, Any]:
    """Write a file `name`; return its path and, in bytes, free space and size of the checkpoints; or {"error": …}."""
    directory = next(path for path in (output, *output.absolute().parents) if path.exists())
    try:
        (directory / name).write_text(name, encoding="utf-8")
    except OSError as error:
        return {"error": f"{directory}: {error.strerror}"}
    checkpoints = [path for path in (output / "checkpoints").rglob("*") if path.is_file()]
    return {
        "file": str(directory / name),
        "free": shutil.disk_usage(directory).free,
        "checkpoints": sum(path.stat().st_size for path in checkpoints),
    }


def _checkpoint_bytes(run) -> int:
    """Return the size of a checkpoint: weights and AdamW's two moments in float32."""
    from amplify_ds.training import derived

    return 3 * 4 * derived.parameter_count(derived.model_config(run, 512))


if __name__ == "__main__":
    answer(report)
