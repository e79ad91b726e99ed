"""The commands of README.md and docs/, run one after another as they stand, on some bundled proteins.

Each document is one story: its bash and Python blocks are run in order, in one copy of the repository, after what the
documents before it in STORIES have made. Changes: training takes a few steps (a flag behind the command). What is not
run is listed, with the reason; of those commands that have one, `--help` must work.
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

STORIES = ("README.md", "docs/data.md", "docs/training.md", "docs/using.md", "docs/formats.md", "docs/cluster.md")
SHORTER = {"amplify_ds.train ": "--training.steps 4"}
NOT_RUN = {
    "launch/quickstart.sh": "is run by test_quickstart.py",
    "tests/run.sh": "would run this",
    "fetch_ur100p.py": "needs a network",
    "data/UR100P": "needs what the network gives",
    "git clone": "is this repository",
    "preflight.sh hostfile": "needs the machines of a hostfile; test_preflight.py has some",
    "pretrain_120m.sh": "needs the machines of a hostfile",
    "sbatch": "needs SLURM",
    "contacts fit": "needs structures; test_contacts.py makes some",
    "contacts evaluate": "the same",
    "contacts predict": "the same",
    "amplify_ds.contacts(": "the same",
    "for part in": "needs a network",
    "done": "the same",
}
NEEDS = {"data_prep/decontaminate.py": "mmseqs", "similar.fasta": "mmseqs", "shards/apart": "mmseqs"}
MADE = """
shards/train/manifest.json shards.png shards/split/validation/manifest.json
runs/first/result.json runs/first/plots/validation_ppl.png
exported/first/model.safetensors exported/megatron/model.safetensors
embeddings.npz residues.npz perplexities.csv effects.csv map.png
""".split()


def blocks(document: str) -> list[tuple[str, str]]:
    """(language, text) of the bash and Python blocks of a document, in order."""
    return re.findall(r"^```(bash|python)\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S)


def commands(document: str) -> list[tuple[str, str]]:
    """The same, bash line by line."""
    return [
        (language, line)
        for language, text in blocks(document)
        for line in (text.replace("\\\n", " ").splitlines() if language == "bash" else [text])
        if line.strip()
    ]


def excused(command: str) -> bool:
    return any(words in command for words in NOT_RUN)


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A copy of the repository, as after its first start, with the files that the documents take for given."""
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


def test_every_exception_excuses_something():
    found = [command for document in STORIES for _, command in commands(document)]
    for exception in (*NOT_RUN, *NEEDS, *SHORTER):
        assert any(exception in command for command in found), f"{exception} is an exception to nothing"


def test_every_document_is_read():
    documents = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")} | {"README.md"}
    without = {document for document in documents - set(STORIES) if blocks(document)}
    assert not without, f"commands of {without} are run by no test"


def test_the_readme_has_every_command_in_its_table():
    assert re.findall(r"^\| `([\w-]+)` \|", (ROOT / "README.md").read_text(), re.M) == list(COMMANDS)


def test_the_readme_is_read_in_three_minutes():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_links_lead_somewhere():
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
    told = [(document, language, command) for document in STORIES for language, command in commands(document)]
    for document, language, command in told:
        missing = [program for words, program in NEEDS.items() if words in command and not shutil.which(program)]
        if missing or (language == "bash" and excused(command)):
            continue
        if language == "python":
            kept = [line for line in command.splitlines() if not excused(line)]
            words = [sys.executable, "-c", "\n".join(kept)]
        else:
            command = next((f"{command} {more}" for name, more in SHORTER.items() if name in command), command)
            words = ["bash", "-c", f". .venv/bin/activate; {command}"]
        result = subprocess.run(words, cwd=top, env=environment, text=True, capture_output=True)
        assert result.returncode == 0, f"{document}: {command}\n{result.stdout}{result.stderr}"
    for path in MADE:
        assert (top / path).exists(), path
