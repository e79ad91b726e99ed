"""Imports go downwards only, and what is shipped needs nothing of the tests: read off the source, nothing is run."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "amplify_ds"
PRODUCT = sorted(path for folder in ("amplify_ds", "data_prep", "launch") for path in (ROOT / folder).rglob("*.py"))
COMMANDS = {path.stem for path in PACKAGE.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
# From the top to the bottom: each imports of its own and of what is below it, never of what is beside it.
LAYERS = (
    {"commands"},
    {"benchmarks"},
    {"cluster", "inference"},
    {"hub"},
    {"training", "prepare"},
    {"data", "model"},
    {"config", "recipes"},
    {"base"},  # vocab, files, errors and the other modules that are no command
)
OF_TORCH = {"loader", "workers"}  # of data/
OF_MODEL = {"__future__", "dataclasses", "flash_attn", "functools", "inspect", "torch", "transformers", "typing"}


def imports(source: str, package: str = "") -> Iterator[str]:
    """Full names of what is imported anywhere in it; `package`: what a relative import begins with."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, (package if node.level else "", node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> set[str]:
    return set(imports(path.read_text(), ".".join(path.parent.relative_to(ROOT).parts)))


def layer_of(name: str) -> int:
    """Of `amplify_ds.NAME…`."""
    first = name.split(".")[1]
    kind = first if (PACKAGE / first).is_dir() or first == "config" else "commands" if first in COMMANDS else "base"
    return next(number for number, layer in enumerate(LAYERS) if kind in layer)


def goes_up(importer: str, imported: str) -> bool:
    """Or sideways: only commands and the modules of the base may import what is beside them."""
    own, other = layer_of(importer), layer_of(imported)
    if own != other:
        return other < own
    return own not in (0, len(LAYERS) - 1) and importer.split(".")[1] != imported.split(".")[1]


def strings(source: str) -> Iterator[str]:
    """All strings, docstrings left out."""
    tree = ast.parse(source)
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value


def of_the_tests(source: str) -> list[str]:
    """What it imports of the tests, and its strings that name their folder."""
    named = [text for text in strings(source) if re.search(r"\btests(/|$)", text)]
    return [name for name in imports(source) if name.split(".")[0] == "tests"] + named


def test_imports_go_downwards_only():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if wrong := [name for name in imports_of(path) if name.startswith("amplify_ds.") and goes_up(own, name)]:
            found[own] = wrong
    assert not found


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
def test_what_goes_up(importer, imported, wrong):
    assert goes_up(importer, imported) is wrong


def test_only_engine_and_full_state_import_deepspeed():
    found = {path for path in PRODUCT if any(name.split(".")[0] == "deepspeed" for name in imports_of(path))}
    assert found == {PACKAGE / "training/engine.py", PACKAGE / "training/full_state.py"}


def test_data_is_read_without_torch_but_by_the_loader():
    found = {path.stem for path in (PACKAGE / "data").glob("*.py") if "torch" in str(imports_of(path))}
    assert found == OF_TORCH


def test_the_model_knows_of_no_files_and_no_command_line():
    for path in (PACKAGE / "model").glob("*.py"):
        names = imports_of(path)
        assert all(name.split(".")[0] in OF_MODEL or name.startswith("amplify_ds.model.") for name in names), path
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [function for function in calls if isinstance(function, ast.Name) and function.id == "open"], path


def test_the_independent_model_shares_nothing_with_ours():
    assert {name.split(".")[0] for name in imports_of(PACKAGE / "benchmarks/padded_model.py")} == {
        "__future__",
        "torch",
    }


def test_the_product_loads_nothing_of_the_tests():
    assert not {path: found for path in PRODUCT if (found := of_the_tests(path.read_text()))}
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
def test_what_would_load_the_tests_is_seen(source, count):
    assert len(of_the_tests(source)) == count
