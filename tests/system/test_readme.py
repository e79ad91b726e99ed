"""The README's commands of "Your own data" and "Training", one after another as they stand, on some bundled proteins.

The only change: training takes a few steps (a flag behind the command). What is not run is listed, with the reason.
"""

import gzip
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import dnaio
import pytest

from tests.support.paths import EXAMPLE, ROOT

SECTIONS = ("Your own data", "Training")
SHORTER = {"amplify_ds.train": "--training.steps 2"}
NOT_RUN = {
    "data_prep/fetch_ur100p.py": "needs a network",
    "--input data/UR100P": "needs what the network gives",
}
NEEDS = {"data_prep/decontaminate.py": "mmseqs", "similar.fasta": "mmseqs", "shards/apart": "mmseqs"}


def commands(section: str) -> list[str]:
    """Of the bash blocks of a section of the README, in order."""
    text = (ROOT / "README.md").read_text()
    [body] = re.findall(rf"^## {section}\n(.*?)^## ", text, re.M | re.S)
    blocks = re.findall(r"^```bash\n(.*?)^```", body, re.M | re.S)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A copy of the repository, as after its first start, with the files that the README takes for given."""
    top = tmp_path_factory.mktemp("readme") / "amplify_ds"
    skipped = shutil.ignore_patterns(".git", ".venv", "runs", "shards", "__pycache__")
    shutil.copytree(ROOT, top, ignore=skipped)
    (top / ".venv/bin").mkdir(parents=True)
    (top / ".venv/bin/activate").write_text(f'export PATH="{Path(sys.executable).parent}:$PATH"\n')
    shutil.copy(EXAMPLE / "validation.fasta.gz", top)
    with dnaio.open(EXAMPLE / "train.fasta.gz") as reader:
        records = [f">{record.name}\n{record.sequence}\n" for record in reader][:400]
    for name, part in (("uniref_1", records[:250]), ("uniref_2", records[250:])):
        with gzip.open(top / f"{name}.fasta.gz", "wt") as file:
            file.writelines(part)
    return top


def test_every_command_is_run_or_says_why_not():
    found = [line for section in SECTIONS for line in commands(section)]
    assert sum("amplify_ds.train" in line for line in found) == 1 and len(found) > 12
    for exception in (*NOT_RUN, *NEEDS, *SHORTER):
        assert any(exception in line for line in found), f"{exception} is an exception to nothing"


@pytest.mark.slow
def test_the_commands_work_one_after_another(top):
    environment = {k: v for k, v in os.environ.items() if k not in ("DS_ACCELERATOR", "OMP_NUM_THREADS")}
    environment |= {"PYTHONPATH": str(top), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = []
    for line in (line for section in SECTIONS for line in commands(section)):
        missing = [program for words, program in NEEDS.items() if words in line and not shutil.which(program)]
        if missing or any(words in line for words in NOT_RUN):
            continue
        words = next((f"{line} {more}" for name, more in SHORTER.items() if name in line), line)
        result = subprocess.run(
            ["bash", "-c", f". .venv/bin/activate; {words}"], cwd=top, env=environment, text=True, capture_output=True
        )
        assert result.returncode == 0, f"{words}\n{result.stdout}{result.stderr}"
        done.append(line)
    for path in (
        "shards/train/manifest.json",
        "shards.png",
        "runs/first/result.json",
        "runs/first/plots/validation_ppl.png",
        "exported/first/model.safetensors",
        "exported/megatron/model.safetensors",
    ):
        assert (top / path).exists(), path
    assert any("amplify_ds.evaluate" in line for line in done)
