"""Make small inputs, build shards from them, and read the shards back."""

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


def script(name: str, *arguments, code: str = "") -> subprocess.CompletedProcess:
    """Run a script as a user does, after `code` in the same process."""
    start = f"import runpy, sys; {code}\n"
    start += f"runpy.run_path({str(DATA_PREP / name)!r}, run_name='__main__')"
    return python("-c", start, *arguments)


def windows(directory: Path) -> Counter:
    """Count the windows of all rows, as text with the special tokens."""
    shards = Shards(directory)
    counts: Counter[str] = Counter()
    for index in range(shards.num_rows):
        tokens, lengths = shards.row(index)
        counts.update(decode(window) for window in np.split(tokens, np.cumsum(lengths))[:-1])
    return counts


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix == ".npy"}


def run_file(name: str, *arguments) -> subprocess.CompletedProcess:
    """Run a script by its path, so that its workers import it again."""
    return python(DATA_PREP / name, *arguments)


def many_chunks(monkeypatch) -> str:
    """Make this process cut small inputs into many chunks and shards; return code that does so in another process."""
    monkeypatch.setattr(rows, "CHUNK_BYTES", 9000)
    monkeypatch.setattr(pipeline, "MEGABYTE", 50)
    return "from amplify_ds.prepare import pipeline, rows; rows.CHUNK_BYTES, pipeline.MEGABYTE = 9000, 50"


def build_with_workers(directory: Path, code: str, *arguments, **environment) -> subprocess.CompletedProcess:
    """Run build_shards from a file that spawned workers import; `code` runs in each of them too."""
    main = directory / "main.py"
    main.write_text(
        f"{code}\nfrom amplify_ds import build_shards\n"
        "if __name__ == '__main__':\n    build_shards.command(build_shards.main)\n"
    )
    return python(main, *arguments, env=os.environ | environment)
