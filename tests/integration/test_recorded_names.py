"""Names that users and other programs rely on, as recorded in tests/recorded: flags, environment variables, exit codes.

A recorded line changes only in a commit that says why.
"""

import ast
import json
import re

import pytest

from tests.support.outcomes import commands
from tests.support.paths import ROOT
from tests.support.recorded import check

COMMANDS = [
    *(
        f"-m amplify_ds.{name}"
        for name in (
            "benchmark",
            "checkpoints",
            "contacts",
            "embed",
            "evaluate",
            "export",
            "launch",
            "plot",
            "preflight",
            "replay",
            "score",
            "train",
        )
    ),
    *(f"data_prep/{name}.py" for name in ("build_shards", "decontaminate", "fetch_ur100p", "inspect_shards")),
    "launch/try_export.py",
    "launch/summary.py",
]
OUTCOMES = ("SAVED", "STALLED", "LOST", "KILLED", "INTERRUPTED", "ENDED_WITH_LAUNCHER", "TIME_OVER")
VARIABLE = re.compile(r"(?!LABEL_)[A-Z][A-Z0-9]*(_[A-Z0-9*]+)+|PATH")  # LABEL_0: of a configuration


@pytest.fixture(scope="module")
def outcomes():
    jobs = {command: {"words": command.split(), "flags": True} for command in COMMANDS}
    jobs["help"] = {"words": ["-m", "amplify_ds.launch", "--help"]}
    return commands(jobs)


@pytest.mark.parametrize("command", COMMANDS)
def test_flags(outcomes, command):
    assert outcomes[command]["code"] == 0, outcomes[command]["err"]
    check("flags", command, json.loads(outcomes[command]["out"]))


def product():
    """Yield the syntax tree of every Python file that is not a test."""
    for folder in ("amplify_ds", "data_prep", "launch"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield ast.parse(path.read_text())


def test_exit_codes(outcomes):
    """Compare the table in the launcher's help, and the constants by name in all files."""
    table = re.findall(r"^  (\d+) +(\w[\w ]*)", outcomes["help"]["out"], re.M)
    check("exit_codes", "launch --help", dict(table))
    constants = {}
    for tree in product():
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and type(node.value.value) is int:
                constants |= {
                    x.id: node.value.value for x in node.targets if isinstance(x, ast.Name) and x.id in OUTCOMES
                }
    check("exit_codes", "constant", constants)


def is_environment(node) -> bool:
    return "environ" in (getattr(node, "attr", ""), getattr(node, "id", ""))


def look_ups(node):
    """Yield (mapping, key) expressions of look-ups in a mapping."""
    if isinstance(node, ast.Subscript):
        yield node.value, node.slice
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in ("get", "pop", "setdefault", "getenv", "delenv") and node.args:
            yield node.func.value, node.args[0]
        if node.func.attr == "update":
            yield from ((node.func.value, ast.Constant(keyword.arg)) for keyword in node.keywords)
    elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
        yield node.comparators[0], node.left
    elif isinstance(node, ast.Dict):
        yield from ((None, key) for key in node.keys if key is not None)


def test_environment_variables():
    """Compare every key of os.environ, and every key of another mapping that looks like an environment variable."""
    names = set()
    for tree in product():
        for node in ast.walk(tree):
            for mapping, name in look_ups(node):
                text = name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else None
                if text and (is_environment(mapping) or VARIABLE.fullmatch(text)):
                    names.add(text)
                elif is_environment(mapping):
                    names.add(f"computed: {ast.unparse(name)}")
    check("environment", "Python", dict.fromkeys(names, True))


def test_variables_of_the_scripts():
    """Compare the shell variables in capitals that the scripts read."""
    texts = [path.read_text() for path in (ROOT / "launch").iterdir() if path.suffix in (".sh", ".sbatch")]
    names = {name for text in texts for name in re.findall(r"\$\{?([A-Z][A-Z0-9_]+)", text)}
    check("environment", "launch scripts", dict.fromkeys(names, True))
