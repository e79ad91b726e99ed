"""Small inputs, shards built from them, and what these hold."""

import gzip
import os
import random
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np

from amplify_ds import build_shards
from amplify_ds.data.shards import Shards
from amplify_ds.prepare import pipeline, rows
from amplify_ds.vocab import decode
from tests.support.commands import python
from tests.support.paths import DATA_PREP

STANDARD = "ACDEFGHIKLMNPQRSTVWY"


def proteins(count: int, seed: int = 0, longest: int = 300) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(STANDARD, k=draw.randint(1, longest))) for _ in range(count)]


def write_fasta(path: Path, sequences, width: int = 60, compress: bool = False) -> Path:
    lines = []
    for number, sequence in enumerate(sequences):
        lines += [f">protein|{number} an entry", *(sequence[i : i + width] for i in range(0, len(sequence), width))]
    text = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if compress else text)
    return path


def build(path: Path, output: Path, *options) -> None:
    build_shards.main(["--input", str(path), "--output", str(output), *map(str, options)])


def script(name: str, *words, code: str = "") -> subprocess.CompletedProcess:
    """Run a script as a user does; `code` runs before it in the same process."""
    start = f"import runpy, sys; {code}\n"
    start += f"runpy.run_path({str(DATA_PREP / name)!r}, run_name='__main__')"
    return python("-c", start, *words)


def windows(directory: Path) -> Counter:
    """Every window of every row as text, special tokens spelt out."""
    shards = Shards(directory)
    found: Counter[str] = Counter()
    for index in range(shards.num_rows):
        tokens, lengths = shards.row(index)
        found.update(decode(window) for window in np.split(tokens, np.cumsum(lengths))[:-1])
    return found


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix == ".npy"}


def run_file(name: str, *words) -> subprocess.CompletedProcess:
    """Run a script by its path: its workers import it again."""
    return python(DATA_PREP / name, *words)


def many_chunks(monkeypatch) -> str:
    """Cut small inputs into many chunks and shards, here; returns the code that does so in another process."""
    monkeypatch.setattr(rows, "CHUNK_BYTES", 9000)
    monkeypatch.setattr(pipeline, "MEGABYTE", 50)
    return "from amplify_ds.prepare import pipeline, rows; rows.CHUNK_BYTES, pipeline.MEGABYTE = 9000, 50"


def build_with_workers(place: Path, code: str, *words, **environment) -> subprocess.CompletedProcess:
    """Run the script from a file, which spawned workers can import; `code` runs in each of them too."""
    main = place / "main.py"
    main.write_text(
        f"{code}\nfrom amplify_ds import build_shards\n"
        "if __name__ == '__main__':\n    build_shards.command(build_shards.main)\n"
    )
    return python(main, *words, env=os.environ | environment)
