"""Every import of the package is in a requirements file, and a command names the extra that is missing."""

import ast
import re
import sys
from importlib.metadata import packages_distributions

import pytest

from amplify_ds.extras import EXTRAS
from tests.support.commands import AS_MAIN, environment, interpreter
from tests.support.paths import EXAMPLE, ROOT

NEVER_REQUIRED = {"flash_attn", "transformer_engine", "_typeshed"}  # optional; the last is for mypy


def without(module, *arguments):
    """Run a command in a process that cannot import `module`."""
    blocked = f"import sys; sys.modules[{module!r}] = None\n"
    return interpreter("-c", blocked + AS_MAIN, *arguments, env=environment(1))


def listed(name) -> set[str]:
    """Return the names of the packages in a requirements file, in lower case and with hyphens."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in lines if line}


def imported() -> dict[str, str]:
    """Return {module: a file that imports it}, without the standard library and this package."""
    modules: dict[str, str] = {}
    files = [path for folder in ("amplify_ds", "data_prep", "launch") for path in (ROOT / folder).rglob("*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
            modules |= {name.partition(".")[0]: str(path.relative_to(ROOT)) for name in names}
    return {name: file for name, file in modules.items() if name not in {"amplify_ds"} | sys.stdlib_module_names}


def test_every_import_is_in_a_requirements_file():
    distributions = packages_distributions()
    requirements = {"": listed("requirements.txt")}
    requirements |= {extra: listed(f"requirements-{extra}.txt") for extra in ("plots", "contacts")}
    for module, file in imported().items():
        if module not in NEVER_REQUIRED:
            extra = EXTRAS[module][1] if module in EXTRAS else ""
            packages = {name.lower().replace("_", "-") for name in distributions[module]}
            assert packages & requirements[extra], f"{file} imports {module}, which {extra or 'requirements.txt'} lacks"
    assert {EXTRAS[module] for module in EXTRAS} == {(p, e) for e in ("plots", "contacts") for p in requirements[e]}


def test_users_need_no_test_tools():
    tools = listed("requirements-dev.txt")
    assert {"pytest", "pytest-xdist", "hypothesis", "ruff", "mypy"} <= tools
    for name in ("requirements.txt", "requirements-plots.txt", "requirements-contacts.txt", "requirements-gpu.txt"):
        assert not tools & listed(name), name


@pytest.mark.parametrize(
    "module, arguments, purpose, install",
    [
        ("matplotlib", ("amplify_ds.plot", "RUN"), "a picture needs matplotlib", "plots"),
        (
            "matplotlib",
            ("amplify_ds.score", "--model", "NONE", "--input", "FASTA", "--heatmap", "OUT"),
            "--heatmap needs matplotlib",
            "plots",
        ),
        (
            "matplotlib",
            ("amplify_ds.contacts", "predict", "--head", "NONE", "--input", "FASTA", "--plot", "OUT"),
            "--plot needs matplotlib",
            "plots",
        ),
        ("matplotlib", ("data_prep/inspect_shards.py", "SHARDS", "--plot", "OUT"), "--plot needs matplotlib", "plots"),
        (
            "sklearn",
            ("amplify_ds.contacts", "fit", "--model", "NONE", "--structures", "NONE", "--output", "OUT"),
            "fitting a head needs scikit-learn",
            "contacts",
        ),
        (
            "gemmi",
            ("amplify_ds.contacts", "fit", "--model", "NONE", "--structures", "NONE", "--output", "OUT"),
            "reading structures needs gemmi",
            "contacts",
        ),
    ],
    ids=["plot", "heatmap", "picture of contacts", "picture of shards", "fit", "structures"],
)
def test_a_missing_extra_is_one_message(module, arguments, purpose, install, shards, tmp_path):
    (tmp_path / "events").mkdir()
    out = tmp_path / "picture.png"
    paths = {"RUN": tmp_path, "OUT": out, "SHARDS": shards["train"], "FASTA": EXAMPLE / "validation.fasta.gz"}
    result = without(module, *(paths.get(argument, argument) for argument in arguments))
    assert result.returncode == 1
    assert result.stderr == f"error: {purpose}, which is not installed: pip install 'amplify_ds[{install}]'\n"
    assert result.stdout == "" and not out.exists()


@pytest.mark.parametrize("module", sorted(EXTRAS))
@pytest.mark.parametrize("command", ["amplify_ds.train", "amplify_ds.plot", "amplify_ds.contacts", "amplify_ds.score"])
def test_help_needs_no_extra(module, command):
    result = without(module, command, "--help")
    assert result.returncode == 0 and "usage" in result.stdout, result.stderr
