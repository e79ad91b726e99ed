"""The commands of README.md and docs/ work as printed, on some bundled proteins.

The bash and Python blocks of all DOCUMENTS are run in order, in one copy of the repository. The only change is that
training takes few steps (SHORTER adds a flag). NOT_RUN lists the commands that are not run, with the reason.
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

from amplify_ds.__main__ import COMMANDS
from tests.support.paths import EXAMPLE, ROOT

DOCUMENTS = ("README.md", "docs/data.md", "docs/training.md", "docs/using.md", "docs/formats.md", "docs/cluster.md")
SHORTER = {"amplify_ds.train ": "--training.steps 4"}
NOT_RUN = {
    "launch/quickstart.sh": "run by test_quickstart.py",
    "tests/run.sh": "would run this test",
    "fetch_ur100p.py": "needs a network",
    "data/UR100P": "needs downloaded files",
    "git clone": "this repository",
    "preflight.sh hostfile": "needs the machines of a hostfile; test_preflight.py creates some",
    "pretrain_120m.sh": "needs the machines of a hostfile",
    "sbatch": "needs SLURM; test_slurm.py has one",
    "--slurm": "the same",
    "contacts fit": "needs structures; test_contacts.py creates some",
    "contacts evaluate": "the same",
    "contacts predict": "the same",
    "amplify_ds.contacts(": "the same",
    "for part in": "needs a network",
    "done": "the same",
}
NEEDS = {"data_prep/decontaminate.py": "mmseqs", "similar.fasta": "mmseqs", "shards/apart": "mmseqs"}
OUTPUTS = """
shards/train/manifest.json shards.png shards/split/validation/manifest.json
runs/first/result.json runs/first/plots/validation_ppl.png
exported/first/model.safetensors exported/megatron/model.safetensors
embeddings.npz residues.npz perplexities.csv effects.csv map.png
""".split()


def blocks(document: str) -> list[tuple[str, str]]:
    """Return (language, text) of the bash and Python blocks of a document, in order."""
    return re.findall(r"^```(bash|python)\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S)


def commands(document: str) -> list[tuple[str, str]]:
    """Return (language, command): bash blocks line by line, Python blocks whole."""
    return [
        (language, line)
        for language, text in blocks(document)
        for line in (text.replace("\\\n", " ").splitlines() if language == "bash" else [text])
        if line.strip()
    ]


def is_not_run(command: str) -> bool:
    return any(text in command for text in NOT_RUN)


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A copy of the repository after its first start, with the input files that the documents use."""
    top = tmp_path_factory.mktemp("documents") / "amplify_ds"
    skipped = shutil.ignore_patterns(".git", ".venv", "runs", "shards", "__pycache__")
    shutil.copytree(ROOT, top, ignore=skipped)
    (top / ".venv/bin").mkdir(parents=True)
    (top / ".venv/bin/activate").write_text(f'export PATH="{Path(sys.executable).parent}:$PATH"\n')
    shutil.copy(EXAMPLE / "validation.fasta.gz", top)
    with dnaio.open(EXAMPLE / "train.fasta.gz") as reader:
        proteins = [(record.name, record.sequence) for record in reader][:400]
    records = [f">{name}\n{sequence}\n" for name, sequence in proteins]
    for name, part in (("uniref_1", records[:250]), ("uniref_2", records[250:])):
        with gzip.open(top / f"{name}.fasta.gz", "wt") as file:
            file.writelines(part)
    (top / "proteins.fasta").write_text("".join(records[:5]))
    (top / "protein.fasta").write_text(records[0])
    first = proteins[0][1][0]
    (top / "dms.csv").write_text(f"mutant,DMS_score\n{first}1A,0.5\n{first}1G,0.1\n{first}1W,0.9\n")
    return top


def test_every_exception_is_needed():
    printed = [command for document in DOCUMENTS for _, command in commands(document)]
    for exception in (*NOT_RUN, *NEEDS, *SHORTER):
        assert any(exception in command for command in printed), f"no document has the command {exception}"


def test_every_document_with_commands_is_tested():
    documents = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")} | {"README.md"}
    untested = {document for document in documents - set(DOCUMENTS) if blocks(document)}
    assert not untested, f"no test runs the commands of {untested}"


def test_the_readme_lists_every_command():
    assert re.findall(r"^\| `([\w-]+)` \|", (ROOT / "README.md").read_text(), re.M) == list(COMMANDS)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_links_exist():
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([\w-]+))?\)", document.read_text()):
            file = document.parent / target if target else document
            assert file.exists(), f"{document.name} links to {target}"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
                assert anchor in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles], anchor


@pytest.mark.slow
def test_the_commands_work_one_after_another(top):
    environment = {k: v for k, v in os.environ.items() if k not in ("DS_ACCELERATOR", "OMP_NUM_THREADS")}
    environment |= {"PYTHONPATH": str(top), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
    printed = [(document, language, command) for document in DOCUMENTS for language, command in commands(document)]
    for document, language, command in printed:
        missing = [program for text, program in NEEDS.items() if text in command and not shutil.which(program)]
        if missing or (language == "bash" and is_not_run(command)):
            continue
        if language == "python":
            lines = [line for line in command.splitlines() if not is_not_run(line)]
            arguments = [sys.executable, "-c", "\n".join(lines)]
        else:
            command = next((f"{command} {more}" for name, more in SHORTER.items() if name in command), command)
            arguments = ["bash", "-c", f". .venv/bin/activate; {command}"]
        result = subprocess.run(arguments, cwd=top, env=environment, text=True, capture_output=True)
        assert result.returncode == 0, f"{document}: {command}\n{result.stdout}{result.stderr}"
    for path in OUTPUTS:
        assert (top / path).exists(), path
