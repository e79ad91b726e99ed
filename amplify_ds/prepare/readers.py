"""Read one piece of a source (`sources.py`) in batches of records; of a damaged one name the file, line and reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from amplify_ds.errors import AmplifyError
from amplify_ds.prepare.fasta import Batch, Malformed, read_fasta
from amplify_ds.prepare.streams import Progress, open_section, open_stream
from amplify_ds.prepare.tables import Columns, Header, read_arrow, read_csv, read_dataset, read_parquet

FASTA_NAMES, CSV_NAMES = (".fasta", ".fa", ".faa", ".fas"), (".csv", ".tsv")
COMPRESSED_NAMES = (".gz", ".zst", ".bz2", ".xz")
TABLE_NAMES = (".parquet", ".arrow")
_BROKEN = (OSError, ValueError, pa.ArrowException)  # what damaged files raise


def is_csv(address: str, head: bytes) -> bool:
    """By the name, or else by the first line: FASTA begins with ">", and the first line of CSV has several columns."""
    suffix = Path(plain_name(Path(address))).suffix
    if suffix in (*FASTA_NAMES, *CSV_NAMES):
        return suffix in CSV_NAMES
    line = head.lstrip().split(b"\n")[0]
    return not line.startswith((b">", b"#", b";")) and (b"," in line or b"\t" in line)


def plain_name(path: Path) -> str:
    name = path.name.lower()
    return name.removesuffix(Path(name).suffix) if Path(name).suffix in COMPRESSED_NAMES else name


def read_stream(address: str, place: str, columns: Columns, progress: Progress) -> Iterator[Batch]:
    damaged = " The input is compressed or a stream, and may be damaged: test it (gzip -t), fetch it again."
    with refusing(place, damaged), open_stream(address, progress) as stream:
        csv = is_csv(address, stream.peek(2**12))
        yield from read_csv(stream, None, columns) if csv else read_fasta(stream)


def read_section(
    path: str, bounds: tuple[int, int], header: Header | None, columns: Columns, progress: Progress
) -> Iterator[Batch]:
    start, stop = bounds
    with refusing(path):
        stream, begin = open_section(path, start, stop, b"\n" if header else b"\n>", progress)
    with stream, refusing(path, begin=begin):
        yield from read_csv(stream, header if start else None, columns) if header else read_fasta(stream)


def read_row_group(path: str, group: int, columns: Columns, progress: Progress) -> Iterator[Batch]:
    with refusing(path):
        yield from _telling(read_parquet(path, range(group, group + 1), columns), progress)


def read_arrow_file(path: str, columns: Columns, progress: Progress) -> Iterator[Batch]:
    with refusing(path):
        yield from _telling(read_arrow(path, columns), progress)


def read_data_file(name: str, files: str, number: int, columns: Columns, progress: Progress) -> Iterator[Batch]:
    with refusing(f"{name}:{files}"):
        yield from _telling(read_dataset(name, files, number, columns), progress)


def _telling(batches: Iterator[Batch], progress: Progress) -> Iterator[Batch]:
    for batch in batches:
        progress(len(batch.text))
        yield batch


@contextmanager
def refusing(place: str, hint: str = "", begin: int = 0) -> Iterator[None]:
    """Turn what a reader raises in the block into an AmplifyError that names the place and, if there is one, the line.

    begin: the byte of the file at which the stream of the block began: the lines before it count too.
    """
    try:
        yield
    except Malformed as error:
        line = "" if error.line is None else f", line {error.line + _lines(place, begin):,}"
        raise AmplifyError(f"{place}{line}: {error.message}.{hint}") from error
    except _BROKEN as error:
        raise AmplifyError(
            f"{place} cannot be read to its end: {error}. Is it still there and complete?{hint}"
        ) from error


def _lines(path: str, stop: int) -> int:
    """Count the lines of the first `stop` bytes of a file."""
    if not stop:
        return 0
    with open(path, "rb") as file:
        return sum(file.read(min(2**20, stop - start)).count(b"\n") for start in range(0, stop, 2**20))
