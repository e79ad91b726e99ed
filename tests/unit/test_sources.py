"""Inputs in all formats give the same records; a damaged one gives a message that names file and line."""

import bz2
import gzip
import io
import lzma
import os
import random
import sys
import threading
import tracemalloc
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from amplify_ds.errors import AmplifyError
from amplify_ds.prepare import rows, streams
from amplify_ds.prepare.batches import LONGEST_RECORD
from amplify_ds.prepare.reading_options import Reading
from amplify_ds.prepare.sources import find_sources
from tests.support.paths import EXAMPLE

SCANNED = 64  # bytes at a time
STANDARD = "ACDEFGHIKLMNPQRSTVWY"
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
    "plain": lambda data: data,
}


def records(count: int, seed: int = 0) -> list[tuple[bytes, bytes]]:
    draw = random.Random(seed)
    return [(b"p|%d x" % i, "".join(draw.choices(STANDARD, k=draw.randint(1, 90))).encode()) for i in range(count)]


RECORDS = records(300)
FASTA = b"".join(
    b">%s\n%s\n" % (name, b"\n".join(text[i : i + 40] for i in range(0, len(text), 40))) for name, text in RECORDS
)
LINES = FASTA.count(b"\n")
CSV = b"name,sequence\n" + b"".join(b"%s,%s\n" % record for record in RECORDS)


def chunks_of(source):
    """Return the chunks, after a cutter has read the file, as in build_shards.py."""
    if not source.cutter:
        return source.chunks([])
    cutter = source.cutter()
    with open(source.path, "rb") as file:
        while block := file.read(SCANNED):
            cutter.feed(block)
    return source.chunks(cutter.cuts)


def read(*addresses, reading=Reading()) -> list[tuple[bytes, bytes]]:
    """Return all records, chunk by chunk, without blanks."""
    pairs = []
    for source in find_sources([str(address) for address in addresses], reading):
        for chunk in chunks_of(source):
            for batch in chunk.read(lambda *amounts: None):
                sequences = batch.sequences
                assert len(batch.names) == len(sequences)
                pairs += [(name.encode(), b"".join(text.split())) for name, text in zip(batch.names, sequences)]
    return pairs


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("text", [FASTA, CSV, CSV.replace(b",", b"\t"), FASTA.replace(b"\n", b"\r\n")])
def test_text_by_its_content(tmp_path, compression, text):
    path = tmp_path / "name without a suffix"
    path.write_bytes(COMPRESSIONS[compression](text))
    assert read(path) == RECORDS


@pytest.mark.parametrize("chunk", [1, 7, 50, 1000, 10**6])
@pytest.mark.parametrize("text", [FASTA, CSV, FASTA[:-1], CSV[:-1], b"# comment\n\n" + FASTA])
def test_chunks_hold_every_record_once(tmp_path, monkeypatch, chunk, text):
    monkeypatch.setattr(rows, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(streams, "_SCAN", 16)
    path = tmp_path / "input"
    path.write_bytes(text[:3000] if chunk < 50 else text)
    whole = read_all(path)
    assert read(path) == whole and len(whole) > 10


def read_all(path) -> list[tuple[bytes, bytes]]:
    """Return the records, read with plain Python."""
    lines = path.read_bytes().split(b"\n")
    if lines[0] == b"name,sequence":
        return [tuple((line + b",").split(b",")[:2]) for line in lines[1:] if line]
    pairs = []
    for line in lines:
        if line.startswith(b">"):
            pairs.append([line[1:], b""])
        elif line and not line.startswith(b"#"):
            pairs[-1][1] += line
    return [tuple(pair) for pair in pairs]


def table() -> pa.Table:
    return pa.table({"name": [n.decode() for n, _ in RECORDS], "sequence": [s.decode() for _, s in RECORDS]})


def test_parquet_by_row_groups(tmp_path):
    pa.parquet.write_table(table(), tmp_path / "a.parquet", row_group_size=70)
    [source] = find_sources([str(tmp_path / "a.parquet")])
    assert len(chunks_of(source)) == 5
    assert read(tmp_path / "a.parquet") == RECORDS
    pa.parquet.write_table(table().drop_columns("name"), tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet") == [(b"", text) for _, text in RECORDS]


def test_a_dataset_saved_to_disk(tmp_path):
    from datasets import Dataset, DatasetDict

    half = len(RECORDS) // 2
    splits = {"train": table().slice(0, half), "test": table().slice(half)}
    DatasetDict({name: Dataset(part) for name, part in splits.items()}).save_to_disk(tmp_path / "saved")
    assert read(f"{tmp_path}/saved:train") == RECORDS[:half]
    assert read(f"{tmp_path}/saved:test") == RECORDS[half:]


def ur100p(folder: Path) -> Path:
    """Write the records to files in the layout of chandar-lab/UR100P; return the folder."""
    files = ["UniProt/train-0.csv", "UniProt/train-1.csv", "UniProt/test-0.csv", "OAS/train-0.csv", "SCOP/test-0.csv"]
    for number, file in enumerate(files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        part = RECORDS[60 * number : 60 * (number + 1)]
        (folder / file).write_bytes(b"name,sequence\n" + b"".join(b"%s,%s\n" % record for record in part))
    (folder / "README.md").write_text("what it is")
    return folder


def test_a_folder_of_files(tmp_path):
    folder = ur100p(tmp_path / "UR100P")
    assert sorted(read(folder)) == sorted(RECORDS)
    assert read(f"{folder}:UniProt/train") == RECORDS[:120]
    assert read(f"{folder}:SCOP/test") == RECORDS[240:]
    with pytest.raises(AmplifyError, match="no data file that begins with SCOP/train"):
        find_sources([f"{folder}:SCOP/train"])


def test_a_dataset_of_the_hub_as_a_stream(tmp_path, monkeypatch):
    import datasets

    folder, load = ur100p(tmp_path / "UR100P"), datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **options: load(str(folder), **options))
    [source] = find_sources(["chandar-lab/UR100P:UniProt/train"])
    assert len(chunks_of(source)) == 2
    assert read("chandar-lab/UR100P:UniProt/train") == RECORDS[:120]
    assert read("chandar-lab/UR100P:OAS/train") == RECORDS[180:240]


def test_a_hub_name_without_a_network_says_what_to_do(monkeypatch):
    import datasets

    def fail(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(AmplifyError, match="no route to host.*fetch_ur100p.py --output DIR .* DIR:UniProt/train"):
        find_sources(["chandar-lab/UR100P:UniProt/train"])
    with pytest.raises(AmplifyError, match="no route to host.*hf download a/b --repo-type dataset .* give DIR[.]"):
        find_sources(["a/b"])


def test_patterns_and_many_inputs(tmp_path):
    for number in range(3):
        text = b"".join(b">%s\n%s\n" % record for record in RECORDS[number::3])
        (tmp_path / f"part{number}.fasta.gz").write_bytes(gzip.compress(text))
    assert read(tmp_path / "part*.gz") == RECORDS[::3] + RECORDS[1::3] + RECORDS[2::3]
    assert read(tmp_path / "part0*", tmp_path / "part2*") == RECORDS[::3] + RECORDS[2::3]
    with pytest.raises(AmplifyError, match="no file matches"):
        read(tmp_path / "nothing*.fasta")


@pytest.mark.parametrize("data", [FASTA, gzip.compress(CSV)])
def test_standard_input(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))
    assert read("-") == RECORDS


def test_standard_input_that_does_not_wait_is_refused(monkeypatch):
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    with open(write_end, "wb", 0) as writer, open(read_end) as stdin:
        writer.write(FASTA[:1000])
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(AmplifyError, match="no bytes are ready"):
            read("-")


class Served(BaseHTTPRequestHandler):
    """Announces the length of `data` but sends only `sent` bytes of it (None: all)."""

    data, sent = FASTA, None

    def do_GET(self):
        if self.path != "/a.fasta":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.data)))
        self.end_headers()
        self.wfile.write(self.data[: self.sent])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """Return a function that starts a server with settings of `Served` and returns its address."""
    started = []

    def start(**settings):
        started.append(ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Served,), settings)))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{started[-1].server_port}/a.fasta"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("data", [FASTA, gzip.compress(FASTA), FASTA * 50])
def test_an_address(server, data):
    assert read(server(data=data)) == RECORDS * (data.count(FASTA) or 1)


@pytest.mark.parametrize("data", [FASTA, gzip.compress(FASTA)])
def test_a_download_that_breaks_off_says_how_to_continue_one(server, data):
    """Also at the end of a line, where the records received so far are valid."""
    sent = data.index(b"\n>", 5000) + 1 if data is FASTA else 5000
    address = server(data=data, sent=sent)
    message = f"a.fasta could not be read to its end: .*{sent} bytes.*\n  curl .* {address}$"
    with pytest.raises(AmplifyError, match=message):
        read(address)


def test_an_address_without_a_file(server):
    for address, reason in ((server().replace("a.fasta", "b.fasta"), "404"), ("http://127.0.0.1:9/a.fasta", "refused")):
        with pytest.raises(AmplifyError, match=f"to its end: .*{reason}"):
            read(address)


@pytest.mark.parametrize(
    "name, data, messages",
    [
        ("a.csv", b"id,protein\n1,MKV\n", ['no column "sequence"', "id, protein", "--sequence-column"]),
        ("a.csv", b"name,sequence\na,MKV\nb\nc,MKV\n", ["a.csv, line 3", "1 columns, expected 2"]),
        ("a.csv", CSV + b"x,M,K\n", ["a.csv, line 302", "3 columns, expected 2"]),
        ("a.csv.gz", gzip.compress(CSV + b"x,M,K\n"), ["a.csv.gz, line 302"]),
        ("a.tsv", b"Entry\tProtein\n1\tMKV\n", ["Entry, Protein"]),
        ("a.parquet", b"PAR1" + bytes(100) + b"PAR1", ["a.parquet cannot be read"]),
        ("a.arrow", b"\xff\xff\xff\xff" + bytes(100), ["a.arrow cannot be read"]),
        ("a.zst", zstandard.compress(FASTA)[:-100], ["a.zst cannot be read to its end"]),
        ("a.xz", lzma.compress(FASTA)[:-100], ["a.xz cannot be read to its end"]),
        ("a.fasta", FASTA + b">b\nM\xe9\n", [f"a.fasta, line {LINES + 2}:", "not ASCII"]),
    ],
)
def test_bad_tables_and_files_are_named(tmp_path, monkeypatch, name, data, messages):
    monkeypatch.setattr(rows, "CHUNK_BYTES", 4000)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AmplifyError) as error:
        read(tmp_path / name)
    for message in messages:
        assert message in str(error.value)


def test_a_parquet_without_the_column_names_those_it_has(tmp_path):
    pa.parquet.write_table(pa.table({"id": [1], "seq": ["MKV"]}), tmp_path / "a.parquet")
    with pytest.raises(AmplifyError, match='no column "sequence" among its columns: id, seq'):
        read(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", reading=Reading("seq", "id")) == [(b"1", b"MKV")]


def test_a_very_long_line_is_refused(tmp_path):
    for name, head in (("a.fasta", b">a\n"), ("a.csv", b"name,sequence\na,")):
        (tmp_path / name).write_bytes(head + b"A" * 100_000_000)
        with pytest.raises(AmplifyError, match=r"a\.(fasta|csv), line \d: a (record|line) of more than"):
            read(tmp_path / name)


def _parquet() -> bytes:
    file = io.BytesIO()
    pa.parquet.write_table(table(), file, row_group_size=100)
    return file.getvalue()


def _arrow() -> bytes:
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table().schema) as writer:
        writer.write_table(table())
    return file.getvalue()


REAL = gzip.decompress((EXAMPLE / "train.fasta.gz").read_bytes())[:20_000]
INTACT = {"FASTA": FASTA, "CSV": CSV, "Parquet": _parquet(), "Arrow": _arrow()}
INTACT |= {name: compress(REAL) for name, compress in COMPRESSIONS.items()}


@pytest.mark.parametrize("kind", INTACT)
@given(data=st.data())
def test_flipped_bytes_give_records_or_a_message(tmp_path_factory, kind, data):
    damaged = bytearray(INTACT[kind])
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    try:
        read(path)
    except AmplifyError as error:
        assert str(path) in str(error)


def test_a_record_without_an_end_takes_bounded_memory(tmp_path):
    """A line of 100 MB, and a record of 100 MB in many lines."""
    for number, filler in enumerate((b"M" * 2**20, b"M" * (2**20 - 1) + b"\n")):
        path = tmp_path / f"{number}.fasta"
        with open(path, "wb") as file:
            file.write(b">a\nMKV\n>b\n")
            file.writelines(filler for _ in range(100))
        tracemalloc.start()
        with pytest.raises(AmplifyError, match="line [0-9]+: a record of more than 33,554,432 bytes"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * LONGEST_RECORD
        tracemalloc.stop()
