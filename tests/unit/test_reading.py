"""Files as people have them: build_shards and embed both read them correctly, or refuse them with the same reason."""

import gzip
import hashlib
import io
import json
import re
import sys
import tarfile
import zipfile
from collections import Counter

import dnaio
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplify_ds import build_shards
from amplify_ds.data.shards import Shards
from amplify_ds.errors import AmplifyError
from amplify_ds.inference.reading import check, proteins
from amplify_ds.inference.records import Records
from amplify_ds.prepare import alphabet, archives, fasta, rows
from amplify_ds.prepare.batches import Malformed
from amplify_ds.prepare.fasta import read_fasta
from amplify_ds.prepare.reading_options import Reading
from amplify_ds.prepare.sources import find_sources
from amplify_ds.vocab import MASK, decode
from tests.support.paths import ROOT
from tests.support.properties import examples

CASES = ROOT / "tests/cases"
A = (
    "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVVHSLAKWKRQTLGQHDFSAGEGLYTHMKALRPDEDRLSPLHSVYV"
    "DQWDWE"
)
B = "MALWMRLLPLLALLALWGPDPAAAFVNQHLCGSHLVEALYLVCGERGFFYTPKTRREAEDLQVGQVELGGGPGAGSLQPLALEGSLQKRGIVEQCCTSICSLYQLENYCN"
C = "MNIFEMLRIDEGLRLKIYKDTEGYYTIGIGHLLTKSPSLNAAKSELDKAIGRNTNGVITKDEAEKLFNQDVDAAVRGILRNAKLKPVYDSLDAVRRAAIINMVFQMGETGVAGF"


def read(path, reading=Reading(), **options) -> list[tuple[str, str]]:
    """Return the records that embed and score read."""
    records = Records(path, reading, **options)
    check(records)
    return [(name, sequence) for name, sequence in records]


def built(path, output, *options) -> tuple[Counter, dict]:
    """Build shards; return the sequences in them, and the counts in the manifest."""
    arguments = ["--input", str(path), "--output", str(output), "--max-length", "400", *map(str, options)]
    build_shards.main(arguments)
    shards = Shards(output)
    sequences: Counter[str] = Counter()
    for index in range(shards.num_rows):
        tokens, lengths = shards.row(index)
        sequences.update(decode(window[1:-1]) for window in np.split(tokens, np.cumsum(lengths))[:-1])
    return sequences, shards.manifest["counts"]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("airr_rearrangement.tsv", {"s0": A, "s1": B, "s2": C}),
        ("bom.fasta", {"a": A, "b": B}),
        ("cat_no_eol.fasta", {"a": A, "b": B, "c": C}),
        ("dms_wt.fasta", {"wt": A}),
        ("named_gz_but_plain.fasta.gz", {"a": A, "b": B, "c": C}),
        ("oas_unpaired.csv.gz", {"0": A, "1": B}),
        ("space_after_gt.fasta", {"a": A, "b": B}),
        ("tsv_quotes.tsv", {"p1": A, "p2": B, "p3": C, "p4": A[:60], "p5": B[:70]}),
        ("uniprot_frag.tsv", {"Q1": A, "Q2": B, "Q3": C}),
        ("utf8_header.fasta", {"a": A, "b": B}),
    ],
)
def test_what_people_have_is_read(tmp_path, name, expected):
    assert read(CASES / name) == list(expected.items())
    sequences, counts = built(CASES / name, tmp_path / "out")
    assert sequences == Counter(expected.values()) and counts["records"] == len(expected) and not counts["rejected"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("dna.fasta", "the first 2 sequences are almost all A C G T U N.*--allow-nucleotides"),
        ("indels_v0.csv", 'no column "sequence" .*proteins seem to be in .mutant.'),
        ("subs_only_sequence.csv", "proteins seem to be in .mutated_sequence."),
        ("offset24.csv", 'no column "sequence" among its columns: mutant, DMS_score'),
        ("slash.csv", 'no column "sequence"'),
        ("with_wt_row.csv", 'no column "sequence"'),
    ],
)
def test_what_is_no_input_of_proteins_is_refused(tmp_path, name, message):
    for use in (read, lambda path: built(path, tmp_path / "out")):
        with pytest.raises(AmplifyError, match=f"{name}.*{message}"):
            use(CASES / name)
    assert not list(tmp_path.iterdir())


def test_names_of_one_first_word(tmp_path):
    path = CASES / "flu_spaces.fasta"
    with pytest.raises(AmplifyError, match="1 names appear more than once: 'A/New'.*--names header.*--duplicates"):
        read(path)
    headers = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith(">")]
    assert read(path, names="header") == list(zip(headers, (A, B)))
    assert read(path, duplicates="skip") == [("A/New", A)]
    assert read(path, duplicates="number") == [("A/New", A), ("A/New_2", B)]
    (tmp_path / "a.fasta").write_text(">a\nMK\n>a_2\nML\n>a\nMV\n>a_2\nMW\n")
    assert [name for name, _ in read(tmp_path / "a.fasta", duplicates="number")] == ["a", "a_2", "a_3", "a_2_2"]


def test_alignments(tmp_path):
    path = CASES / "a3m_ss.a3m"
    with pytest.raises(AmplifyError, match=r"record 2 \('h1'\) contains '-', gaps of an alignment: --alignment strip"):
        read(path)
    records = Records(path, Reading(alignment="strip"))
    assert check(records).notes == {"secondary structure (ss_pred, ss_conf, ss_dssp)": 2}
    assert list(records) == [("query", A), ("h1", A[1:])]
    sequences, counts = built(path, tmp_path / "dropped")
    assert sequences == Counter([A]) and counts["records"] == 4
    ss = {"secondary structure (ss_pred, ss_conf, ss_dssp)": 2}
    assert counts["rejected"] == {"gaps of an alignment (--alignment strip)": 1, **ss}
    sequences, counts = built(path, tmp_path / "stripped", "--alignment", "strip")
    assert sequences == Counter([A, A[1:]]) and counts["rejected"] == ss
    (tmp_path / "b.a3m").write_text(">q\nMK-V\n>h\nM.KvlV\n")
    assert built(tmp_path / "b.a3m", tmp_path / "b", "--alignment", "strip")[0] == Counter(["MKV", "MKVLV"])
    with pytest.raises(AmplifyError, match="reading: {'alignment': 'strip'} there, {} here"):
        built(tmp_path / "b.a3m", tmp_path / "b")


def test_chains_that_are_nucleic_acids_are_left_out_and_counted(tmp_path):
    (tmp_path / "pdb_seqres.txt").write_text(
        f">101m_A mol:protein length:154  MYOGLOBIN\n{A}\n>102d_A mol:na length:12  DNA\nCGCAAATTTGCG\n"
        f">9xyz_B mol:protein length:9  mol:na binding\n{B}\n"
    )
    sequences, counts = built(tmp_path / "pdb_seqres.txt", tmp_path / "out")
    assert sequences == Counter([A, B]) and counts["records"] == 3
    assert counts["rejected"] == {"nucleic acid chains (mol:na)": 1}
    assert [name for name, _ in read(tmp_path / "pdb_seqres.txt")] == ["101m_A", "9xyz_B"]


def test_nucleotides_among_proteins_are_reported(tmp_path):
    dna = "ATGAAAACCGCGTATATTGCGAAACAG"
    (tmp_path / "a.fasta").write_text(f">a\n{A}\n>b\n{dna}\n>c\n{B}\n>d\nGATTACA\n")
    sequences, counts = built(tmp_path / "a.fasta", tmp_path / "out")
    assert sequences == Counter([A, B, dna, "GATTACA"])
    assert counts["noted"] == {"made of A C G T N alone, like nucleotides (kept)": 1}
    sequences, _ = built(CASES / "dna.fasta", tmp_path / "dna", "--allow-nucleotides")
    assert sum(sequences.values()) == 2


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl", ".arrow", ".csv.gz"])
def test_columns_that_hold_nucleotides_are_refused_with_those_that_hold_proteins(tmp_path, suffix):
    columns = {"sequence": ["ACGTACGTACGTACGTACGT", "GGGTTTAAACCCGGGTTTAAACCC"], "about": ["x", "y"], "protein": [A, B]}
    path = write_table(tmp_path / f"a{suffix}", columns)
    with pytest.raises(
        AmplifyError, match="a.*: the first 2 sequences.*proteins seem to be in 'protein'.*--sequence-column"
    ):
        read(path)
    assert read(path, Reading(sequence_column="protein")) == [("0", A), ("1", B)]
    with pytest.raises(AmplifyError, match="no column .proteins. .--sequence-column. .*in 'protein'"):
        read(path, Reading(sequence_column="proteins"))


def write_table(path, columns):
    """Write a table in the format of the suffix; return its path."""
    table = pa.table(columns)
    writers = {
        ".parquet": lambda: pa.parquet.write_table(table, path),
        ".feather": lambda: pa.feather.write_feather(table, path),
        ".arrow": lambda: write_ipc(path, table, pa.ipc.new_file),
        ".stream": lambda: write_ipc(path, table, pa.ipc.new_stream),
        ".jsonl": lambda: path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist())),
    }
    text = "".join(",".join(row) + "\n" for row in [table.column_names, *zip(*columns.values())])
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        writers.get(path.suffix, lambda: path.write_text(text))()
    return path


def write_ipc(path, table, writer):
    with writer(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=2)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".feather", ".arrow", ".stream", ".jsonl", ".csv.gz"])
def test_tables_in_every_form(tmp_path, suffix):
    path = write_table(tmp_path / f"t{suffix}", {"name": ["x", "y", "z"], "n": ["1", "2", "3"], "sequence": [A, B, C]})
    assert read(path) == [("x", A), ("y", B), ("z", C)]
    assert built(path, tmp_path / "out")[0] == Counter([A, B, C])


@pytest.mark.parametrize("drop", [["--fragments", "drop"], ["--max-existence", "2"]])
def test_filters_need_names(tmp_path, drop):
    for suffix in (".csv", ".parquet", ".jsonl"):
        path = write_table(tmp_path / f"a{suffix}", {"sequence": [A, B]})
        with pytest.raises(AmplifyError, match=f"{drop[0]}.* needs the names of the proteins.*--name-column"):
            built(path, tmp_path / "out", *drop)
    path = write_table(tmp_path / "b.csv", {"sequence": [A, B], "title": ["x (Fragment) PE=4", "y"]})
    assert built(path, tmp_path / "b", *drop, "--name-column", "title")[0] == Counter([B])
    for options in (drop, []):  # a misspelt name is an error even if nothing needs it
        with pytest.raises(AmplifyError, match='no column "titel" .--name-column. among its columns: sequence, title'):
            built(path, tmp_path / "out", *options, "--name-column", "titel")


def test_filters_that_match_nothing_say_so(tmp_path, capsys):
    (tmp_path / "a.fasta").write_text(f">a\n{A}\n>b PE=1\n{B}\n")
    _, counts = built(tmp_path / "a.fasta", tmp_path / "out", "--fragments", "drop", "--max-existence", "3")
    assert counts["rejected"] == {"fragments": 0, "protein existence": 0}
    assert counts["noted"] == {"names without PE= (kept)": 1}
    text = capsys.readouterr().out
    assert re.search(r'dropped: fragments +0, no name matched "\(Fragment\)"', text)
    assert re.search(r"noted: names without PE= \(kept\) +1\n", text)


def test_a_table_of_uniprot_says_what_its_headers_say(tmp_path):
    path = CASES / "uniprot_frag.tsv"
    assert built(path, tmp_path / "a", "--fragments", "drop")[0] == Counter([B, C])
    assert built(path, tmp_path / "b", "--max-existence", "2")[0] == Counter([B])
    assert [name for name, _ in read(path, names="header")] == [
        "Q1 Foo protein (Fragment) PE=4",
        "Q2 Bar PE=1",
        "Q3 Baz PE=4",
    ]


def test_two_chains_are_joined_in_both_orders(tmp_path):
    columns = {
        "sequence_heavy": ["ACGT"],
        "sequence_alignment_aa_heavy": ["EVQL"],
        "sequence_alignment_aa_light": ["DIQM"],
    }
    path = write_table(tmp_path / "paired.csv", columns)
    path.write_text('"{""Run"": ""x, y"", ""Species"": ""human""}"\n' + path.read_text() + "ACGT,,DIQ\n")
    with pytest.raises(AmplifyError, match="or join two chains with --join heavy light"):
        read(path)
    sequences, counts = built(path, tmp_path / "out", "--join", "heavy", "light")
    assert sequences == Counter(["EVQL|DIQM", "DIQM|EVQL"])
    assert counts["rejected"] == {"one of two chains is empty": 1} and counts["records"] == 3
    with pytest.raises(AmplifyError, match='no column "alpha"'):
        read(path, Reading(join=("alpha", "light")))


def test_short_proteins_of_few_letters_pass_and_nothing_depends_on_one_record(tmp_path):
    (tmp_path / "a.fasta").write_text(">a\nGATTACA\n" * 2)
    assert built(tmp_path / "a.fasta", tmp_path / "out")[0] == Counter(["GATTACA"])
    many = "".join(f">d{i}\nACGTTGCATTAGCCAN\n" for i in range(990)) + "".join(f">p{i}\n{A}\n" for i in range(3))
    (tmp_path / "b.fasta").write_text(many)
    with pytest.raises(AmplifyError, match="the first 993 sequences"):
        built(tmp_path / "b.fasta", tmp_path / "b")
    assert not alphabet.are_nucleotides([b"AAAAAAAAAAAAAAAAAAAAACCCCCCCCCCCCC", b"GGGGGGGGGGGGGG"])
    assert alphabet.are_nucleotides([b"acguacguacgu", b"NNacg-uacgu"])


SEQUENCES = st.text(st.sampled_from("MKVLA*X-.|b"), max_size=12)
HEADERS = st.text(st.sampled_from("ab >|;#é\t"), max_size=8).map(str.strip)


@examples()
@given(st.data())
def test_fasta_however_it_is_written(tmp_path_factory, data):
    """Records written with comments, blanks, empty lines and any line end, in chunks and blocks of any size."""
    records = data.draw(st.lists(st.tuples(HEADERS, st.lists(SEQUENCES, max_size=4)), min_size=1, max_size=8))
    end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    noise = st.sampled_from(["", "", "", " ", "# c", "; >c"])
    lines = [data.draw(noise)]
    for header, parts in records:
        lines += [f">{data.draw(st.sampled_from(['', ' ']))}{header}", data.draw(noise)]
        lines += [
            line for part in parts for line in (f"{part}{data.draw(st.sampled_from(['', ' ']))}", data.draw(noise))
        ]
    text = end.join(lines) + end * data.draw(st.integers(0, 1))
    text = data.draw(st.sampled_from(["", "\ufeff"])) + text
    path = tmp_path_factory.getbasetemp() / "any.fasta"
    path.write_bytes(text.encode())
    chunk, block = rows.CHUNK_BYTES, fasta.BLOCK
    try:
        rows.CHUNK_BYTES, fasta.BLOCK = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 30))
        [source] = find_sources([str(path)])
        parts = [batch for part in source.chunks([]) for batch in part.read(lambda n: None)]
        whole = list(source.read())
    finally:
        rows.CHUNK_BYTES, fasta.BLOCK = chunk, block
    expected = [(header, "".join(parts)) for header, parts in records]
    for batches in (parts, whole):
        assert [p for b in batches for p in zip(b.names, map(bytes.decode, b.sequences))] == expected


@examples()
@given(st.binary(max_size=60) | st.text(st.sampled_from(">MK\n# ,a;"), max_size=40).map(str.encode), st.integers(1, 30))
def test_plain_fasta_is_what_dnaio_reads(text, size):
    """Any bytes: what dnaio reads, except what it does not support (`;`, a ">" within a line) and non-ASCII bytes."""
    block = fasta.BLOCK
    try:
        fasta.BLOCK = size
        pairs = [p for batch in read_fasta(io.BytesIO(text)) for p in zip(batch.names, batch.sequences)]
    except Malformed:
        pairs = None
    finally:
        fasta.BLOCK = block
    lines = [line.strip() for line in re.split(rb"\r\n|\r|\n", text)]
    if any(line[:1] == b";" or (b">" in line[1:] and line[:1] not in (b">", b"#")) for line in lines):
        return
    if not text.isascii() or re.search(rb"[\x1c-\x1f]", text):
        return
    try:
        with dnaio.open(io.BytesIO(text), fileformat="fasta") as reader:
            expected = [(record.name.strip(), record.sequence.encode()) for record in reader]
    except dnaio.FileFormatError:
        expected = None
    assert pairs == expected


@pytest.mark.parametrize(
    "line, expected",
    [
        ("MKV>b two", [("a", "MKV"), ("b", "")]),
        ("MK<mask>V>b", [("a", "MK<mask>V"), ("b", "")]),
        ("MK*>b 3'->5'", [("a", "MK*"), ("b", "")]),
        ("MK<mask>V", [("a", "MK<mask>V")]),
        ("MKV>", None),
        ("MK<MASK>V", None),
        ("MK7>b", None),
    ],
)
def test_a_record_that_begins_within_a_line(tmp_path, line, expected):
    path = tmp_path / "a.fasta"
    path.write_text(f">a\n{line}\n")
    if expected is None:
        for use in (read, lambda path: built(path, tmp_path / "out")):
            with pytest.raises(AmplifyError, match='a.fasta, line 2: .* has a ">" within a sequence'):
                use(path)
    else:
        pairs = [
            (name.split()[0], s) for b in find_sources([str(path)])[0].read() for name, s in zip(b.names, b.sequences)
        ]
        assert pairs == [(name, sequence.encode()) for name, sequence in expected]


def test_headers_in_latin_1_and_bytes_in_sequences(tmp_path):
    path = tmp_path / "a.fasta"
    path.write_bytes(">a Müller\nMKV\n>é\nMLL\n".encode("latin-1"))
    assert read(path, names="header") == [("a Müller", "MKV"), ("é", "MLL")]
    path.write_bytes(">a\nMKV\nM\u00e9V\n".encode("latin-1"))
    with pytest.raises(AmplifyError, match="a.fasta, line 3: .*not ASCII"):
        read(path)


def test_masks_are_tokens_where_a_model_reads(tmp_path):
    path = tmp_path / "a.fasta"
    path.write_text(">a\nMK<mask>V<unk>W\n")
    contents = check(Records(path), strict=True)
    [protein] = proteins(Records(path))
    assert contents.residues == len(protein.tokens) == 6 and protein.tokens[2] == MASK and not contents.unknown
    path.write_text(">a\n<bos>MKV<eos>\n")
    with pytest.raises(AmplifyError, match="'<bos>', '<eos>', which is added to every sequence"):
        check(Records(path))


def archive(path, members):
    """Write a zip or tar archive of {name: bytes}; return its path."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in members.items():
                file.writestr(name, data)
        return path
    with tarfile.open(path, f"w:{'gz' if path.suffix in ('.gz', '.tgz') else ''}") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz", "a.tar.gz"])
def test_archives_of_one_and_of_many(tmp_path, name, monkeypatch, capsys):
    inner = tmp_path / "inner"
    inner.mkdir()
    for count, members in enumerate(
        (
            {"../../evil.fasta": f">x\n{A}\n".encode()},
            {
                "d/one.fasta": f">x\n{A}\n".encode(),
                "two.csv.gz": gzip.compress(f"name,sequence\ny,{B}\n".encode()),
                "README.md": b"read me",
                "d/three.jsonl": json.dumps({"id": "z", "sequence": C}).encode(),
            },
        ),
        1,
    ):
        path = archive(inner / name, members)
        expected = [("x", A), ("y", B), ("z", C)][: 1 if count == 1 else 3]
        assert read(path) == expected
        monkeypatch.setattr(rows, "CHUNK_BYTES", 1)  # every member of a zip is a chunk
        sequences, counts = built(path, tmp_path / f"out{count}")
        assert sequences == Counter(sequence for _, sequence in expected)
        assert count == 1 or "README.md" in capsys.readouterr().err + json.dumps(counts["noted"])
        path.unlink()
    assert not list(tmp_path.rglob("evil*")) and not list(inner.iterdir())


def test_archives_that_are_not_read(tmp_path, monkeypatch):
    for members, message in (
        ({"[Content_Types].xml": b"x", "b.fasta": b""}, "it is an Excel"),
        ({"README": b"x", "LICENSE": b"y"}, "holds no data file, only 'README', 'LICENSE'"),
        ({"a.parquet": b"PAR1xxxx"}, "parquet within an archive"),
        ({"a.fasta": b"@r\nACGT\n+\nIIII\n"}, "a.fasta, line 1: it is FASTQ"),
    ):
        with pytest.raises(AmplifyError, match=f"a.zip.*{re.escape(message)}"):
            read(archive(tmp_path / "a.zip", members))
    monkeypatch.setattr(archives, "_FREE", 10**4)
    with pytest.raises(AmplifyError, match="a.fasta would expand from .* to 10,000,000 bytes"):
        read(archive(tmp_path / "a.zip", {"a.fasta": b"A" * 10**7}))
    damaged = bytearray(archive(tmp_path / "b.zip", {"a.fasta": f">a\n{A}\n".encode() * 50}).read_bytes())
    damaged[60:80] = bytes(20)
    (tmp_path / "b.zip").write_bytes(damaged)
    with pytest.raises(AmplifyError, match="b.zip.* cannot be read to its end"):
        read(tmp_path / "b.zip")


@pytest.mark.parametrize(
    "data, message",
    [
        (b"@r1\nACGT\n+\nIIII\n", "FASTQ"),
        (b"LOCUS       SCU49845\n", "GenBank"),
        (b"ID   001R_FRG3G\n", "UniProt"),
        (b"# STOCKHOLM 1.0\n", "Stockholm"),
        (b"CLUSTAL W\n", "Clustal"),
        (b"HEADER    HYDROLASE\n", "PDB"),
        (b"data_1ABC\n#\n", "mmCIF"),
        (b"<!DOCTYPE html>\n", "web page"),
        (b"%PDF-1.4", "PDF"),
        (b"[{}]", "JSON array"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"\x80\x04\x95", "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (b"7z\xbc\xaf\x27\x1c", "archive"),
        (b"BAM\x01", "BAM"),
        (b"SQLite format 3\0", "SQLite"),
    ],
)
@pytest.mark.parametrize("name", ["a.fasta", "a", "a.gz", "a.csv"])
def test_formats_that_are_not_read_are_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(gzip.compress(data) if name == "a.gz" else data)
    with pytest.raises(AmplifyError, match=f"{name}, line 1: it is .*{message}"):
        read(tmp_path / name)


def test_what_is_left_out_of_a_folder_is_named(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, text in {
        "a.faa": f">a\n{A}\n",
        "b.pep": f">b\n{B}\n",
        "c.fsa": f">c\n{C}\n",
        "d.fna": ">d\nACGT\n",
        "e.txt": ">e\nMKV\n",
        ".hidden.fasta": ">f\nMK\n",
        "README.md": "x",
    }.items():
        (folder / name).write_text(text)
    assert built(folder, tmp_path / "out")[0] == Counter([A, B, C])
    notes = capsys.readouterr().err
    assert f"note: left out of {folder}: 'README.md', 'd.fna', 'e.txt'; to read such a file, give its name" in notes
    assert read(folder) == [("a", A), ("b", B), ("c", C)]
    assert read(folder / "e.txt") == [("e", "MKV")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
@pytest.mark.parametrize("text", [f">a\r\n{A}\r\n>b\r\n{B}\r\n", f"name\tsequence\r\na\t{A}\r\nb\t{B}\r\n"])
def test_text_with_a_byte_order_mark(tmp_path, encoding, text):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))
    assert read(path) == [("a", A), ("b", B)]
    assert built(path, tmp_path / "out")[0] == Counter([A, B])


@pytest.mark.parametrize("data", [f">a\n{A}\n".encode(), gzip.compress(f"name,sequence\na,{A}\n".encode())])
def test_standard_input_is_read_twice(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))
    assert read("-") == [("a", A)]


def test_two_columns_of_one_name(tmp_path):
    table = pa.Table.from_arrays([pa.array([A]), pa.array([B])], names=["sequence", "sequence"])
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(AmplifyError, match="a.parquet: two columns have the name 'sequence'"):
        read(tmp_path / "a.parquet")


def test_json_lines_are_named_where_they_are_wrong(tmp_path):
    path = tmp_path / "a.jsonl"
    for text, message in (
        ('{"sequence": "MKV"}\n{"sequence": \n', "line 2: not JSON"),
        ('{"sequence": "MKV"}\n{"seq": "MLL"}\n', 'line 2: no value for "sequence"'),
        ('{"sequence": "MKV"}\n3\n', "line 2: .*not a JSON object"),
    ):
        path.write_text(text)
        with pytest.raises(AmplifyError, match=f"a.jsonl, {message}"):
            read(path)


def test_a_name_that_is_too_long_and_one_that_is_long(tmp_path):
    path = tmp_path / "a.fasta"
    path.write_text(f">{'x' * 70_000}\nMKV\n")
    with pytest.raises(AmplifyError, match="a name of 70,000 bytes, the limit is 65,535"):
        read(path)
    path.write_text(f">{'x' * 60_000}\nMKV\n")
    assert check(Records(path)).longest_name == 60_000


@examples()
@given(
    st.lists(st.tuples(st.text(max_size=6), st.text('MKVé\n"\\', max_size=8)), min_size=1, max_size=8),
    st.integers(1, 60),
)
def test_json_lines_are_what_pandas_reads(tmp_path_factory, table, chunk):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    lines = [json.dumps({"name": name, "sequence": sequence}, ensure_ascii=False) + "\n" for name, sequence in table]
    path.write_text("".join(lines), encoding="utf-8", errors="surrogatepass")
    before = rows.CHUNK_BYTES
    try:
        rows.CHUNK_BYTES = chunk
        [source] = find_sources([str(path)])
        cutter = source.cutter()
        for byte in path.read_bytes():
            cutter.feed(bytes([byte]))
        pairs = [
            pair
            for part in source.chunks(cutter.cuts)
            for batch in part.read(lambda n: None)
            for pair in zip(batch.ids, batch.sequences)
        ]
    finally:
        rows.CHUNK_BYTES = before
    expected = pandas.read_json(path, lines=True, dtype=False, convert_axes=False)
    sequences = [sequence.encode().replace(b"\n", b"") for sequence in expected["sequence"]]
    assert pairs == list(zip(expected["name"], sequences))


@examples()
@given(
    st.lists(st.tuples(st.text("ab\u00e9", max_size=3), st.text("MKV", max_size=9)), max_size=9),
    st.integers(1, 4),
    st.sampled_from([".parquet", ".arrow", ".stream", ".feather"]),
)
def test_binary_tables_hold_what_was_written(tmp_path_factory, table, group, suffix):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    names, sequences = [list(column) for column in zip(*table)] or [[], []] if table else [[], []]
    columns = pa.table({"name": pa.array(names, pa.string()), "sequence": pa.array(sequences, pa.large_string())})
    if suffix == ".parquet":
        pa.parquet.write_table(columns, path, row_group_size=group)
    else:
        write_table_of(path, columns, group)
    [source] = find_sources([str(path)])
    for parts in (source.chunks([]), [source.whole]):
        batches = [batch for part in parts for batch in part.read(lambda n: None)]
        assert [p for b in batches for p in zip(b.ids, map(bytes.decode, b.sequences))] == table


def write_table_of(path, table, rows_each):
    if path.suffix == ".feather":
        pa.feather.write_feather(table, path, chunksize=rows_each, compression="uncompressed")
        return
    writer = pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream
    with writer(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=rows_each)


EXAMPLE_SHARDS = {  # sha256 of the files that version 0.1.0 built from data_prep/example, with its own readers
    "train": "0e840e763c491633daeedf8b1106a0c390bfe4f41147d11895e994aee9586f11",
    "validation": "602604ef239cb2de213d9a993233aa42eb707a51770dd069f1a9d036ad057db3",
}


@pytest.mark.parametrize("name", EXAMPLE_SHARDS)
def test_the_example_gives_the_bytes_it_always_gave(tmp_path, name):
    source = ROOT / f"data_prep/example/{name}.fasta.gz"
    arguments = [
        "--input",
        str(source),
        "--output",
        str(tmp_path / "out"),
        "--max-length",
        "96",
        "--row-tokens",
        "1024",
    ]
    build_shards.main(arguments)
    digest = hashlib.sha256((tmp_path / "out/shard-00000.tokens.npy").read_bytes()).hexdigest()
    assert digest == EXAMPLE_SHARDS[name]


def test_options_without_effect_are_reported(tmp_path, capsys):
    for name, data in (("a.fasta", f">a\n{A}\n".encode()), ("b.fasta.gz", gzip.compress(f">a\n{A}\n".encode()))):
        (tmp_path / name).write_bytes(data)
        built(tmp_path / name, tmp_path / name[0], "--sequence-column", "protein")
        assert f"{name} is FASTA, so options for tables have no effect: --sequence-column" in capsys.readouterr().err


def test_a_column_that_was_chosen_is_reported(tmp_path):
    for name, column in (
        ("airr_rearrangement.tsv", "sequence_alignment_aa"),
        ("oas_unpaired.csv.gz", "sequence_alignment_aa"),
    ):
        counts = built(CASES / name, tmp_path / name)[1]
        assert counts["noted"] == {f"sequences of the column {column}": counts["records"]}


def test_columns_that_are_empty_are_not_chosen_and_names_that_look_like_formats_are_columns(tmp_path):
    columns = {
        "data_id": ["a", "b"],
        "sequence_aa": ["", ""],
        "sequence_alignment_aa": [A, B],
        "sequence": ["ACGT"] * 2,
    }
    path = write_table(tmp_path / "a.csv", columns)
    assert [sequence for _, sequence in read(path)] == [A, B]
    for first in ("data_id", "ORCID", "CLUSTAL", "CRAM", "HEADER", "ID", "LOCUS"):
        assert [s for _, s in read(write_table(path, {first: ["x", "y"], "sequence": [A, B]}))] == [A, B]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl", ".arrow"])
def test_columns_are_named_however_often_the_table_was_looked_at(tmp_path, suffix):
    dna = ["ACGTACGTACGTACGTACGT", "GGGTTTAAACCCGGGTTTAAACCC"]
    path = write_table(tmp_path / f"a{suffix}", {"sequence_aa": ["", ""], "sequence": dna, "translation": [A, B]})
    with pytest.raises(AmplifyError, match="nucleotides, .*proteins seem to be in 'translation'"):
        read(path)


@pytest.mark.parametrize(
    "header, name",
    [
        ("sp|P69905|HBA_HUMAN Hemoglobin subunit alpha OS=Homo sapiens OX=9606 GN=HBA1 PE=1", "sp|P69905|HBA_HUMAN"),
        ("UniRef50_Q9K794 Putative AgrB-like protein n=2 Tax=Bacillus TaxID=1386", "UniRef50_Q9K794"),
        ("WP_003131952.1 30S ribosomal protein S18\x01NP_268346.1 30S ribosomal", "WP_003131952.1"),
        ("gi|66816243|ref|XP_642131.1| hypothetical protein, partial [AX4]", "gi|66816243|ref|XP_642131.1|"),
        ("MGYP000261684433 PL=11 UP=0 BIOMES=0000000011000 LEN=110 CR=1", "MGYP000261684433"),
        ("AFDB:AF-A0A009IHW8-F1 2' cyclic synthase AbTIR UA=A0A009IHW8 OX=1310613", "AFDB:AF-A0A009IHW8-F1"),
        ("101m_A mol:protein length:154  MYOGLOBIN", "101m_A"),
        ("101M_1|Chain A|MYOGLOBIN|Physeter catodon (9755)", "101M_1|Chain"),
    ],
)
def test_headers_of_the_databases(tmp_path, header, name):
    path = tmp_path / "proteins.fasta"
    path.write_text(f">{header}\n{A}\n>other\n{B}\n")
    assert read(path) == [(name, A), ("other", B)]
    assert read(path, names="header")[0] == (header, A)
    assert built(path, tmp_path / "shards")[0] == Counter([A, B])
