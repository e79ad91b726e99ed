"""Find the sequences that are similar to any of a set of others, with MMseqs2.

A sequence is similar if it has a local alignment with at least `identity` identical residues (as a share of the
alignment, as AMPLIFY's authors counted) and a score of at least `bits`. The score is used instead of the e-value, which
depends on how many sequences are searched at a time. The chains of an antibody are aligned separately. The search is
set not to miss candidates: no limit on hits, no masking of low complexity.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from amplify_ds.data.shard_writer import writing
from amplify_ds.errors import AmplifyError

PROGRAM = "mmseqs"
TEMPORARY = "mmseqs-"  # prefix of the temporary directory of a search
_SEARCH = "--mask 0 --max-seqs 1000000 -e 1000 --alignment-mode 3 --format-output target,fident,bits -v 1".split()


@dataclass(frozen=True)
class Criteria:
    """When sequences count as similar. identity: 0 to 1; bits: score of the alignment; sensitivity: -s of MMseqs2."""

    identity: float = 0.9
    bits: float = 50.0
    sensitivity: float = 5.7

    def describe(self) -> dict:
        """Return the description of the search for the manifest."""
        return {"command": " ".join(["mmseqs easy-search", *self.options()]), "version": version(), **asdict(self)}

    def options(self) -> list[str]:
        """Return the options of the search, without files and threads."""
        return [*_SEARCH, "--min-seq-id", f"{self.identity:g}", "-s", f"{self.sensitivity:g}"]


def version() -> str:
    """Return the version of MMseqs2; AmplifyError if it is not installed."""
    if not shutil.which(PROGRAM):
        raise AmplifyError(
            f"the program {PROGRAM} was not found. Install MMseqs2 (apt install mmseqs2, conda install -c bioconda "
            "mmseqs2, or a static build from https://mmseqs.com) and put it on the PATH."
        )
    return _run("version").strip()


def write_fasta(path: Path, sequences: Iterable[bytes]) -> int:
    """Write each chain under the number of its sequence; return the number of sequences."""
    number = -1
    with writing(path), open(path, "wb") as file:
        for number, sequence in enumerate(sequences):
            file.writelines(b">%d\n%s\n" % (number, chain) for chain in sequence.split(b"|") if chain)
    return number + 1


def find_similar(sequences: Sequence[bytes], held_out: Path, criteria: Criteria, threads: int) -> dict[int, float]:
    """Return {index: identity} of the `sequences` that are similar to any in the FASTA file `held_out`."""
    similar: dict[int, float] = {}
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=held_out.parent) as directory:
        targets, hits = Path(directory) / "targets.fasta", Path(directory) / "hits"
        write_fasta(targets, sequences)
        if targets.stat().st_size:
            files = (held_out, targets, hits, Path(directory) / "temporary")
            _run("easy-search", *files, *criteria.options(), "--threads", threads)
            for line in hits.read_text().splitlines():
                target, identity, bits = line.split("\t")
                if float(identity) >= criteria.identity and float(bits) >= criteria.bits:
                    similar[int(target)] = max(float(identity), similar.get(int(target), 0.0))
    return similar


def _run(*arguments: object) -> str:
    result = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr or result.stdout).strip().splitlines()[-3:]
        raise AmplifyError(
            f"{PROGRAM} {arguments[0]} failed ({result.returncode}): {' '.join(last)}. Is the disk full?"
        )
    return result.stdout
