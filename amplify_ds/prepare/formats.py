"""Recognise the format of a file by its first bytes; its name only decides if these fit both FASTA and a table."""

from __future__ import annotations

import json
import re
from pathlib import PurePath

from amplify_ds.prepare.batches import Malformed

UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
FASTA_NAMES, TABLE_NAMES = (".fasta", ".fa", ".faa", ".fas", ".fsa", ".pep", ".a3m"), (".csv", ".tsv")
JSON_NAMES, BINARY_NAMES = (".jsonl", ".ndjson"), (".parquet", ".arrow", ".feather")
ARCHIVE_NAMES = (".zip", ".tar", ".tgz")
COMPRESSED_NAMES = (".gz", ".zst", ".bz2", ".xz", ".bgz")
DATA_NAMES = (*FASTA_NAMES, *TABLE_NAMES, *JSON_NAMES, *BINARY_NAMES, *ARCHIVE_NAMES)
HEAD = 2**12  # bytes that show the format

_BINARY = {
    b"PAR1": "parquet",
    b"ARROW1": "arrow file",
    b"\xff\xff\xff\xff": "arrow stream",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
}
_NOT_READ = (
    (rb"@\S.*\n[A-Za-z.*\n]+\n\+", "FASTQ, reads of nucleotides", "translate them into proteins first"),
    (rb"LOCUS +\S", "GenBank", "convert it to FASTA, or download the proteins as FASTA"),
    (rb"ID   \S", "the flat file of EMBL and UniProt", "convert it to FASTA, or download FASTA"),
    (rb"# STOCKHOLM", "a Stockholm alignment", "convert it to FASTA (esl-reformat fasta)"),
    (rb"CLUSTAL\b(?![,;\t])|MUSCLE \(", "a Clustal alignment", "convert it to FASTA"),
    (rb"#NEXUS", "a NEXUS alignment", "convert it to FASTA"),
    (rb"\d+[ \t]+\d+[ \t]*\n", "a PHYLIP alignment", "convert it to FASTA"),
    (rb"HEADER    |ATOM  +\d|HETATM|REMARK +\d|CRYST1", "a PDB structure", "give its sequences as FASTA"),
    (rb"data_\w*[ \t]*\n\s*(#|_|loop_)", "an mmCIF structure", "give its sequences as FASTA"),
    (rb"##gff|##fileformat=VCF", "annotation (GFF, VCF)", "give sequences"),
    (rb"(?i)<!doctype html|<html", "a web page", "was it saved in place of the file? Check the address"),
    (rb"<\?xml|<[A-Za-z]+[ >]", "XML", "convert it to FASTA"),
    (rb"\[\s*[\[{\"\d]", "a JSON array", "write an object per line (jq -c '.[]')"),
    (rb"version https://git-lfs", "a pointer of Git LFS, not the file", "run git lfs pull"),
    (rb"%PDF", "PDF", "give sequences"),
    (rb"\x89HDF", "HDF5", "write the sequences as FASTA or Parquet"),
    (rb"\x93NUMPY", "a NumPy array", "write the sequences as FASTA or Parquet"),
    (rb"SQLite format 3", "an SQLite database", "export its table as CSV"),
    (rb"\xd0\xcf\x11\xe0", "an Excel or Word file", "save it as CSV"),
    (rb"7z\xbc\xaf\x27\x1c|Rar!|\x1f\x9d|\x04\x22\x4d\x18", "an archive (7z, rar, lz4 or .Z)", "unpack it"),
    (rb"FEA1\0", "Feather of version 1", "write it again with a newer pyarrow"),
    (rb"BAM\x01|CRAM[\x02\x03]", "BAM or CRAM, reads of nucleotides", "translate them into proteins first"),
    (rb"Obj\x01|ORC[\0-\x1f]", "Avro or ORC", "write it as Parquet"),
    (rb"\x80[\x02-\x05]", "pickle, which can run any code", "write the sequences as FASTA or Parquet"),
)
_PATTERNS = [(re.compile(pattern), name, advice) for pattern, name, advice in _NOT_READ]


def suffix(name: str) -> str:
    """Return the suffix of a file name in lower case, without the suffix of a compression."""
    path = PurePath(name.lower().split("?")[0] if "://" in name else name.lower())
    return (path.with_suffix("") if path.suffix in COMPRESSED_NAMES else path).suffix


def binary_format(head: bytes) -> str | None:
    """Return the name of a binary format, None for text: parquet, arrow file, arrow stream or zip."""
    return next((name for magic, name in _BINARY.items() if head.startswith(magic)), None)


def _unsupported(head: bytes) -> str | None:
    """Return which format that is not read this is, and what to do about it; None for any other."""
    text = re.sub(rb"\r\n?", b"\n", head.removeprefix(UTF8_MARK).lstrip())
    return next((f"it is {name}; {advice}" for pattern, name, advice in _PATTERNS if pattern.match(text)), None)


def text_format(head: bytes, name: str, table: bool) -> str:
    """Return the format of a text: fasta, delimited or json. Raises Malformed for a format that is not supported.

    The content decides: FASTA begins with ">", JSON with "{", the first line of a table has several columns. If the
    content does not show it, the name does. table: the user says that it is a table.
    """
    text = head.removeprefix(UTF8_MARK).lstrip()
    lines = [line for line in re.split(rb"[\r\n]+", text) if line.strip()]
    content = next((line for line in lines if not line.lstrip().startswith((b"#", b";"))), b"")
    ending = suffix(name)
    if content.lstrip().startswith(b">"):
        return "fasta"
    if message := _unsupported(text):
        raise Malformed(message, head[: len(head) - len(text)].count(b"\n") + 1)
    if ending in JSON_NAMES or (ending not in TABLE_NAMES and _is_json(lines)):
        return "json"
    if table or ending in TABLE_NAMES:
        return "delimited"
    if ending in FASTA_NAMES or not lines or lines[0].startswith((b"#", b";")):
        return "fasta"
    return "delimited" if b"," in lines[0] or b"\t" in lines[0] else "fasta"


def describe_line(line: bytes) -> str:
    """Return an excerpt of a line that is not FASTA and what it may be, for a message."""
    excerpt = repr(line[:40].decode("latin-1"))
    if b"," in line or b"\t" in line or b";" in line:
        return f"{excerpt}, which looks like a table: give it a name that ends in .csv or .tsv, or use --delimiter"
    letters = line.strip().rstrip(b"*")
    if letters.isalpha() and letters.isascii():
        return f"{excerpt}: for one sequence per line without headers, use --no-header"
    return excerpt


def _is_json(lines: list[bytes]) -> bool:
    """Return whether the first line is a JSON object, as far as it is there, and the second, if any, begins one."""
    if not lines or not lines[0].startswith(b"{") or (lines[1:] and not lines[1].startswith(b"{")):
        return False
    try:
        return isinstance(json.loads(lines[0]), dict)
    except ValueError:
        return len(lines) == 1
