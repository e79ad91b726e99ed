"""`amplify-ds` and `python -m amplify_ds` list every command and run it by its name."""

import re
import signal
import subprocess
import sys
import time

import pytest

from amplify_ds import __main__ as front_door
from tests.support.commands import interpreter
from tests.support.paths import EXAMPLE, ROOT

# What pip makes of [project.scripts].
INSTALLED = "import sys; from amplify_ds.__main__ import main; sys.argv[0] = '/usr/bin/amplify-ds'; sys.exit(main())"


def listed() -> list[str]:
    result = interpreter("-m", "amplify_ds")
    assert result.returncode == 0 and not result.stderr, result.stderr
    return re.findall(r"^  ([\w-]+)  +\S.*$", result.stdout, re.M)


def test_it_lists_every_command():
    """A command is a module directly in the package that can be run."""
    files = [path for path in (ROOT / "amplify_ds").glob("*.py") if not path.stem.startswith("__")]
    runnable = [path.stem for path in files if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]
    assert sorted(module for module, _ in front_door.COMMANDS.values()) == sorted(runnable)
    assert listed() == list(front_door.COMMANDS)


def test_it_lists_the_scripts_of_data_prep():
    scripts = {path.stem for path in (ROOT / "data_prep").glob("*.py")}
    assert scripts <= {module for module, _ in front_door.COMMANDS.values()}


@pytest.mark.parametrize("name", front_door.COMMANDS)
def test_each_command_runs_its_module(name):
    module = f"amplify_ds.{front_door.COMMANDS[name][0]}"
    result, direct = interpreter("-m", "amplify_ds", name, "--help"), interpreter("-m", module, "--help")
    assert result.returncode == 0 and result.stdout.startswith("usage: ") and not result.stderr, result.stderr
    assert result.stdout == direct.stdout


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",)])
def test_the_list_imports_no_command(arguments):
    program = f"{INSTALLED.replace('sys.exit(main())', '')}import atexit; modules = lambda: print(*sys.modules); "
    result = interpreter("-c", f"{program}atexit.register(modules); main()", *arguments)
    assert result.returncode == 0, result.stderr
    *lines, modules = result.stdout.splitlines()
    assert len(lines) > len(front_door.COMMANDS)
    assert not {"torch", "numpy", "argparse", "transformers", "pydantic"} & set(modules.split())


@pytest.mark.parametrize(
    "word, hint",
    [
        ("embd", "did you mean embed?"),
        ("fetch_ur100p", "did you mean fetch?"),
        ("build_shards.py", "did you mean build?"),
        ("x", "the commands are fetch, build, decontaminate, "),
        ("--embed", "did you mean embed?"),
    ],
)
def test_an_unknown_name_is_one_message(word, hint):
    for start in (("-m", "amplify_ds"), ("-c", INSTALLED)):
        result = interpreter(*start, word, "--help")
        assert (result.returncode, result.stdout) == (2, "") and result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.startswith(f"error: unknown command {word}; {hint}")


def test_arguments_exit_codes_and_workers_are_those_of_the_command(tmp_path):
    """With two workers, which import the main module again."""
    for number, start in enumerate((("-m", "amplify_ds"), ("-c", INSTALLED))):
        arguments = ["--input", EXAMPLE / "validation.fasta.gz", "--output", tmp_path / str(number), "--workers", 2]
        result = interpreter(*start, "build", *arguments)
        assert result.returncode == 0 and "records read" in result.stdout, result.stderr
        result = interpreter(*start, "inspect", tmp_path / str(number), "--show", 10**6)
        assert result.returncode == 1 and result.stderr.startswith("error: there is no row 1000000 in ")
        assert interpreter(*start, "inspect").returncode == 2
    manifests = [(tmp_path / str(number) / "manifest.json").read_bytes() for number in (0, 1)]
    assert manifests[0] == manifests[1]


def test_the_name_is_installed():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^\[project.scripts\]\namplify-ds = "amplify_ds.__main__:main"$', text, re.M)


def test_ctrl_c_ends_an_installed_command_without_a_traceback(tmp_path):
    """During a slow import, with the message of all commands."""
    (tmp_path / "slow.py").write_text("import time, sys\nprint('begun', flush=True)\ntime.sleep(60)\n")
    program = f"import sys; from amplify_ds import __main__ as m; sys.path.insert(0, {str(tmp_path)!r}); "
    program += "import runpy; runpy.run_module = lambda *_, **__: __import__('slow'); m.main()"
    command = [sys.executable, "-c", program, "embed"]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "interrupted\n")
