"""Read the files of a model folder: safetensors, in one file or several, and JSON.

The weights are in model.safetensors, or in the files that model.safetensors.index.json lists. Pickle files are refused,
because they can contain any program.
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
    """Return {name: tensor} of a folder, and the files they were read from."""
    index, weight_map = read_json(path / INDEX), None
    if index is None:
        names = [WEIGHTS]
        if not (path / WEIGHTS).exists():
            raise AmplifyError(_nothing_to_read(path))
    else:
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(x, str) and Path(x).name == x for x in weight_map.values()
        ):
            raise AmplifyError(
                f"{path / INDEX}: expected a weight_map from names of tensors to names of files in the same folder"
            )
        names = sorted(set(weight_map.values()))
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        with _reading(path / name):
            content = load_file(path / name)
        if weight_map is not None:
            listed = {key for key, file in weight_map.items() if file == name}
            if set(content) != listed:
                raise AmplifyError(
                    f"{path / name}: its tensors differ from those that {INDEX} lists: "
                    f"{', '.join(sorted(set(content) ^ listed)[:8])}"
                )
        tensors |= content
    return tensors, [path / name for name in names]


def count_tensors(path: Path) -> int:
    """Return the number of tensors in a folder, from its headers. Raises AmplifyError if they cannot be read."""
    if (index := read_json(path / INDEX)) is not None:
        return len(index.get("weight_map") or ())
    with _reading(path / WEIGHTS), safe_open(path / WEIGHTS, "pt") as file:
        return len(file.keys())


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn an error from reading a safetensors file into an AmplifyError."""
    try:
        with open(file, "rb"):  # safetensors reports every failure as a missing file
            pass
        yield
    except FileNotFoundError as error:
        raise AmplifyError(f"{file}: cannot be read ({error.strerror}); fetch or copy it again") from None
    except OSError as error:
        raise AmplifyError(explain(error) or f"{file}: cannot be read ({error})") from None
    except SafetensorError as error:
        raise AmplifyError(f"{file}: cannot be read as safetensors ({error}); fetch or copy it again") from None


def check_finite(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise AmplifyError that names the first tensor with a value that is not finite, if there is one."""
    for name, tensor in weights.items():
        if not torch.isfinite(tensor.sum(dtype=torch.float64)):  # one pass; float64 holds any sum of finite numbers
            count = int((~torch.isfinite(tensor)).sum())
            raise AmplifyError(
                f"{path}: {count:,} of the {tensor.numel():,} values of {name} are not finite: the model has diverged "
                "or its file is damaged. Use an earlier checkpoint or another copy"
            )


def _nothing_to_read(path: Path) -> str:
    names = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    command = command_line("python", "-m", "torch.distributed.checkpoint.format_utils", "dcp_to_torch", path)
    if parts := [name for name in names if name.endswith(".distcp")]:
        return (
            f"{path}: is a distributed checkpoint ({parts[0]} …), which uses pickle and is refused. If you trust it, "
            f"run: {command} weights.pt; "
            "then save its model weights with safetensors.torch.save_file as model.safetensors"
        )
    if pickled := [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".nemo"))]:
        return (
            f"{path / pickled[0]}: is a pickle file, which can run any program when it is read, and is refused. If you "
            f"trust it: import torch, safetensors.torch; weights = torch.load({pickled[0]!r}, weights_only=True); "
            "safetensors.torch.save_file({k: v.contiguous() for k, v in weights.items()}, 'model.safetensors')"
        )
    return f"{path}: is not a checkpoint (state.json), run (run.json) or model folder (config.json, model.safetensors)"


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if there is no file."""
    try:
        content = structured.read_json(path)
    except FileNotFoundError:
        return None
    if not isinstance(content, dict):
        raise AmplifyError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
