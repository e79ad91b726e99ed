"""The commands of data_prep: FASTA to shards and back, any order of the input, bad input, interruptions."""

import bz2
import gzip
import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplify_ds import build_shards, inspect_shards
from amplify_ds.data.shard_writer import building
from amplify_ds.data.shards import Shards
from amplify_ds.data.verify import verify
from amplify_ds.errors import AmplifyError
from amplify_ds.prepare import pipeline, rows
from amplify_ds.prepare.clean import Cleaner, Rules
from amplify_ds.prepare.fasta import Batch
from amplify_ds.vocab import decode
from tests.support.building import STANDARD, build, content, proteins, run_file, script, windows, write_fasta


def cut(sequence: str, max_length: int) -> list[str]:
    tokens = ["<bos>", *sequence, "<eos>"]
    count = (len(tokens) + max_length - 1) // max_length
    edges = [len(tokens) * part // count for part in range(count + 1)]
    return ["".join(tokens[a:b]) for a, b in zip(edges, edges[1:])]


@pytest.mark.parametrize("max_length, row_tokens", [(64, 256), (302, 1024), (3, 3)])
def test_every_sequence_comes_back(tmp_path, max_length, row_tokens):
    kept = [*dict.fromkeys(proteins(200)), "MKV|AC"]
    dirty = {"mkvllaa": "MKVLLAA", "MK VW\tW": "MKVWW", "MKCC**": "MKCC", "mk cc c*": "MKCCC"}
    dropped = ["MKX", "BBB", "MKU*", "MK-V", "MK*V", "1", "", "*"]
    sequences = [*kept, *kept[:30], *dirty, *dropped]
    random.Random(1).shuffle(sequences)
    build(
        write_fasta(tmp_path / "in.fasta", sequences),
        tmp_path / "out",
        "--max-length",
        max_length,
        "--row-tokens",
        row_tokens,
    )

    expected = [*kept, *dirty.values()]
    assert windows(tmp_path / "out") == Counter(part for sequence in expected for part in cut(sequence, max_length))
    assert verify(tmp_path / "out") == 3

    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    residues = "".join(expected).replace("|", "")
    counts = manifest["counts"]
    assert counts["records"] == len(sequences) and counts["sequences"] == len(expected)
    assert counts["residues"] == len(residues)
    assert counts["tokens"] == len(residues) + 1 + 2 * len(expected) == sum(manifest["token_counts"])
    gaps = {"gaps of an alignment (--alignment strip)": 1}
    assert counts["rejected"] == {"B J O U X Z": 3, "duplicates": 30, "empty": 2, **gaps, "other characters": 2}
    assert counts["mended"] == {"* at the end removed": 2, "blanks removed": 2, "lower case raised": 2}
    assert manifest["packing_efficiency"] == counts["tokens"] / (counts["rows"] * row_tokens)
    assert dict(manifest["length_histogram"]) == Counter(map(len, expected))
    by_residue = dict(zip("LAGVSERTIDPKQNFYMHWC", manifest["token_counts"][6:26]))
    assert by_residue == {residue: residues.count(residue) for residue in STANDARD}


def test_the_order_and_the_format_of_the_input_do_not_matter(tmp_path):
    sequences = proteins(300)
    build(write_fasta(tmp_path / "a.fasta", sequences), tmp_path / "a", "--max-length", 64, "--row-tokens", 256)
    first = content(tmp_path / "a")
    random.Random(5).shuffle(sequences)
    one = write_fasta(tmp_path / "b1.fasta", sequences[:100], width=7)
    two = write_fasta(tmp_path / "b2", sequences[100:] + sequences[:5], compress=True)
    two.write_bytes(two.read_bytes() + gzip.compress(b"\n# a comment\n\n"))  # a second gzip member
    for order in ([one, two], [two, one]):
        output = tmp_path / f"from {order[0].name}"
        build_shards.main(
            ["--input", *map(str, order), "--output", str(output), "--max-length", "64", "--row-tokens", "256"]
        )
        assert content(output) == first
    assert (tmp_path / "from b1.fasta/manifest.json").read_bytes() == (tmp_path / "from b2/manifest.json").read_bytes()


def test_many_shards(tmp_path, monkeypatch):
    """Several shards hold the windows of all sequences, each once, whatever the order, chunks and runs of the input."""
    sequences = proteins(400)
    monkeypatch.setattr(pipeline, "MEGABYTE", 10_000)
    options = ["--max-length", 64, "--row-tokens", 256, "--seed", 3, "--shard-megabytes", 1]
    build(write_fasta(tmp_path / "a.fasta", sequences + sequences[:50]), tmp_path / "a", *options)
    monkeypatch.setattr(rows, "CHUNK_BYTES", 3001)
    build(write_fasta(tmp_path / "b.fasta", sequences[:50] + sequences[::-1]), tmp_path / "b", *options)
    manifest = Shards(tmp_path / "a").manifest
    assert len(manifest["shards"]) in (6, 7)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert windows(tmp_path / "a") == Counter(part for s in dict.fromkeys(sequences) for part in cut(s, 64))
    assert verify(tmp_path / "a") == 3 * len(manifest["shards"])
    assert manifest["counts"] == Shards(tmp_path / "b").manifest["counts"]
    assert manifest["counts"]["rejected"] == {"duplicates": 50}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.fasta", "b", "b.fasta"]


def test_the_seed_changes_the_order_only(tmp_path):
    path = write_fasta(tmp_path / "in.fasta", proteins(100))
    for seed in (0, 1):
        build(path, tmp_path / str(seed), "--seed", seed, "--row-tokens", 1024)
    assert content(tmp_path / "0") != content(tmp_path / "1")
    assert windows(tmp_path / "0") == windows(tmp_path / "1")


def test_windows_of_a_long_protein_are_spread_over_the_rows(tmp_path):
    path = write_fasta(tmp_path / "in.fasta", ["W" * 2000, *proteins(300)])
    build(path, tmp_path / "out", "--max-length", 64, "--row-tokens", 1024)
    shards = Shards(tmp_path / "out")
    holding = sum("W" * 60 in decode(shards.row(row)[0]) for row in range(shards.num_rows))
    assert holding > 10  # of about 45 rows; its 32 windows would fill two


def test_excluded_sequences_are_not_in_the_shards(tmp_path):
    sequences = proteins(100)
    held_out = [sequences[3], sequences[7].lower(), sequences[9] + "*", "MKVMKVMKV"]
    exclude = write_fasta(tmp_path / "held_out.fasta", held_out)
    build(
        write_fasta(tmp_path / "in.fasta", [*sequences, sequences[3]]),
        tmp_path / "out",
        "--exclude",
        exclude,
        "--max-length",
        400,
    )
    expected = set(sequences) - {sequences[3], sequences[7], sequences[9]}
    assert windows(tmp_path / "out") == Counter(f"<bos>{sequence}<eos>" for sequence in expected)
    assert Shards(tmp_path / "out").manifest["counts"]["rejected"]["excluded"] == 4


@given(st.text(st.sampled_from("ACDWYacwy|BXjz*- \t.1")))
def test_cleaning_agrees_with_its_rules_one_character_at_a_time(text):
    cleaner = Cleaner(Rules())
    kept = cleaner.clean(Batch([""], text.encode()))
    ids, normalised, rejected = kept[0] if kept else None, cleaner.normalised, cleaner.rejected
    joined = [character for character in text if not character.isspace()]
    upper = [character.upper() for character in joined]
    while upper and upper[-1] == "*":
        upper.pop()
    if not upper:
        reason = "empty"
    elif any(character not in STANDARD + "|BJOUXZ" for character in upper):
        unknown = {character for character in upper if character not in STANDARD + "|BJOUXZ"}
        reason = "gaps of an alignment (--alignment strip)" if unknown <= {"-", "."} else "other characters"
    elif any(character in "BJOUXZ" for character in upper):
        reason = "B J O U X Z"
    else:
        reason = None
    assert +rejected == ({reason: 1} if reason else {})
    assert (ids is None) == bool(reason)
    if not reason:
        assert decode(ids) == "".join(upper)
        assert normalised["blanks removed"] == (len(joined) < len(text))
        assert normalised["lower case raised"] == any("a" <= character <= "z" for character in text)
        assert normalised["* at the end removed"] == ("*" in text)


ORDINARY = b">a\nMKVLLA\n>b\nMKC\n"
PACKED = gzip.compress(b"".join(b">%d\n%s\n" % (i, s.encode()) for i, s in enumerate(proteins(500))))


@pytest.mark.parametrize(
    "name, data, messages",
    [
        ("empty.fasta", b"", ["empty.fasta is empty"]),
        ("blank.fasta", b"\n \n", ["blank.fasta holds no FASTA record"]),
        ("empty.gz", gzip.compress(b""), ["empty.gz holds no FASTA record"]),
        ("text.fasta", b"\nname,sequence\na,MKV\n", ["text.fasta, line 2", "not FASTA", "name,sequence"]),
        ("archive.bz2", bz2.compress(PACKED)[:-50], ["archive.bz2"]),
        ("reads.fastq", b"@a\nACGT\n+\nIIII\n", ["reads.fastq, line 1", "it is FASTQ"]),
        ("truncated.gz", PACKED[:-500], ["truncated.gz", "gzip -t"]),
        ("beheaded.gz", PACKED[:15], ["beheaded.gz", "gzip -t"]),
        ("damaged.gz", PACKED[:5000] + bytes(40) + PACKED[5040:], ["damaged.gz", "gzip -t"]),
        ("checksum.gz", PACKED[:-8] + bytes(4) + PACKED[-4:], ["checksum.gz", "gzip -t"]),
        ("latin.fasta", ORDINARY + b">c\nMKV\nM\xe9K\n>d\nMKV\n", ["latin.fasta, line 7", "not ASCII"]),
        ("utf8.gz", gzip.compress(ORDINARY + ">c\nMK\u00e9\n".encode()), ["utf8.gz, line 6", "not ASCII", "gzip -t"]),
        (
            "useless.fasta",
            b">a\nMKX\n>b\n>c\nM-K\n>d\nMKZ\n",
            ["no usable sequence among 4", "2 B J O U X Z", "1 empty", "1 gaps of an alignment (--alignment strip)"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_named_and_leaves_nothing(tmp_path, name, data, messages):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AmplifyError) as error:
        build(tmp_path / name, tmp_path / "out")
    for message in messages:
        assert message in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--max-length", 2], "--max-length is 2"),
        (["--max-length", 65536, "--row-tokens", 100_000], "--max-length is 65536"),
        (["--row-tokens", 10**18], f"--row-tokens is {10**18}, expected at most {2**24}"),
        (["--workers", 10**30], f"--workers is {10**30}, expected 1 to 1024"),
        (["--max-residues", 10**30], f"--max-residues {10**30}; expected 1 or more, below 2^63"),
        (["--max-residues", 0], "--max-residues 0; expected 1 or more"),
        (["--max-length", 300, "--row-tokens", 299], "--row-tokens is 299"),
        (["--seed", -1], "--seed is -1"),
        (["--exclude", "nowhere.fasta"], "there is no file nowhere.fasta"),
        (["--exclude", "{empty}"], "holds no data file"),
        (["--validation-fraction", 0.1], "--validation-output"),
        (["--workers", 0], "--workers is 0"),
        (["--min-residues", 9, "--max-residues", 8], "--max-residues 8"),
    ],
)
def test_bad_options_are_named(tmp_path, options, message):
    path = write_fasta(tmp_path / "in.fasta", proteins(3))
    (tmp_path / "empty").mkdir()
    with pytest.raises(AmplifyError) as error:
        build(path, tmp_path / "out", *(str(option).format(empty=tmp_path / "empty") for option in options))
    assert message in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "in.fasta"]


def test_missing_input_and_directory(tmp_path):
    for path, message in ((tmp_path / "nowhere", "there is no file"), (tmp_path, "holds no data file")):
        with pytest.raises(AmplifyError, match=message):
            build(path, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_command_ends_with_one_message_and_an_exit_code(tmp_path):
    result = script("build_shards.py", "--input", tmp_path / "nowhere", "--output", tmp_path / "out")
    assert result.returncode == 1
    assert result.stderr.startswith("error: there is no file") and result.stderr.count("\n") == 1


def test_a_complete_directory_is_reused(tmp_path, capsys):
    path = write_fasta(tmp_path / "in.fasta.gz", proteins(20), compress=True)
    build(path, tmp_path / "out")
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    assert "reused" not in capsys.readouterr().out
    build(path, tmp_path / "out")
    assert "reused" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == written


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda text: text, ["--max-length", 100], "max_length: 512 there, 100 here"),
        (lambda text: text, ["--seed", 1], "seed: 0 there, 1 here"),
        (lambda text: text + b">c\nMKV\n", [], "inputs"),
        (lambda text: text.replace(b"MKV", b"MKW"), [], "inputs: files of the same names and sizes"),
        (lambda text: text, ["--exclude", "{input}"], "exclude"),
    ],
)
def test_shards_of_other_settings_or_sequences_are_left_alone(tmp_path, change, options, message):
    path = tmp_path / "in.fasta"
    path.write_bytes(ORDINARY)
    build(path, tmp_path / "out")
    before = content(tmp_path / "out")
    path.write_bytes(change(ORDINARY))
    with pytest.raises(AmplifyError) as error:
        build(path, tmp_path / "out", *(str(option).format(input=path) for option in options))
    assert message in str(error.value) and "nothing was changed" in str(error.value)
    assert content(tmp_path / "out") == before


def test_other_files_are_left_alone(tmp_path):
    path = write_fasta(tmp_path / "in.fasta", proteins(3))
    for output in (tmp_path, path):
        with pytest.raises(AmplifyError, match="other files"):
            build(path, output)
    assert [file.name for file in tmp_path.iterdir()] == ["in.fasta"]


def test_a_second_build_is_refused(tmp_path):
    path = write_fasta(tmp_path / "in.fasta", proteins(3))
    with building(tmp_path / "out") as workspace:
        result = script("build_shards.py", "--input", path, "--output", tmp_path / "out")
        (workspace.shards / "file").touch()
    assert result.returncode == 1 and "another build" in result.stderr
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["file"]


@pytest.mark.parametrize(
    "where",
    [
        "pipeline.write_run",
        "pipeline.read_slice",
        "pipeline.write_shard",
        "build_shards.publish_shard",
        "build_shards.write_manifest",
    ],
)
def test_killed_and_run_again_gives_the_same_bytes(tmp_path, where):
    path = write_fasta(tmp_path / "in.fasta", proteins(100))
    build(path, tmp_path / "undisturbed")
    kill = "import os, signal; from amplify_ds import build_shards; from amplify_ds.prepare import pipeline; "
    kill += f"{where} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    result = script("build_shards.py", "--input", path, "--output", tmp_path / "out", code=kill)
    assert result.returncode == -9
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.partial").is_dir()

    build(path, tmp_path / "out")
    assert not (tmp_path / ".out.partial").exists()
    for file in (tmp_path / "undisturbed").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("limit, file", [(2000, ".all-0.tokens"), (60_000, ".tokens.npy")])
def test_a_full_disk_is_named_and_what_is_complete_is_reused(tmp_path, limit, file):
    """With a limit on the size of files, writing fails half-way, as on a full disk."""
    path = write_fasta(tmp_path / "in.fasta", proteins(300))
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    arguments = ("--input", path, "--output", tmp_path / "out", "--row-tokens", 65_000)
    result = script("build_shards.py", *arguments, code=limited)
    assert result.returncode == 1
    assert result.stderr.startswith("error: cannot write") and file in result.stderr
    scattered = {file: file.stat().st_mtime_ns for file in (tmp_path / ".out.partial").glob("work-*/scatter-*")}
    assert bool(scattered) == (limit > 2000) and not (tmp_path / "out").exists()
    assert not list((tmp_path / ".out.partial").glob("work-*/pack*"))

    no_scatter = "from amplify_ds.prepare import pipeline; pipeline.write_run = None" if scattered else ""
    assert script("build_shards.py", *arguments, code=no_scatter).returncode == 0
    assert verify(tmp_path / "out") == 3 and not (tmp_path / ".out.partial").exists()


def test_verify_names_the_file_of_an_altered_byte(tmp_path):
    build(write_fasta(tmp_path / "in.fasta", proteins(30)), tmp_path / "out")
    result = script("inspect_shards.py", tmp_path / "out", "--verify")
    assert result.returncode == 0 and "all 3 files match" in result.stdout and not result.stderr

    altered = tmp_path / "out" / "shard-00000.lengths.npy"
    data = bytearray(altered.read_bytes())
    data[-2] ^= 4
    altered.write_bytes(data)
    result = script("inspect_shards.py", tmp_path / "out", "--verify")
    assert result.returncode == 1 and altered.name in result.stderr

    altered.write_bytes(data[:-1])
    result = script("inspect_shards.py", tmp_path / "out")
    assert result.returncode == 1 and altered.name in result.stderr


def test_show_prints_the_proteins_of_a_row(tmp_path, capsys):
    long, short = "ACDEFGHIKLMNPQRSTVWY" * 3, "MKVW|LL"
    build(write_fasta(tmp_path / "in.fasta", [long, short]), tmp_path / "out", "--max-length", 25)
    capsys.readouterr()
    inspect_shards.main([str(tmp_path / "out"), "--show", "0"])
    lines = capsys.readouterr().out.split("row 0:")[1].splitlines()
    shown = {tuple(line.split(None, 2)[:1]) + tuple(line.split(",")[1].rsplit(None, 1)) for line in lines[1:]}
    assert shown == {
        ("7", " whole protein", short),
        ("19", " first window", long[:19]),
        ("21", " middle window", long[19:40]),
        ("20", " last window", long[40:]),
    }
    with pytest.raises(AmplifyError, match="rows are 0 to 0"):
        inspect_shards.main([str(tmp_path / "out"), "--show", "1"])


def test_the_summary_has_lengths_and_frequencies(tmp_path, capsys):
    sequences = ["A" * 10 + "C" * 10, "A" * 30, "A" * 40, "C" * 110]
    build(write_fasta(tmp_path / "in.fasta", sequences), tmp_path / "out")
    capsys.readouterr()
    inspect_shards.main([str(tmp_path / "out")])
    text = capsys.readouterr().out
    assert "mean 50, shortest 20," in text and "median 30," in text and "longest 110" in text
    assert "C 60.00  A 40.00" in text
    assert Shards(tmp_path / "out").fingerprint in text


def test_fasta_is_the_way_back(tmp_path, capsys):
    build(write_fasta(tmp_path / "in.fasta", [*proteins(50), "MKV|LL"]), tmp_path / "a")
    inspect_shards.main([str(tmp_path / "a"), "--fasta", str(tmp_path / "back.fasta")])
    assert "51 windows written" in capsys.readouterr().out
    build(tmp_path / "back.fasta", tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_plot_is_a_picture(tmp_path):
    build(write_fasta(tmp_path / "in.fasta", [*proteins(50), "MKX"]), tmp_path / "out")
    inspect_shards.main([str(tmp_path / "out"), "--plot", str(tmp_path / "out.png")])
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(AmplifyError, match="cannot write"):
        inspect_shards.main([str(tmp_path / "out"), "--plot", str(tmp_path / "nowhere" / "out.png")])


def test_workers_verify_too(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "MEGABYTE", 3000)
    build(write_fasta(tmp_path / "in.fasta", proteins(100)), tmp_path / "out", "--shard-megabytes", 1)
    arguments = ("inspect_shards.py", tmp_path / "out", "--verify", "--workers", 2)
    assert "match their checksums" in run_file(*arguments).stdout
    altered = tmp_path / "out" / "shard-00002.tokens.npy"
    data = bytearray(altered.read_bytes())
    data[-2] ^= 4
    altered.write_bytes(data)
    result = run_file(*arguments)
    assert result.returncode == 1 and altered.name in result.stderr and "Traceback" not in result.stderr
