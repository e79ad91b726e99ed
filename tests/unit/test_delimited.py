"""However a text table is cut, its rows are those that Python's csv reads; invalid ones are errors with their line."""

import csv
import io
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplify_ds.errors import AmplifyError
from amplify_ds.prepare import delimited, rows
from amplify_ds.prepare.batches import Malformed
from amplify_ds.prepare.reading_options import Reading
from amplify_ds.prepare.sources import find_sources
from tests.support.properties import examples

CELL = st.text(st.sampled_from('MKV", \t\r\n;é\x01\x04'), max_size=6) | st.text(st.sampled_from("MKVLAG"), min_size=1)
LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r"])


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Restore the sizes that tests set: hypothesis runs all examples with one fixture."""
    for module, name in ((rows, "CHUNK_BYTES"), (delimited, "BLOCK")):
        monkeypatch.setattr(module, name, getattr(module, name))


def chunks(path, reading=Reading(), scanned=7):
    """Return (id, sequence) of all records and the number of chunks, cut as build_shards.py does."""
    [source] = find_sources([str(path)], reading)
    cutter = source.cutter()
    with open(path, "rb") as file:
        while block := file.read(scanned):
            cutter.feed(block)
    parts = source.chunks(cutter.cuts)
    pairs = [pair for part in parts for batch in part.read(lambda n: None) for pair in zip(batch.ids, batch.sequences)]
    whole = [pair for batch in source.read() for pair in zip(batch.ids, batch.sequences)]
    assert pairs == whole
    return pairs, len(parts)


def plain(sequence: str) -> bytes:
    """Return a sequence as it is in a batch: without line breaks."""
    return sequence.encode().replace(b"\n", b"").replace(b"\r", b"")


def written(cell: str, delimiter: str, always: bool) -> str:
    """Return a cell as in RFC 4180; always: quoted even if it need not be."""
    needed = any(letter in cell for letter in ('"', "\r", "\n", delimiter))
    return '"' + cell.replace('"', '""') + '"' if always or needed else cell


@examples()
@given(st.data())
def test_csv_is_what_python_reads(tmp_path_factory, data):
    """Any rows, quoted where necessary or everywhere, with any line end, in blocks and chunks of any size."""
    table = data.draw(st.lists(st.tuples(CELL, CELL, CELL), max_size=12))
    delimiter, end = data.draw(st.sampled_from(",;\t|")), data.draw(LINE_ENDS)
    always = data.draw(st.booleans())
    text = "".join(
        delimiter.join(written(cell, delimiter, always) for cell in row) + end
        for row in [("name", "x", "sequence"), *table]
    )
    if data.draw(st.booleans()):
        text = text.removesuffix(end)
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(text.encode())
    rows.CHUNK_BYTES, delimited.BLOCK = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 50))
    found, _ = chunks(path, Reading(delimiter=delimiter, quoting="csv"), data.draw(st.integers(1, 30)))
    expected = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))[1:]
    assert found == [(name, plain(sequence)) for name, _, sequence in filter(None, expected)]
    assert [row for row in table if any(row)] == [tuple(row) for row in expected if any(row)]


@examples()
@given(st.text(st.sampled_from('MK",\n\r'), max_size=60), st.integers(1, 40), st.integers(1, 20), st.integers(1, 9))
def test_any_text_is_what_python_reads_or_is_refused(tmp_path_factory, text, chunk, block, scanned):
    """Also text that is not CSV: the rows that Python's csv reads, or an error if it finds one too."""
    path = tmp_path_factory.getbasetemp() / "wild.csv"
    path.write_bytes(b"name,sequence\n" + text.encode())
    rows.CHUNK_BYTES, delimited.BLOCK = chunk, block
    try:
        expected = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
        valid = all(len(row) == 2 for row in expected)
    except csv.Error:
        valid = False
    try:
        found, _ = chunks(path, scanned=scanned)
    except AmplifyError as error:
        assert not valid and f"{path}, line " in str(error)
    else:
        assert valid and found == [(name, plain(sequence)) for name, sequence in expected]


@examples()
@given(st.lists(st.tuples(*[st.text(st.sampled_from('MK" ,é'), max_size=5)] * 2), max_size=8), st.integers(1, 60))
def test_between_tabs_every_line_is_a_row(tmp_path_factory, table, chunk):
    path = tmp_path_factory.getbasetemp() / "any.tsv"
    path.write_text("name\tsequence\n" + "".join(f"{name}\t{sequence}\n" for name, sequence in table))
    rows.CHUNK_BYTES, delimited.BLOCK = chunk, 5
    literal, _ = chunks(path, Reading(quoting="none"))
    assert literal == [(name, plain(sequence)) for name, sequence in table]
    found, _ = chunks(path)
    assert len(found) == len(table)
    for pair, row in zip(found, table):
        for cell, text in zip((pair[0], pair[1].decode()), row):
            try:
                [[quoted]] = csv.reader([text], delimiter="\t", strict=True)
            except (csv.Error, ValueError):
                quoted = text
            assert cell == (quoted if text.startswith('"') else text)


@pytest.mark.parametrize("count", [3, 26_500])
def test_sequences_of_several_lines(tmp_path, count):
    """26,500 sequences, each in a quoted cell of three lines: 4.4 MB, more than a block, in chunks of 100 kB."""
    draw = random.Random(0)
    sequences = ["M" + "".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=draw.randint(150, 170))) for _ in range(count)]
    path = tmp_path / "ml.csv"
    path.write_text("sequence\n" + "".join(f'"{s[:60]}\n{s[60:120]}\n{s[120:]}"\n' for s in sequences))
    rows.CHUNK_BYTES = 100_000
    [source] = find_sources([str(path)])
    cutter = source.cutter()
    cutter.feed(path.read_bytes()[:2_000_000])
    cutter.feed(path.read_bytes()[2_000_000:])
    found = [s for part in source.chunks(cutter.cuts) for batch in part.read(int) for s in batch.sequences]
    assert [b"".join(s.split()).decode() for s in found] == sequences


def test_a_cell_larger_than_any_block(tmp_path):
    path = tmp_path / "large.csv"
    text = "x,\n" * 2_000_000
    path.write_text(f'name,about,sequence\na,"{text}",MKV\nb,y,MLL\n')
    assert chunks(path, scanned=2**20)[0] == [("a", b"MKV"), ("b", b"MLL")]


def test_memory_is_bounded_by_one_cell(tmp_path):
    """A cell without an end is an error long before it fills the memory."""
    import tracemalloc

    path = tmp_path / "endless.csv"
    with open(path, "w") as file:
        file.write('name,sequence\na,MKV\nb,"')
        file.writelines("MKVLLA\n" * 150_000 for _ in range(100))
    tracemalloc.start()
    with pytest.raises(AmplifyError, match=r"endless.csv, line 3: a line of more than 33,554,432 bytes, from a quote"):
        list(find_sources([str(path)])[0].read())
    assert tracemalloc.get_traced_memory()[1] < 5 * 2**25
    tracemalloc.stop()


@pytest.mark.parametrize(
    "name, text, messages",
    [
        ("a.csv", 'name,sequence\na,"MK\nV"\nb,MK,V\n', ["line 4", "3 columns, expected 2"]),
        ("a.csv", 'name,sequence\na,"MK\r\nV"\r\nb,"MK"V\r\n', ["line 4", "not quoted as in CSV", "--quoting none"]),
        ("a.csv", 'name,sequence\na,MKV\nb,"MKV\nc,MKV\n', ["line 3", "never closed", "--quoting none"]),
        ("a.tsv", 'name\tsequence\na\t"MK\nV"\nb\tMKV\n', ["line 3", "1 columns, expected 2"]),
        ("a.tsv", 'name\tx\tsequence\na\t"u\tv\t"MKV\n', ["line 2", "4 columns", "--quoting csv"]),
        ("a.csv", "name;sequence\na;MKV\n", ["name;sequence", '--delimiter ";"']),
        ("a.csv", "a,MKVLLAGWYFDEHIKSTNQRP\nb,MKV\n", ["no column", "sequence"]),
        ("a.csv", "sequence,sequence\nMKV,MLL\n", ["two columns have the name 'sequence'"]),
    ],
)
def test_malformed_rows_are_named_by_their_line(tmp_path, name, text, messages):
    (tmp_path / name).write_bytes(text.encode())
    rows.CHUNK_BYTES = 10
    with pytest.raises(AmplifyError) as error:
        chunks(tmp_path / name)
    for message in [name, *messages]:
        assert message in str(error.value)


def test_a_table_without_a_header_and_another_delimiter(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a;MKV\nb;MLL\n")
    found, _ = chunks(path, Reading(delimiter=";", header=False, sequence_column="2", name_column="1"))
    assert found == [("a", b"MKV"), ("b", b"MLL")]
    path.write_text("MKVLA\nMLL\n")
    [source] = find_sources([str(path)], Reading(header=False))
    assert [s for batch in source.read() for s in batch.sequences] == [b"MKVLA", b"MLL"]
    with pytest.raises(AmplifyError, match="line 1: not FASTA.*--no-header"):
        find_sources([str(path)])


def test_row_ends_are_those_of_a_state_machine():
    """RowEnds against a state machine that reads byte by byte, for all texts of 8 bytes out of the four that matter."""
    for number in range(4**8):
        text = bytes(b'",\nM'[number >> 2 * index & 3] for index in range(8))
        ends, state, expected = rows.RowEnds(b","), "start", 0
        for position, byte in enumerate(text, 1):
            letter = chr(byte)
            if state == "quoted":
                state = "closing" if letter == '"' else "quoted"
            elif letter == '"' and state in ("start", "closing"):
                state = "quoted"
            else:
                state = "start" if letter in ",\n" else "cell"
                expected = position if letter == "\n" else expected
        cut = number % 7 + 1
        first = ends.feed(text[:cut])
        second = ends.feed(text[cut:])
        assert (cut + second if second else first) == expected, text
        assert ends.inside == (state == "quoted")


def test_a_header_that_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "LONGEST_HEADER", 100_000)
    with pytest.raises(Malformed, match="a first line of more than 100,000 bytes"):
        delimited.read_layout(io.BytesIO(b"x," * 10**6), False, Reading())
