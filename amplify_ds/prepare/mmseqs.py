"""Which of many sequences are similar to any of a few: a search with MMseqs2.

Similar is a sequence with a local alignment of at least `identity` identical residues (as a share of the alignment, as
AMPLIFY's authors counted) and at least `bits` of score. The score takes the place of the e-value, which would depend on
how many sequences are searched at a time. Chains of an antibody are aligned one by one. The search itself is set so
that it lets no candidate pass: no limit on hits, no masking of low complexity.
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
TEMPORARY = "mmseqs-"  # directories of a search begin with it
_SEARCH = "--mask 0 --max-seqs 1000000 -e 1000 --alignment-mode 3 --format-output target,fident,bits -v 1".split()


@dataclass(frozen=True)
class Criteria:
    """When sequences are similar. identity: 0 to 1; bits: score of an alignment; sensitivity: -s of MMseqs2."""

    identity: float = 0.9
    bits: float = 50.0
    sensitivity: float = 5.7

    def describe(self) -> dict:
        """Return what a manifest says of a search."""
        return {"command": " ".join(["mmseqs easy-search", *self.options()]), "version": version(), **asdict(self)}

    def options(self) -> list[str]:
        """Return the options of the search, without files and threads."""
        return [*_SEARCH, "--min-seq-id", f"{self.identity:g}", "-s", f"{self.sensitivity:g}"]


def version() -> str:
    """Return the version of MMseqs2; AmplifyError if there is none."""
    if not shutil.which(PROGRAM):
        raise AmplifyError(
            f"there is no program {PROGRAM}. Install MMseqs2 (apt install mmseqs2, conda install -c bioconda mmseqs2, "
            "or a static build from https://mmseqs.com) and put it on the PATH."
        )
    return _run("version").strip()


def write_fasta(path: Path, sequences: Iterable[bytes]) -> int:
    """Write the chains of the sequences, each under the number of its sequence; return how many sequences there are."""
    number = -1
    with writing(path), open(path, "wb") as file:
        for number, sequence in enumerate(sequences):
            file.writelines(b">%d\n%s\n" % (number, chain) for chain in sequence.split(b"|") if chain)
    return number + 1


def find_similar(sequences: Sequence[bytes], held_out: Path, criteria: Criteria, threads: int) -> dict[int, float]:
    """Return {index: identity} of the `sequences` similar to any in the FASTA file `held_out`."""
    found: dict[int, float] = {}
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=held_out.parent) as place:
        targets, hits = Path(place) / "targets.fasta", Path(place) / "hits"
        write_fasta(targets, sequences)
        if targets.stat().st_size:
            files = (held_out, targets, hits, Path(place) / "temporary")
            _run("easy-search", *files, *criteria.options(), "--threads", threads)
            for line in hits.read_text().splitlines():
                target, identity, bits = line.split("\t")
                if float(identity) >= criteria.identity and float(bits) >= criteria.bits:
                    found[int(target)] = max(float(identity), found.get(int(target), 0.0))
    return found


def _run(*words: object) -> str:
    result = subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr or result.stdout).strip().splitlines()[-3:]
        raise AmplifyError(f"{PROGRAM} {words[0]} failed ({result.returncode}): {' '.join(last)}. Is the disk full?")
    return result.stdout
