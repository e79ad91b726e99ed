"""Select the quick start's example: short proteins of families with several members.

1. Keep entries made of the 20 standard residues, of 30 to --max-length residues, not marked as
   fragments, each sequence once.
2. Cluster them into families with MMseqs2.
3. Keep families of at least --min-members. In every family of at least --min-held-out members,
   hold one member in eight (at least one) out for validation; the rest is for training.

The result depends on the input and the options only: members are ordered and drawn by a hash of
their sequence, and the compressed files carry no time stamp.
"""

import argparse
import gzip
import hashlib
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

import dnaio

STANDARD = set("ACDEFGHIKLMNPQRSTVWY")
SHORTEST = 30
ONE_IN = 8
COLUMNS = 60


def read_clean(path, longest):
    """The usable entries of a FASTA file as {sequence: header}; the first of equal ones stays."""
    entries: dict[str, str] = {}
    with dnaio.open(path) as records:
        for record in records:
            sequence = record.sequence.upper()
            usable = SHORTEST <= len(sequence) <= longest and STANDARD.issuperset(sequence)
            if usable and "(Fragment" not in record.name:
                entries.setdefault(sequence, record.name)
    return entries


def cluster(sequences, identity, coverage):
    """Families, as lists of sequences; every member is aligned with its representative."""
    with tempfile.TemporaryDirectory() as folder:
        fasta = Path(folder, "input.fasta")
        fasta.write_text("".join(f">{i}\n{s}\n" for i, s in enumerate(sequences)))
        subprocess.run(
            [
                "mmseqs",
                "easy-cluster",
                str(fasta),
                f"{folder}/families",
                f"{folder}/tmp",
                "--min-seq-id",
                str(identity),
                "-c",
                str(coverage),
                "--cov-mode",
                "1",
                "--cluster-mode",
                "2",
                "-s",
                "7",
                "--threads",
                "1",
                "-v",
                "1",
            ],
            check=True,
        )
        families = defaultdict(list)
        for line in Path(folder, "families_cluster.tsv").read_text().splitlines():
            representative, member = line.split("\t")
            families[representative].append(sequences[int(member)])
    return list(families.values())


def by_hash(sequence):
    return hashlib.sha256(sequence.encode()).digest()


def split(families, min_members, min_held_out):
    """(training, validation) sequences, each in an order unrelated to the families."""
    training, validation = [], []
    for family in families:
        members = sorted(family, key=by_hash)
        if len(members) < min_members:
            continue
        held_out = max(1, len(members) // ONE_IN) if len(members) >= min_held_out else 0
        validation += members[:held_out]
        training += members[held_out:]
    return sorted(training, key=by_hash), sorted(validation, key=by_hash)


def write(path, sequences, headers):
    lines = []
    for sequence in sequences:
        lines.append(f">{headers[sequence]}")
        lines += [sequence[i : i + COLUMNS] for i in range(0, len(sequence), COLUMNS)]
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help="FASTA of UniProt entries, plain or compressed")
    parser.add_argument("output", type=Path, help="folder for train.fasta.gz and validation.fasta.gz")
    parser.add_argument(
        "--max-length", type=int, default=125, help="longest protein kept, in residues (default %(default)s)"
    )
    parser.add_argument(
        "--identity",
        type=float,
        default=0.3,
        help="least identity to the family's representative (default %(default)s)",
    )
    parser.add_argument(
        "--coverage", type=float, default=0.7, help="least covered part of a member (default %(default)s)"
    )
    parser.add_argument("--min-members", type=int, default=3, help="smallest family kept (default %(default)s)")
    parser.add_argument(
        "--min-held-out", type=int, default=4, help="smallest family with a member held out (default %(default)s)"
    )
    args = parser.parse_args()

    headers = read_clean(args.input, args.max_length)
    families = cluster(list(headers), args.identity, args.coverage)
    training, validation = split(families, args.min_members, args.min_held_out)
    args.output.mkdir(parents=True, exist_ok=True)
    for name, sequences in (("train", training), ("validation", validation)):
        write(args.output / f"{name}.fasta.gz", sequences, headers)
        print(f"{name}: {len(sequences)} sequences, {sum(map(len, sequences))} residues")
    print(f"families: {sum(len(f) >= args.min_members for f in families)}")


if __name__ == "__main__":
    main()
