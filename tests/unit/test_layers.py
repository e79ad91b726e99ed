"""Imports go down only, and the package does not use the tests. Checked in the source, without running it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "amplify_ds"
PRODUCT = sorted(path for folder in ("amplify_ds", "data_prep", "launch") for path in (ROOT / folder).rglob("*.py"))
COMMANDS = {path.stem for path in PACKAGE.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
# From top to bottom: a package imports from itself and from lower layers, not from others of its layer.
LAYERS = (
    {"commands"},
    {"benchmarks"},
    {"cluster", "inference"},
    {"hub"},
    {"training", "prepare"},
    {"data", "model"},
    {"config", "recipes"},
    {"base"},  # vocab, files, errors and the other modules that are not commands
)
TORCH_MODULES = {"loader", "workers"}  # modules of data/ that may import torch
MODEL_IMPORTS = {"__future__", "dataclasses", "flash_attn", "functools", "inspect", "torch", "transformers", "typing"}


def imports(source: str, package: str = "") -> Iterator[str]:
    """Yield the full names of all imports; relative imports are relative to `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, (package if node.level else "", node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> set[str]:
    return set(imports(path.read_text(), ".".join(path.parent.relative_to(ROOT).parts)))


def layer_of(name: str) -> int:
    """Return the number of the layer of `amplify_ds.NAME…`."""
    first = name.split(".")[1]
    kind = first if (PACKAGE / first).is_dir() or first == "config" else "commands" if first in COMMANDS else "base"
    return next(number for number, layer in enumerate(LAYERS) if kind in layer)


def forbidden(importer: str, imported: str) -> bool:
    """Return whether the import goes up or sideways. Commands and modules of the base may import each other."""
    layer, other = layer_of(importer), layer_of(imported)
    if layer != other:
        return other < layer
    return layer not in (0, len(LAYERS) - 1) and importer.split(".")[1] != imported.split(".")[1]


def strings(source: str) -> Iterator[str]:
    """Yield all strings except docstrings."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def uses_of_tests(source: str) -> list[str]:
    """Return the imports from tests, and the strings that contain their path."""
    paths = [text for text in strings(source) if re.search(r"\btests(/|$)", text)]
    return [name for name in imports(source) if name.split(".")[0] == "tests"] + paths


def test_imports_go_downwards_only():
    wrong = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if names := [name for name in imports_of(path) if name.startswith("amplify_ds.") and forbidden(module, name)]:
            wrong[module] = names
    assert not wrong


@pytest.mark.parametrize(
    "importer, imported, wrong",
    [
        ("amplify_ds.data.order", "amplify_ds.training.derived", True),
        ("amplify_ds.data.order", "amplify_ds.model.shape", True),
        ("amplify_ds.hub.export", "amplify_ds.export", True),
        ("amplify_ds.files", "amplify_ds.data.shards", True),
        ("amplify_ds.vocab", "amplify_ds.config.RunConfig", True),
        ("amplify_ds.training.trainer", "amplify_ds.data.order", False),
        ("amplify_ds.data.order", "amplify_ds.data.skips", False),
        ("amplify_ds.preflight", "amplify_ds.train", False),
        ("amplify_ds.export", "amplify_ds.__version__", False),
    ],
)
def test_forbidden_imports(importer, imported, wrong):
    assert forbidden(importer, imported) is wrong


def test_only_engine_and_full_state_import_deepspeed():
    paths = {path for path in PRODUCT if any(name.split(".")[0] == "deepspeed" for name in imports_of(path))}
    assert paths == {PACKAGE / "training/engine.py", PACKAGE / "training/full_state.py"}


def test_in_data_only_loader_and_workers_import_torch():
    modules = {path.stem for path in (PACKAGE / "data").glob("*.py") if "torch" in str(imports_of(path))}
    assert modules == TORCH_MODULES


def test_the_model_opens_no_files_and_imports_little():
    for path in (PACKAGE / "model").glob("*.py"):
        names = imports_of(path)
        assert all(name.split(".")[0] in MODEL_IMPORTS or name.startswith("amplify_ds.model.") for name in names), path
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [function for function in calls if isinstance(function, ast.Name) and function.id == "open"], path


def test_the_padded_model_imports_only_torch():
    assert {name.split(".")[0] for name in imports_of(PACKAGE / "benchmarks/padded_model.py")} == {
        "__future__",
        "torch",
    }


def test_the_package_and_scripts_do_not_use_the_tests():
    assert not {path: uses for path in PRODUCT if (uses := uses_of_tests(path.read_text()))}
    scripts = [path for path in (ROOT / "launch").iterdir() if path.suffix in (".sh", ".sbatch")]
    lines = [line.partition("#")[0] for path in scripts for line in path.read_text().splitlines()]
    assert len(scripts) > 5 and not [line for line in lines if "tests/" in line]


@pytest.mark.parametrize(
    "source, count",
    [
        ("from tests.support import nodes", 1),
        ("def f():\n    import tests.support.nodes", 1),
        ("path = ROOT / 'tests/support/reference.py'", 1),
        ("path = ROOT / 'tests' / 'support'", 1),
        ("path = f'{ROOT}/tests/support'", 1),
        ("'''Compared in tests/unit/test_model.py.'''  # and in tests/integration\nname = 'contests'", 0),
    ],
)
def test_uses_of_tests_are_detected(source, count):
    assert len(uses_of_tests(source)) == count
