"""Splits, rules and windows; workers, machines and interruptions do not change a byte."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from amplify_ds.data.packing import crop
from amplify_ds.data.shards import Shards
from amplify_ds.data.verify import verify
from amplify_ds.network import free_port
from tests.support.building import (
    build,
    build_with_workers,
    content,
    many_chunks,
    proteins,
    script,
    windows,
    write_fasta,
)
from tests.support.commands import start
from tests.support.paths import DATA_PREP

SMALL = ["--max-length", "64", "--row-tokens", "256"]


def test_validation_fraction(tmp_path):
    sequences = proteins(600)
    path = write_fasta(tmp_path / "in.fasta", [*sequences, *sequences[:50]])

    def split(name: str, *options) -> tuple[Counter, Counter]:
        held_out = tmp_path / name / "valid"
        build(path, tmp_path / name / "train", "--validation-output", held_out, "--max-length", 400, *options)
        return windows(tmp_path / name / "train"), windows(held_out)

    train, held_out = split("a", "--validation-fraction", 0.2)
    assert not train.keys() & held_out.keys()
    assert train + held_out == Counter(f"<bos>{sequence}<eos>" for sequence in sequences)
    assert 0.13 < held_out.total() / 600 < 0.27
    for part in ("train", "valid"):
        counts = Shards(tmp_path / "a" / part).manifest["counts"]
        assert counts["records"] == 650 == counts["sequences"] + sum(counts["rejected"].values())
    assert split("b", "--validation-fraction", 0.2, "--seed", 5) == (train, held_out)
    assert split("c", "--validation-fraction", 0.1)[1].keys() < held_out.keys()
    path.write_text("".join(f">{i}\n{s}\n" for i, s in enumerate(sequences[:200])))  # without the other sequences
    assert split("d", "--validation-fraction", 0.2)[1].keys() < held_out.keys()


def test_a_split_of_which_one_part_is_complete(tmp_path, capsys):
    path = write_fasta(tmp_path / "in.fasta", proteins(100))
    options = ["--validation-fraction", 0.3, "--validation-output", tmp_path / "valid"]
    build(path, tmp_path / "train", *options)
    before = content(tmp_path / "train")
    for file in (tmp_path / "train").iterdir():
        file.unlink()
    capsys.readouterr()
    build(path, tmp_path / "train", *options)
    assert content(tmp_path / "train") == before and "valid is complete" in capsys.readouterr().out


NAMED = [
    (">sp|A|A_HUMAN Tubulin OS=Homo sapiens OX=9606 GN=TUB PE=1 SV=2", "MKVAAAAAAA"),
    (">tr|B|B_HUMAN Tubulin (Fragment) OS=Homo sapiens PE=1 SV=1", "MKVCCCCCCC"),
    (">tr|C|C_HUMAN Tubulin OS=Homo sapiens PE=4 SV=1", "MKVDDDDDDD"),
    (">UniRef90_D Tubulin (Fragments) n=1 Tax=Homo", "MKVEEEEEEE"),
    (">E", "MKVFFF"),
    (">F", "MKVBXFF"),
    (">G", "mkv wwwwwwwww*"),
    (">E again", "MKVFFF"),
]


@pytest.mark.parametrize(
    "options, dropped, reasons",
    [
        ([], "F", {"B J O U X Z": 1, "duplicates": 1}),
        (["--duplicates", "keep"], "F", {"B J O U X Z": 1}),
        (["--ambiguous", "keep"], "", {"duplicates": 1}),
        (["--fragments", "drop"], "BDF", {"B J O U X Z": 1, "duplicates": 1, "fragments": 2}),
        (["--max-existence", "3"], "CF", {"B J O U X Z": 1, "duplicates": 1, "protein existence": 1}),
        (["--min-residues", "7"], "EF", {"B J O U X Z": 1, "too short": 2}),
        (["--max-residues", "10"], "FG", {"B J O U X Z": 1, "duplicates": 1, "too long": 1}),
        (["--no-normalise"], "FG", {"B J O U X Z": 1, "duplicates": 1, "other characters": 1}),
        (["--no-mending"], "FG", {"B J O U X Z": 1, "duplicates": 1, "other characters": 1}),  # its earlier name
    ],
)
def test_every_rule_can_be_switched_and_is_counted(tmp_path, options, dropped, reasons):
    path = tmp_path / "in.fasta"
    path.write_text("".join(f"{name}\n{text}\n" for name, text in NAMED))
    build(path, tmp_path / "out", *options)
    kept = {name[-1] if "|" not in name else name[4]: text for name, text in NAMED[:7]}
    kept = {name.replace("o", "D") if "UniRef" in name else name: text for name, text in zip("ABCDEFG", kept.values())}
    expected = [text.upper().replace(" ", "").rstrip("*") for name, text in kept.items() if name not in dropped]
    expected += ["MKVFFF"] if "--duplicates" in options else []
    counts = Counter(text.replace("<unk>", "X") for text in windows(tmp_path / "out").elements())
    assert counts == Counter(f"<bos>{text}<eos>" for text in expected)
    assert Shards(tmp_path / "out").manifest["counts"]["rejected"] == reasons


def test_excluded_sequences_are_excluded_whatever_their_names(tmp_path):
    path = write_fasta(tmp_path / "in.fasta", ["MKVA", "MKVC"])
    (tmp_path / "held_out.fasta").write_text(">a (Fragment) PE=5\nMKVA\n")
    build(path, tmp_path / "out", "--exclude", tmp_path / "held_out.fasta", "--fragments", "drop", "--max-existence", 1)
    assert windows(tmp_path / "out") == {"<bos>MKVC<eos>": 1}


def test_one_random_window_per_sequence(tmp_path):
    sequences = proteins(300, longest=200)
    path = write_fasta(tmp_path / "in.fasta", sequences)
    built = {}
    for seed in (0, 1):
        build(path, tmp_path / str(seed), "--windows", "random", "--seed", seed, *SMALL)
        built[seed] = windows(tmp_path / str(seed))
        assert built[seed].total() == 300
        for window in built[seed]:
            text = re.sub("<bos>|<eos>", "|", window)
            assert len(text) <= 64 and any(text in f"|{sequence}|" for sequence in sequences)
    assert built[0] != built[1]
    write_fasta(path, sequences[::-1])
    build(path, tmp_path / "again", "--windows", "random", *SMALL)
    assert windows(tmp_path / "again") == built[0]


def test_every_window_is_as_likely_as_the_next():
    draws = np.random.default_rng(0).integers(0, 2**64, 40_000, dtype=np.uint64)
    sequence, start, stop = crop(np.full(40_000, 13), 10, draws)
    assert np.array_equal(sequence, np.arange(40_000)) and (stop - start == 10).all()
    assert np.allclose(np.bincount(start), 10_000, atol=400)  # 0 to 3, the last window as well
    assert crop(np.array([5]), 10, draws[:1])[2] == 5
    extreme = crop(np.array([13]), 10, np.array([2**64 - 1], dtype=np.uint64))
    assert (extreme[1], extreme[2]) == (3, 13)


def test_workers_do_not_change_a_byte(tmp_path, monkeypatch):
    code = many_chunks(monkeypatch)
    path = write_fasta(tmp_path / "in.fasta", proteins(400))
    build(path, tmp_path / "one", *SMALL)
    assert len(Shards(tmp_path / "one").manifest["shards"]) > 4
    result = build_with_workers(tmp_path, code, "--input", path, "--output", tmp_path / "two", "--workers", 2, *SMALL)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "two/manifest.json").read_bytes() == (tmp_path / "one/manifest.json").read_bytes()
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_a_bad_line_is_named_by_workers_too(tmp_path, monkeypatch):
    code = many_chunks(monkeypatch)
    path = write_fasta(tmp_path / "in.fasta", proteins(400))
    path.write_bytes(path.read_bytes() + b">x\nM\xe9\n")
    line = path.read_bytes().count(b"\n")
    arguments = ["--input", path, "--output", tmp_path / "out", "--workers", 2]
    result = build_with_workers(tmp_path, code, *arguments)
    assert result.returncode == 1 and f"line {line:,}: b'M\\xe9' holds bytes" in result.stderr
    assert "Traceback" not in result.stderr


def test_workers_read_quoted_cells_of_several_lines(tmp_path, monkeypatch):
    """A table with line ends, quotes and delimiters in cells, cut into many chunks, gives the same shards as FASTA."""
    code = many_chunks(monkeypatch)
    sequences = proteins(400)
    build(write_fasta(tmp_path / "in.fasta", sequences), tmp_path / "one", *SMALL)
    table = tmp_path / "in.csv"
    with open(table, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["about", "sequence", "more"])
        for number, text in enumerate(sequences):
            about = ['a "quote", and', "a\nline", "plain", '"'][number % 4]
            cut = number % 50
            writer.writerow([about, "\n".join([text[:cut], text[cut:]]), 'x\n"y",z\n' * (number % 3)])
    arguments = ["--input", table, "--output", tmp_path / "two", "--workers", 2, *SMALL]
    result = build_with_workers(tmp_path, f"{code}; pipeline.INSPECTED = 700", *arguments)
    assert result.returncode == 0, result.stderr
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert Shards(tmp_path / "two").manifest["counts"]["records"] == 400
    table.write_bytes(table.read_bytes() + b"x,MKV\n")
    arguments[3] = tmp_path / "three"
    result = build_with_workers(tmp_path, f"{code}; pipeline.INSPECTED = 700", *arguments)
    line = table.read_bytes().count(b"\n")
    assert result.returncode == 1 and f"in.csv, line {line:,}: 2 columns, expected 3" in result.stderr, result.stderr


def test_a_killed_worker_is_reported_and_the_next_run_carries_on(tmp_path, monkeypatch):
    code = many_chunks(monkeypatch)
    path = write_fasta(tmp_path / "in.fasta", proteins(400))
    build(path, tmp_path / "undisturbed", *SMALL)
    arguments = ["--input", path, "--output", tmp_path / "out", "--workers", 2, *SMALL]
    kill = "import os; pipeline.write_shard = lambda *_: os.kill(os.getpid(), 9)"
    result = build_with_workers(tmp_path, f"{code}\n{kill}", *arguments)
    assert result.returncode == 1 and "a worker was killed" in result.stderr and "Traceback" not in result.stderr
    assert build_with_workers(tmp_path, f"{code}\npipeline.write_run = None", *arguments).returncode == 0
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


def test_killed_at_any_moment_it_continues_to_the_same_bytes(tmp_path, monkeypatch):
    """Kill the build with all its workers after an increasing time, until one finishes."""
    code = many_chunks(monkeypatch)
    path = write_fasta(tmp_path / "in.fasta", proteins(400))
    build(path, tmp_path / "undisturbed", *SMALL)
    build_with_workers(tmp_path, code, "--help")
    arguments = [tmp_path / "main.py", "--input", path, "--output", tmp_path / "out", "--workers", 2, *SMALL]
    killed = 0
    for attempt in range(1, 40):
        process = start(*arguments)
        try:
            process.wait(0.2 * attempt)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    assert process.returncode == 0, process.stderr.read()
    assert killed >= 2 and content(tmp_path / "out") == content(tmp_path / "undisturbed")
    assert not (tmp_path / ".out.partial").exists()


def test_several_machines_share_the_work(tmp_path, monkeypatch):
    code = many_chunks(monkeypatch)
    path = write_fasta(tmp_path / "in.fasta", proteins(400))
    build(path, tmp_path / "one", *SMALL)
    build_with_workers(tmp_path, code, "--help")
    arguments = [tmp_path / "main.py", "--input", path, "--output", tmp_path / "out", *SMALL]
    machines, meeting = [], {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for rank in (2, 1, 0):
        environment = {**os.environ, **meeting, "RANK": str(rank), "WORLD_SIZE": "3"}
        machines.append(start(*arguments, env=environment))
        time.sleep(0.3)
    for machine in machines:
        assert machine.wait(60) == 0, machine.stderr.read()
    assert content(tmp_path / "out") == content(tmp_path / "one")
    assert verify(tmp_path / "out") > 12
    assert not (tmp_path / ".out.partial").exists()


def test_a_machine_that_is_not_needed_ends_well(tmp_path):
    """The second of two starts when the first is at work and has nothing to do, or when everything is complete."""
    path = write_fasta(tmp_path / "in.fasta", proteins(50))
    late = "wait = pipeline.run_tasks; pipeline.run_tasks = lambda *a: (time.sleep(1.5), wait(*a))[1]"
    build_with_workers(tmp_path, f"import time; from amplify_ds.prepare import pipeline; {late}", "--help")
    arguments = [tmp_path / "main.py", "--input", path, "--output", tmp_path / "out"]
    for _ in range(2):
        machines, meeting = [], {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        for rank, command in ((1, arguments), (0, [DATA_PREP / "build_shards.py", *arguments[1:]])):
            environment = {**os.environ, **meeting, "RANK": str(rank), "WORLD_SIZE": "2"}
            machines.append(start(*command, env=environment))
        for machine in machines:
            assert machine.wait(60) == 0, machine.stderr.read()
    assert verify(tmp_path / "out") == 3


def test_standard_input_is_never_taken_for_the_same(tmp_path):
    text = ">a\nMKVLL\n"
    command = [sys.executable, DATA_PREP / "build_shards.py", "--input", "-", "--output", tmp_path / "out"]
    first, second = (subprocess.run(command, input=text, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == 0 and windows(tmp_path / "out") == {"<bos>MKVLL<eos>": 1}
    assert second.returncode == 1 and "standard input" in second.stderr


def test_an_input_that_vanishes_is_named_and_the_next_run_carries_on(tmp_path):
    paths = [write_fasta(tmp_path / f"{name}.fasta", proteins(50, seed)) for seed, name in enumerate("ab")]
    arguments = ["--input", *paths, "--output", tmp_path / "out"]
    away = f"(write(*a), os.rename({str(paths[1])!r}, {str(tmp_path / 'c')!r}))"
    vanish = "import os; from amplify_ds.prepare import pipeline; write = pipeline.write_run; "
    vanish += f"pipeline.write_run = lambda *a: {away}"
    result = script("build_shards.py", *arguments, code=vanish)
    assert result.returncode == 1 and "b.fasta" in result.stderr and "Traceback" not in result.stderr
    (tmp_path / "c").rename(paths[1])
    assert script("build_shards.py", *arguments).returncode == 0
    assert windows(tmp_path / "out").keys() == {f"<bos>{s}<eos>" for seed in (0, 1) for s in proteins(50, seed)}
