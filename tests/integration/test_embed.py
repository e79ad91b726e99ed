"""Embeddings against an independent AMPLIFY that reads one sequence at a time, without packing."""

import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import amplify_ds
from amplify_ds.errors import AmplifyError
from amplify_ds.hub.export import export
from amplify_ds.inference import resumable
from amplify_ds.inference.embeddings import Settings
from amplify_ds.inference.pipelines import embed_file
from amplify_ds.inference.reading import check
from amplify_ds.inference.records import Records
from amplify_ds.inference.windows import rows, windows
from tests.support.commands import interpreter, python
from tests.support.paths import ROOT
from tests.support.small_model import LIMIT, every_token, killed_and_continued, make_folder, window_of
from tests.support.training import train

PROTEINS = {
    "first": "MKTAYIAKQRQISFVKSH",
    "one": "M",
    "antibody": "EVQLVES|DIQMTQ",
    "odd": "mkXaZ*",
    "long": "ACDEFGHIKLMNPQRSTVWY" * 5,
    "limit": "W" * (LIMIT - 2),
    "over": "MV" * (LIMIT // 2),
}
READ = {name: sequence.rstrip("*") for name, sequence in PROTEINS.items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed") / "model"
    return folder, make_folder(folder)


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    path = tmp_path_factory.mktemp("fasta") / "proteins.fasta"
    path.write_text("".join(f">{name} some words\n{sequence}\n" for name, sequence in PROTEINS.items()))
    return path


def expected(reference, layer=2, norm=True):
    """Return ({name: [residues, H]}, {name: [H]} at <bos>)."""
    tokens = {name: every_token(reference, sequence, layer, norm).numpy() for name, sequence in READ.items()}
    return {name: x[1:-1] for name, x in tokens.items()}, {name: x[0] for name, x in tokens.items()}


def read(path):
    """Return {kind: {name: array}} of an output in any format."""
    if path.suffix == ".parquet":
        from pyarrow.parquet import read_table

        table = read_table(path).to_pydict()
        names, lengths = table.pop("name"), table.pop("length")
        by_name = {kind: dict(zip(names, map(np.array, values))) for kind, values in table.items()}
    else:
        if path.suffix == ".h5":
            h5py = pytest.importorskip("h5py")
            with h5py.File(path) as file:
                arrays = {name: data[()] for name, data in file.items()}
                assert json.loads(file.attrs["settings"])["layer"] == 2
            arrays["names"] = [name.decode() for name in arrays["names"]]
        else:
            with np.load(path) as file:
                arrays = dict(file)
            assert json.loads(str(arrays.pop("settings")))["layer"] == 2
        names, lengths, ends = list(arrays.pop("names")), arrays.pop("lengths"), arrays.pop("offsets")
        by_name = {kind: dict(zip(names, values)) for kind, values in arrays.items() if kind != "residues"}
        by_name["residues"] = {name: arrays["residues"][a:b] for name, a, b in zip(names, ends, ends[1:])}
    assert names == list(PROTEINS) and list(lengths) == [len(sequence) for sequence in READ.values()]
    return by_name


@pytest.mark.parametrize("suffix, dtype", [(".npz", "float32"), (".parquet", "float16"), (".h5", "float32")])
def test_files_contain_the_embeddings_of_the_reference(model, fasta, tmp_path, suffix, dtype):
    if suffix == ".h5":
        pytest.importorskip("h5py")
    folder, reference = model
    output = tmp_path / f"out{suffix}"
    settings = Settings(("residues", "mean", "bos", "max"), dtype=dtype)
    records = Records(fasta)
    stats = check(records)
    assert stats.unknown == {"X": 1, "Z": 1} and stats.proteins == len(PROTEINS)
    embed_file(amplify_ds.load(folder, row_tokens=64), records, stats, output, settings, lambda residues: None)
    assert os.listdir(tmp_path) == [output.name]
    written = read(output)
    residues, bos = expected(reference)
    close = {"atol": 2e-5, "rtol": 1e-5} if dtype == "float32" else {"atol": 1e-3, "rtol": 1e-3}
    for name in PROTEINS:
        np.testing.assert_allclose(written["residues"][name], residues[name], err_msg=name, **close)
        np.testing.assert_allclose(written["mean"][name], residues[name].mean(0), err_msg=name, **close)
        np.testing.assert_allclose(written["max"][name], residues[name].max(0), err_msg=name, **close)
        np.testing.assert_allclose(written["bos"][name], bos[name], err_msg=name, **close)
        assert written["mean"][name].dtype == written["residues"][name].dtype or suffix == ".parquet"


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("raw", [False, True])
def test_any_layer(model, layer, raw):
    folder, reference = model
    residues, bos = expected(reference, layer, not raw)
    embeddings = amplify_ds.embed(folder, READ, include=["residues", "bos"], layer=layer, raw=raw, row_tokens=100)
    for index, name in enumerate(embeddings.names):
        np.testing.assert_allclose(embeddings.residues[index], residues[name], atol=2e-5, rtol=1e-5)
        np.testing.assert_allclose(embeddings.bos[index], bos[name], atol=2e-5, rtol=1e-5)
    assert embeddings.mean is None


def test_embed_takes_lists_and_a_loaded_model(model):
    reader = amplify_ds.load(model[0])
    assert amplify_ds.embed(reader, ["MKV", "ACD"]).names == ["0", "1"]
    np.testing.assert_array_equal(amplify_ds.embed(reader, ["MKV"]).mean, amplify_ds.embed(model[0], {"a": "MKV"}).mean)


def test_no_padding_is_computed(model, fasta, monkeypatch):
    reader = amplify_ds.load(model[0], row_tokens=128)
    sizes = []
    original = reader.hidden
    monkeypatch.setattr(reader, "hidden", lambda w, *rest: sizes.append([len(x) for x in w]) or original(w, *rest))
    amplify_ds.embed(reader, {name: x for name, x in READ.items() if len(x) + 2 <= LIMIT})
    tokens = [n for row in sizes for n in row]
    assert sum(tokens) == sum(len(x) + 2 for x in READ.values() if len(x) + 2 <= LIMIT)
    assert tokens == sorted(tokens, reverse=True) and max(map(sum, sizes)) <= 128


@given(st.integers(1, 700), st.integers(8, 90))
def test_each_token_is_taken_from_the_window_in_which_it_is_farthest_from_an_edge(tokens, limit):
    starts, borders, length = windows(tokens, limit)
    assert borders[0] == 0 and borders[-1] == tokens and (np.diff(borders) > 0).all()
    assert starts[0] == 0 and starts[-1] + length == tokens and length == min(tokens, limit)
    assert (np.diff(starts) <= limit // 2).all()
    for token in range(tokens):
        owner = np.searchsorted(borders, token, side="right") - 1
        distances = [min(token - s, s + length - 1 - token) for s in starts]
        assert distances[owner] == max(distances)


def test_windows_agree_with_those_of_the_test_helper():
    for token in (0, 19, 20, 39, 60, 99, 101):
        starts, borders, length = windows(102, LIMIT)
        start = starts[np.searchsorted(borders, token, side="right") - 1]
        assert window_of(token, 102) == (start, start + length)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(20, 200))
def test_rows_contain_every_window_once_and_respect_the_limit(lengths, row_tokens):
    packed = list(rows(lengths, row_tokens))
    assert sorted(i for row in packed for i in row) == list(range(len(lengths)))
    for row in packed:
        assert len(row) == 1 or sum(lengths[i] for i in row) <= row_tokens


def test_a_killed_command_continues_to_the_same_bytes(model, fasta, tmp_path):
    arguments = ["--model", str(model[0]), "--input", str(fasta), "--include", "mean", "residues"]
    killed_and_continued("amplify_ds.embed", arguments, tmp_path / "whole.npz", tmp_path / "killed.npz")


def test_a_job_with_other_settings_is_not_continued(model, tmp_path):
    with resumable.resumable(tmp_path / "out.npz", {"layer": 2, "model": "a"}) as chunks:
        chunks.write(0, {})
        with pytest.raises(AmplifyError, match="another process is writing"):
            with resumable.resumable(tmp_path / "out.npz", {"layer": 2, "model": "a"}):
                pass
    with pytest.raises(AmplifyError, match=r"different settings: layer \(was 2, now 1\)\. Use the same"):
        with resumable.resumable(tmp_path / "out.npz", {"layer": 1, "model": "a"}):
            pass
    with resumable.resumable(tmp_path / "out.npz", {"layer": 2, "model": "a"}) as chunks:
        assert 0 in chunks and 1 not in chunks


def test_a_folder_kept_by_an_open_file_on_nfs_is_removed_after_it_is_closed(tmp_path, monkeypatch):
    """On NFS an open file that is removed stays in the folder as .nfs… until it is closed."""
    output, folder = tmp_path / "out.txt", tmp_path / "out.txt.partial"

    def rmtree(path, ignore_errors):
        assert path == folder and ignore_errors  # the folder itself stays
        for file in folder.iterdir():
            file.unlink()

    monkeypatch.setattr(resumable.shutil, "rmtree", rmtree)
    with resumable.resumable(output, {}) as chunks:
        resumable.finish(output, chunks, lambda path: path.write_text("all"))
        assert folder.is_dir()
    assert output.read_text() == "all" and not folder.exists()


def refused(model_name, sequences, text, **options):
    with pytest.raises(AmplifyError, match=text):
        amplify_ds.embed(model_name, sequences, **options)


def test_bad_sequences_are_refused(model, tmp_path):
    folder = model[0]
    refused(folder, {"a": "MK", "b": ""}, r"record 2 \('b'\) has an empty sequence")
    refused(folder, {"": "MK"}, "has no name")
    refused(folder, {"a": "MKXU"}, r"record 1 \('a'\) contains 'U', 'X'", strict=True)
    refused(folder, {}, "contains no protein")
    path = tmp_path / "proteins.fasta"
    refused(folder, path, "there is no such file")
    path.write_text(">a 1\nMK\n>b\nMK\n>a 2\nMKV\n")
    refused(folder, path, "1 names appear more than once: 'a'")
    path.write_text("MKV\n")
    refused(folder, path, "line 1: not FASTA")
    path.write_bytes(">a\nMKÄ\n".encode("latin1"))
    refused(folder, path, "line 2: .* not ASCII")
    path.with_suffix(".gz").write_bytes(b"\x1f\x8b\x08\x00 no gzip")
    refused(folder, path.with_suffix(".gz"), "cannot be read to its end")


def test_bad_settings_are_refused(model):
    folder, sequences = model[0], ["MKV"]
    refused(folder, sequences, "layer must be 0 .* to 2 .*, found 3", layer=3)
    refused(folder, sequences, "include must be one of .* found 'median'", include=["median"])
    refused(folder, sequences, "dtype must be one of", dtype="int8")
    refused(folder, sequences, "precision must be one of", precision="fp8")
    refused(folder, sequences, "device nonsense", device="nonsense")
    refused(folder, sequences, "device meta: the meta device computes nothing", device="meta")
    for length in (4, LIMIT + 1):
        refused(folder, sequences, f"8 to {LIMIT} tokens .* found {length}", max_length=length)
    refused(amplify_ds.load(folder), sequences, "already loaded: give .* to amplify_ds.load", row_tokens=9)


def test_values_too_large_for_float16_are_refused(model, tmp_path):
    folder = tmp_path / "large"
    reference = make_folder(folder)
    from safetensors.torch import save_file

    weights = reference.state_dict()
    weights["encoder.weight"] *= 1e6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, ["MKV"], "not finite in float16", raw=True, layer=0, dtype="float16")
    assert np.isfinite(amplify_ds.embed(folder, ["MKV"], raw=True, layer=0).mean).all()
    assert np.isfinite(amplify_ds.embed(folder, ["MKV"], dtype="float16").mean).all()


def test_bad_models_are_refused(tmp_path, monkeypatch):
    sequences = ["MKV"]
    refused(tmp_path / "absent", sequences, "is not a checkpoint .* model folder")
    make_folder(tmp_path / "model")
    tokenizer = json.loads((tmp_path / "model/tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {"A": 6, "L": 7}
    (tmp_path / "model/tokenizer.json").write_text(json.dumps(tokenizer))
    refused(tmp_path / "model", sequences, "vocabulary differs .*'L' is 7")
    make_folder(tmp_path / "pickled")
    (tmp_path / "pickled/model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled/pytorch_model.bin")
    refused(tmp_path / "pickled", sequences, "pickle")
    make_folder(tmp_path / "ids", mask_token_id=9)
    refused(tmp_path / "ids", sequences, "vocabulary differs .*mask_token_id 9, expected 2")


HUB = """
import sys
from pathlib import Path
import amplify_ds
from amplify_ds.errors import AmplifyError
from tests.support.small_model import make_folder
try:
    amplify_ds.embed("some-lab/AMPLIFY_tiny", ["MKV"])
except AmplifyError as error:
    print(error)
repository = Path(sys.argv[1], "hub/models--some-lab--AMPLIFY_tiny")
commit = "0" * 40
for name in ("refs", "snapshots"):
    (repository / name).mkdir(parents=True)
(repository / "refs/main").write_text(commit)
make_folder(repository / "snapshots" / commit)
print(amplify_ds.embed("some-lab/AMPLIFY_tiny", ["MKV"]).mean.shape)
"""


def test_an_unreachable_hub_gives_one_message_and_its_cache_is_used(tmp_path):
    home = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    result = interpreter("-c", HUB, tmp_path, env={**os.environ, **home})
    assert result.returncode == 0, result.stderr
    message, shape = result.stdout.strip().splitlines()
    assert message.startswith("some-lab/AMPLIFY_tiny: is not a local folder, and")
    assert "could not be reached" in message and "hf download some-lab/AMPLIFY_tiny" in message
    assert shape == "(1, 64)"


def test_outputs_are_never_overwritten(model, fasta, tmp_path):
    (tmp_path / "out.npz").write_text("precious")
    arguments = (amplify_ds.load(model[0]), Records(fasta), check(Records(fasta)))
    for name, text in (("out.npz", "already exists"), ("out.csv", "must end in .h5, .parquet, .npz")):
        with pytest.raises(AmplifyError, match=text):
            embed_file(*arguments, tmp_path / name, Settings(), lambda residues: None)
    assert (tmp_path / "out.npz").read_text() == "precious" and os.listdir(tmp_path) == ["out.npz"]


AUTO = """
import sys, numpy as np, torch
sys.modules["amplify_ds"] = None
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
with torch.no_grad():
    means = [model(**tokenizer(x, return_tensors="pt")).last_hidden_state[0, 1:-1].mean(0) for x in sys.argv[3:]]
np.save(sys.argv[2], torch.stack(means).numpy())
"""


def test_embeddings_of_run_and_export_equal_those_of_automodel(shards, tmp_path):
    assert train(1, tmp_path / "run", shards, training__steps=1).returncode == 0
    export(tmp_path / "run", tmp_path / "folder")
    fasta, output = tmp_path / "some.fasta", tmp_path / "out.npz"
    sequences = ["MKTAYIAKQRQISFVKSHFSRQ", "EVQLVES", "MALWMRLLPLLALLALWGPDPAAA"]
    fasta.write_text("".join(f">{i}\n{x}\n" for i, x in enumerate(sequences)))
    result = python("-m", "amplify_ds.embed", "--model", tmp_path / "folder", "--input", fasta, "--output", output)
    assert result.returncode == 0 and "wrote" in result.stdout and "3 proteins (53 residues)" in result.stdout, result
    arguments = ["-c", AUTO, tmp_path / "folder", tmp_path / "auto.npy", *sequences]
    result = interpreter(*arguments, env={**os.environ, "HF_HOME": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    with np.load(output) as written:
        np.testing.assert_allclose(written["mean"], np.load(tmp_path / "auto.npy"), atol=1e-5, rtol=1e-5)
        np.testing.assert_array_equal(written["mean"], amplify_ds.embed(tmp_path / "run", sequences).mean)


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".parquet"])
def test_one_long_name_does_not_make_a_large_file(model, tmp_path, suffix):
    """One of 1,000 names has 60,000 bytes; a fixed-width text array would take 240 MB."""
    if suffix == ".h5":
        pytest.importorskip("h5py")
    names = [f"protein {number}" for number in range(999)] + ["é" * 30_000]
    fasta = tmp_path / "some.fasta"
    fasta.write_text("".join(f">{name}\nMKV\n" for name in names))
    records, output = Records(fasta, names="header"), tmp_path / f"out{suffix}"
    embed_file(amplify_ds.load(model[0]), records, check(records), output, Settings(), lambda residues: None)
    assert output.stat().st_size < 3_000_000
    if suffix == ".npz":
        with np.load(output) as arrays:
            written = arrays["names"].tolist()
    elif suffix == ".h5":
        import h5py

        with h5py.File(output) as file:
            written = [name.decode() for name in file["names"][()]]
    else:
        from pyarrow.parquet import read_table

        written = read_table(output)["name"].to_pylist()
    assert written == names
