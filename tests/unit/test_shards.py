"""The shard format: rows are read back as they were written, and damaged or foreign files are errors that name them."""

import hashlib
import json
import multiprocessing
import pickle
import re
import shutil

import numpy as np
import pytest

from amplify_ds import inspect_shards
from amplify_ds.benchmarks.start import make_sparse_shards
from amplify_ds.data import shards as module
from amplify_ds.data.shard_writer import building, write_manifest, write_shard
from amplify_ds.data.shards import Shards
from amplify_ds.data.verify import verify
from amplify_ds.errors import AmplifyError
from amplify_ds.vocab import VOCABULARY_SHA256, encode
from tests.support.commands import interpreter

ROW_TOKENS = 12
SHARDS = [  # three shards, their rows, the windows of each row
    [["<bos>MKV<eos>", "<bos>L<eos>", "ACD"], ["<bos>AAAAAAAA<eos>"]],
    [["WWWWWWWWWW"]],
    [["<bos>K|R<eos>", "HHH<eos>"], ["C"], ["<bos>"]],
]
ROWS = [[encode(window) for window in row] for shard in SHARDS for row in shard]


def write(directory) -> dict:
    """Write `SHARDS`; return the manifest."""
    entries, counts = [], np.zeros(27, dtype=np.int64)
    for number, shard in enumerate(SHARDS):
        rows = [[encode(window) for window in row] for row in shard]
        flat = np.concatenate([window for row in rows for window in row])
        counts += np.bincount(flat, minlength=27)
        padded = [np.concatenate(row).tobytes().ljust(ROW_TOKENS, b"\0") for row in rows]
        lengths = np.array([len(window) for row in rows for window in row])
        starts = np.cumsum([0] + [len(row) for row in rows])
        entries.append(write_shard(directory / f"shard-{number:05d}", ROW_TOKENS, padded, lengths, starts))
    manifest = {
        "format": "amplify_ds.shards",
        "format_version": 1,
        "vocabulary_sha256": VOCABULARY_SHA256,
        "max_length": 10,
        "row_tokens": ROW_TOKENS,
        "counts": {"rows": len(ROWS), "tokens": int(counts.sum())},
        "packing_efficiency": float(counts.sum() / len(ROWS) / ROW_TOKENS),
        "token_counts": counts.tolist(),
        "shards": entries,
    }
    write_manifest(directory, manifest)
    return manifest


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "shards"
    path.mkdir()
    write(path)
    return path


def rewrite_manifest(directory, **changes):
    """Change keys of the manifest, and enter the checksums of the files as they are now."""
    manifest = json.loads((directory / "manifest.json").read_text()) | changes
    for shard in manifest["shards"]:
        for name, entry in shard["files"].items():
            content = (directory / name).read_bytes()
            entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (directory / "manifest.json").unlink()
    write_manifest(directory, manifest)


def assert_rows(shards):
    assert shards.num_rows == len(ROWS)
    for index in np.random.RandomState(0).permutation(len(ROWS) * 3) % len(ROWS):
        tokens, lengths = shards.row(int(index))
        assert (tokens.dtype, lengths.dtype, len(tokens)) == (np.uint8, np.uint16, ROW_TOKENS)
        assert lengths.tolist() == [len(window) for window in ROWS[index]]
        content = np.concatenate(ROWS[index])
        assert np.array_equal(tokens[: len(content)], content) and not tokens[len(content) :].any()


def test_rows_are_read_back(directory):
    shards = Shards(directory)
    assert (shards.row_tokens, shards.max_length) == (ROW_TOKENS, 10)
    assert_rows(shards)
    for index in (-1, len(ROWS)):
        with pytest.raises(IndexError):
            shards.row(index)


def test_few_shards_stay_open(directory, monkeypatch):
    monkeypatch.setattr(module, "_MAX_OPEN", 1)
    shards = Shards(directory)
    assert_rows(shards)
    assert len(shards._open) == 1


def test_reading_many_shards_keeps_few_files_open_and_no_memory(directory, tmp_path):
    """Reads one row of each of 240 shards with sparse files of 64 MB; memory must not grow."""
    path = tmp_path / "many"
    path.mkdir()
    make_sparse_shards(path, 240, 8000, np.arange(240) * 8001)
    program = (
        "import os, sys, numpy as np; from amplify_ds.data.shards import Shards\n"
        "rss = lambda: int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE')\n"
        "shards = Shards(sys.argv[1]); before, files = rss(), len(os.listdir('/proc/self/fd'))\n"
        "for turn in range(2):\n"
        "    for number in range(240):\n"
        "        tokens, lengths = shards.row(number * 8001)\n"
        "        assert lengths.tolist() == [512] * 16 and tokens.all()\n"
        "print(len(os.listdir('/proc/self/fd')) - files, rss() - before)\n"
    )
    result = interpreter("-c", program, path)
    assert result.returncode == 0, result.stderr
    opened, grown = map(int, result.stdout.split())
    assert opened == 3 * module._MAX_OPEN and grown < 2e6, (opened, grown)


def test_a_file_truncated_after_opening_is_an_error(directory):
    shards = Shards(directory)
    for kind in ("tokens", "lengths", "row_starts"):
        path = directory / f"shard-00000.{kind}.npy"
        content = path.read_bytes()
        path.write_bytes(content[:-9])
        with pytest.raises(AmplifyError, match="row 1 of shard 0 of .* is invalid"):
            shards.row(1)
        path.write_bytes(content)
    assert_rows(shards)


def test_rows_are_copies(directory):
    shards = Shards(directory)
    for array in shards.row(0):
        array[:] = 9
    assert_rows(shards)


def test_files_open_with_numpy_in_one_line(directory):
    assert np.load(directory / "shard-00000.tokens.npy").shape == (2, ROW_TOKENS)
    assert np.load(directory / "shard-00002.lengths.npy").tolist() == [5, 4, 1, 1]
    assert np.load(directory / "shard-00002.row_starts.npy").tolist() == [0, 2, 3, 4]


def test_survives_pickling_and_forking(directory):
    shards = Shards(directory)
    fresh = len(pickle.dumps(shards))
    shards.row(0)
    assert len(pickle.dumps(shards)) == fresh  # without the open files
    assert_rows(pickle.loads(pickle.dumps(shards)))
    worker = multiprocessing.get_context("fork").Process(target=assert_rows, args=(shards,))
    worker.start()
    worker.join()
    assert worker.exitcode == 0


def test_window_starts_count_the_windows_of_the_rows_before(directory):
    shards = Shards(directory)
    for rows in range(shards.num_rows + 1):
        windows = [len(shards.row(row)[1]) for row in range(rows)]
        assert shards.window_starts(rows).tolist() == [sum(windows[:row]) for row in range(rows + 1)]


def test_fingerprint_depends_on_the_content(directory, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    assert Shards(copy).fingerprint == Shards(directory).fingerprint
    tokens = bytearray((copy / "shard-00001.tokens.npy").read_bytes())
    tokens[-5] = 7
    (copy / "shard-00001.tokens.npy").write_bytes(tokens)
    rewrite_manifest(copy)
    assert Shards(copy).fingerprint != Shards(directory).fingerprint


def refused(directory, *texts):
    with pytest.raises(AmplifyError) as refusal:
        Shards(directory)
    for text in texts:
        assert text in str(refusal.value)


def test_refuses_other_directories(tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "build_shards.py")
    refused(tmp_path, "manifest.json", "build_shards.py")
    (tmp_path / "manifest.json").write_text('{"format": ')
    refused(tmp_path, "manifest.json", "cannot be read as JSON")
    (tmp_path / "manifest.json").write_text("[]")
    refused(tmp_path, "manifest.json", "format")


@pytest.mark.parametrize(
    "change, texts",
    [
        ({"format": "other"}, ["format"]),
        ({"format_version": 2}, ["version 2", "version 1"]),
        ({"vocabulary_sha256": "0" * 64}, ["vocabulary", VOCABULARY_SHA256]),
    ],
)
def test_refuses_another_format_or_vocabulary(directory, change, texts):
    rewrite_manifest(directory, **change)
    refused(directory, *texts)


def test_refuses_a_manifest_that_was_edited(directory):
    manifest = json.loads((directory / "manifest.json").read_text())
    for changed in ({**manifest, "max_length": 3}, {k: v for k, v in manifest.items() if k != "row_tokens"}):
        (directory / "manifest.json").write_text(json.dumps(changed))
        refused(directory, "manifest.json was altered")


@pytest.mark.parametrize("key", ["max_length", "row_tokens", "counts", "packing_efficiency", "token_counts", "shards"])
def test_names_a_missing_key_of_a_manifest(directory, key):
    """With a valid checksum, as if another program had written the manifest."""
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest[key]
    write_manifest(directory, manifest)
    refused(directory, f"manifest.json is not a valid manifest: {key}: Field required", "build_shards.py")


@pytest.mark.parametrize(
    "key, value",
    [
        ("row_tokens", "12"),
        ("max_length", 0),
        ("counts.rows", None),
        ("token_counts", [0] * 26),
        ("token_counts.3", -1),
        ("shards", []),
        ("shards.1", ["shard-00001"]),
        ("shards.1.rows", 1.5),
        ("shards.2.segments", -3),
        ("shards.0.files", {}),
        ("shards.0.files.shard-00000.tokens.npy", 24),
        ("shards.0.files.shard-00000.lengths.npy.bytes", "24"),
        ("shards.0.files.shard-00000.lengths.npy.sha256", 1),
    ],
)
def test_names_an_invalid_value_of_a_manifest(directory, key, value):
    manifest = json.loads((directory / "manifest.json").read_text())
    inner, (*path, last) = manifest, re.findall(r"shard-[^.]*\.[^.]*\.npy|[^.]+", key)
    for part in path:
        inner = inner[int(part) if isinstance(inner, list) else part]
    inner[int(last) if isinstance(inner, list) else last] = value
    write_manifest(directory, manifest)
    refused(directory, f"manifest.json is not a valid manifest: {key}: ", "build_shards.py")


def test_a_manifest_without_a_histogram_is_not_inspected(directory, capsys):
    with pytest.raises(AmplifyError, match="manifest.json lacks 'length_histogram'"):
        inspect_shards.main([str(directory)])
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "array, change",
    [
        ("tokens", lambda x: np.full_like(x, 255)),
        ("tokens", lambda x: np.where(x == 7, 0, x)),
        ("lengths", lambda x: np.ones_like(x)),
        ("lengths", lambda x: np.full_like(x, 500)),
    ],
)
def test_an_invalid_row_is_refused_without_checksums(directory, array, change):
    path = directory / f"shard-00000.{array}.npy"
    np.save(path, change(np.load(path)))
    opened = Shards(directory)
    with pytest.raises(AmplifyError, match="is invalid: the files were altered"):
        for row in range(opened.num_rows):
            opened.row(row)


@pytest.mark.parametrize("name", ["shard-00000.tokens.npy", "shard-00002.row_starts.npy"])
def test_refuses_missing_and_truncated_files(directory, name):
    content = (directory / name).read_bytes()
    (directory / name).write_bytes(content[:-1])
    refused(directory, name, f"{len(content) - 1} bytes", str(len(content)))
    (directory / name).unlink()
    refused(directory, name, "missing")


@pytest.mark.parametrize("change", [b"\x93NUMPZ", b"\x93NUMPY\x01\x00\x76\x00{'descr': '|i1'"])
def test_refuses_a_file_with_another_header(directory, change):
    path = directory / "shard-00001.tokens.npy"
    path.write_bytes(change + path.read_bytes()[len(change) :])
    with pytest.raises(AmplifyError, match="shard"):
        Shards(directory).row(2)


def test_verify_accepts_what_was_written_and_reports_every_byte(directory):
    read = []
    assert verify(directory, read.append) == 9
    assert sum(read) == sum(path.stat().st_size for path in directory.glob("*.npy"))


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("array", ["tokens", "lengths", "row_starts"])
@pytest.mark.parametrize("offset", [10, -1])
def test_verify_names_the_file_with_an_altered_byte(directory, number, array, offset):
    path = directory / f"shard-{number:05d}.{array}.npy"
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(AmplifyError, match=path.name):
        verify(directory)


@pytest.mark.parametrize(
    "array, change, complaint",
    [
        ("tokens", lambda x: x[:, ::-1], "tokens.npy, row 0"),  # <pad> first
        ("tokens", lambda x: np.where(x == 0, 6, x), "tokens.npy, row 0"),  # no <pad> where windows end
        ("tokens", lambda x: np.where(x == 7, 27, x), "not in the vocabulary"),
        ("tokens", lambda x: np.where(x == 7, 8, x), "manifest.json"),  # tokens differ from the counts
        ("lengths", lambda x: x + 1, "1 to 10"),
        ("lengths", lambda x: np.where(x == 10, 9, x), "row 1"),
        ("row_starts", lambda x: x[::-1], "row_starts.npy"),
        ("row_starts", lambda x: x + 1, "row_starts.npy"),
        ("row_starts", lambda x: np.where(x == 3, 2, x), "row 0"),
    ],
)
def test_verify_checks_content_with_valid_checksums(directory, array, change, complaint):
    path = directory / f"shard-00000.{array}.npy"
    content = np.load(path)
    np.save(path, np.ascontiguousarray(change(content), dtype=content.dtype))
    rewrite_manifest(directory)
    with pytest.raises(AmplifyError, match=re.escape(complaint)):
        verify(directory)


def test_verify_checks_the_number_of_rows(directory):
    rewrite_manifest(directory, counts={"rows": 5, "tokens": 1})
    with pytest.raises(AmplifyError, match="manifest.json"):
        verify(directory)


def test_a_build_is_complete_or_absent(tmp_path):
    target = tmp_path / "deep" / "target"
    with building(target) as partial:
        (partial.shards / "file").write_text("1")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["file"]
    assert [path.name for path in target.parent.iterdir()] == ["target"]

    other = tmp_path / "other"
    with pytest.raises(KeyboardInterrupt), building(other) as partial:
        (partial.shards / "file").write_text("1")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_a_build_takes_an_empty_directory_but_never_a_full_one(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    with building(target) as partial:
        (partial.shards / "file").write_text("1")
    with pytest.raises(AmplifyError, match="target"), building(target):
        pytest.fail("the block was entered")
    assert (target / "file").read_text() == "1"


def test_a_directory_filled_during_the_build_is_left_alone(tmp_path):
    target = tmp_path / "target"
    with pytest.raises(AmplifyError, match="target"), building(target):
        target.mkdir()
        (target / "file").write_text("other")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (target / "file").read_text() == "other"


def test_the_next_build_reuses_completed_work(tmp_path):
    target = tmp_path / "target"
    with pytest.raises(KeyboardInterrupt), building(target) as partial:
        (partial.work / "run.tokens").write_text("1")
        raise KeyboardInterrupt
    assert not target.exists()
    with building(target) as partial:
        assert (partial.work / "run.tokens").read_text() == "1"
        (partial.shards / "file").write_text("2")
    assert [path.name for path in target.iterdir()] == ["file"]
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_second_build_is_refused_and_the_first_goes_on(tmp_path):
    target = tmp_path / "target"
    with building(target) as partial:
        (partial.shards / "file").write_text("first")
        with pytest.raises(AmplifyError, match="another build"), building(target):
            pytest.fail("the block was entered")
    assert (target / "file").read_text() == "first"
