"""The files of a model folder: safetensors, whole or in shards, and JSON.

The weights are in model.safetensors, or in the shards that model.safetensors.index.json lists. Pickle is refused: it
can hold any program.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from amplify_ds import structured
from amplify_ds.errors import AmplifyError, explain
from amplify_ds.shell import command_line

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], list[Path]]:
    """Every tensor of a folder, under the names of its files, and these files."""
    index, places = read_json(path / INDEX), None
    if index is None:
        names = [WEIGHTS]
        if not (path / WEIGHTS).exists():
            raise AmplifyError(_nothing_to_read(path))
    else:
        places = index.get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(x, str) and Path(x).name == x for x in places.values()):
            raise AmplifyError(
                f"{path / INDEX}: expected a weight_map from names of tensors to names of files beside it"
            )
        names = sorted(set(places.values()))
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        with _reading(path / name):
            found = load_file(path / name)
        if places is not None and set(found) != (listed := {key for key, file in places.items() if file == name}):
            raise AmplifyError(
                f"{path / name}: holds other tensors than {INDEX} lists: {', '.join(sorted(set(found) ^ listed)[:8])}"
            )
        tensors |= found
    return tensors, [path / name for name in names]


def count_tensors(path: Path) -> int:
    """How many tensors the folder holds, from its headers. Raises AmplifyError where they cannot be read."""
    if (index := read_json(path / INDEX)) is not None:
        return len(index.get("weight_map") or ())
    with _reading(path / WEIGHTS), safe_open(path / WEIGHTS, "pt") as file:
        return len(file.keys())


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn what reading a safetensors file raises into an AmplifyError."""
    try:
        with open(file, "rb"):  # safetensors calls every failure a missing file
            pass
        yield
    except FileNotFoundError as error:
        raise AmplifyError(f"{file}: cannot be read ({error.strerror}); fetch or copy it again") from None
    except OSError as error:
        raise AmplifyError(explain(error) or f"{file}: cannot be read ({error})") from None
    except SafetensorError as error:
        raise AmplifyError(f"{file}: cannot be read as safetensors ({error}); fetch or copy it again") from None


def check_finite(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """AmplifyError that names the first tensor with a number that is not finite."""
    for name, tensor in weights.items():
        if not torch.isfinite(tensor.sum(dtype=torch.float64)):  # one pass; float64 holds any sum of finite numbers
            wrong = int((~torch.isfinite(tensor)).sum())
            raise AmplifyError(
                f"{path}: {name} holds {wrong:,} values that are not finite, of {tensor.numel():,}: the model has "
                "diverged or its file was damaged. Take an earlier checkpoint or another copy"
            )


def _nothing_to_read(path: Path) -> str:
    found = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    command = command_line("python", "-m", "torch.distributed.checkpoint.format_utils", "dcp_to_torch", path)
    if parts := [name for name in found if name.endswith(".distcp")]:
        return (
            f"{path}: holds a distributed checkpoint ({parts[0]} …), which is read by way of pickle, and is refused. "
            f"Where you trust it: {command} weights.pt; "
            "then save its model weights with safetensors.torch.save_file as model.safetensors"
        )
    if pickled := [name for name in found if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".nemo"))]:
        return (
            f"{path / pickled[0]}: is pickle, which can run any program when it is read, and is refused. Where you "
            f"trust it: import torch, safetensors.torch; weights = torch.load({pickled[0]!r}, weights_only=True); "
            "safetensors.torch.save_file({k: v.contiguous() for k, v in weights.items()}, 'model.safetensors')"
        )
    return (
        f"{path}: no checkpoint (state.json), run (run.json) or model folder (config.json, model.safetensors) is here"
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no file."""
    try:
        content = structured.read_json(path)
    except FileNotFoundError:
        return None
    if not isinstance(content, dict):
        raise AmplifyError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
