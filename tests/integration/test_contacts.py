"""Contacts compared with plain loops: attention of the independent AMPLIFY, corrections and rankings by definition."""

import csv
import json
import math
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import amplify_ds
from amplify_ds.benchmarks.padded_model import HEAD_SIZE, rotate
from amplify_ds.errors import AmplifyError
from amplify_ds.inference.contacts import fitting, picture
from amplify_ds.inference.contacts import head as heads
from amplify_ds.inference.contacts.attention_maps import average_product_corrected, contact_features
from amplify_ds.inference.contacts.precision import precisions, summary, table
from amplify_ds.inference.contacts.targets import Target
from amplify_ds.inference.names import file_names
from tests.support import small_model
from tests.support.commands import python
from tests.support.paths import ROOT
from tests.support.small_model import ids_of, killed_and_continued, make_folder
from tests.support.structure_files import THREE, hairpin, hairpin_contacts, pdb

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
LAYERS, HEADS = 2, 2


def sequence(length, seed):
    return "".join(np.random.default_rng(seed).choice(list(LETTERS), length))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contacts") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            small_model, "SHAPE", {**small_model.SHAPE, "hidden_size": HEADS * HEAD_SIZE, "num_attention_heads": HEADS}
        )
        return folder, make_folder(folder, seed=2)


@torch.no_grad()
def features_by_loops(reference, letters):
    """Return float64 [layers, heads, n, n]: dense attention of the reference, corrected one entry at a time."""
    ids = ids_of(letters)
    x, n, maps = reference.encoder(torch.tensor([ids])), len(letters), []
    for block in reference.transformer_encoder:
        normed = block.attention_norm(x)
        for number in range(HEADS):
            columns = slice(number * HEAD_SIZE, (number + 1) * HEAD_SIZE)
            q, k = (rotate(f(normed)[:, None, :, columns])[0, 0] for f in (block.q, block.k))
            attention = torch.softmax(q @ k.T / HEAD_SIZE**0.5, -1)[1:-1, 1:-1].double().numpy()
            symmetric = [[attention[i, j] + attention[j, i] for j in range(n)] for i in range(n)]
            sums = [sum(row) for row in symmetric]
            maps.append([[symmetric[i][j] - sums[i] * sums[j] / sum(sums) for j in range(n)] for i in range(n)])
        x = block(x, torch.zeros(1, 1, 1, len(ids)))
    return np.array(maps).reshape(LAYERS, HEADS, n, n)


@pytest.mark.parametrize("letters", ["MKTAYIAKQRQISFVKSHFSRQLEERLGLIEV", "WX|", "M"])
def test_features_are_those_of_a_dense_model_and_loops(model, letters):
    folder, reference = model
    features = [maps.numpy() for maps in contact_features(amplify_ds.load(folder), np.array(ids_of(letters)[1:-1]))]
    expected = features_by_loops(reference, letters)
    assert expected.std() > 1e-3 or len(letters) == 1
    np.testing.assert_allclose(features, expected, atol=2e-5)
    assert all((maps == maps.transpose(0, 2, 1)).all() for maps in features)


def test_a_map_of_zeros_stays_zero():
    maps = torch.zeros(1, 3, 3)
    assert (average_product_corrected(maps) == maps).all()


def test_only_float32_and_whole_proteins_are_read(model):
    with pytest.raises(AmplifyError, match='found torch.bfloat16: load it with precision="fp32"'):
        next(contact_features(amplify_ds.load(model[0], precision="bf16"), np.zeros(9, np.uint8)))
    with pytest.raises(AmplifyError, match="39 residues does not fit into the model's 40 tokens"):
        next(contact_features(amplify_ds.load(model[0]), np.zeros(39, np.uint8)))


def precision_by_sorting(probability, contacts, nearest, farthest, count):
    pairs = [
        (-probability[i, j], i, j)
        for i in range(len(contacts))
        for j in range(i + 1, len(contacts))
        if nearest <= j - i <= farthest and contacts[i, j] != -1
    ]
    top = sorted(pairs)[:count]
    return sum(contacts[i, j] == 1 for _, i, j in top) / len(top)


def random_matrix(n, seed, share=0.3):
    rng = np.random.default_rng(seed)
    probability = rng.random((n, n)).round(2)  # with ties
    contacts = (rng.random((n, n)) < share).astype(np.int8)
    for matrix in (probability, contacts):
        matrix[np.tril_indices(n)] = matrix.T[np.tril_indices(n)]
    contacts[[3, 11]] = contacts[:, [3, 11]] = -1
    return probability, contacts


@pytest.mark.parametrize("n", [30, 47])
def test_precisions_are_those_of_plain_sorting(n):
    probability, contacts = random_matrix(n, seed=n)
    results = precisions(probability, contacts)
    for name, (nearest, farthest) in {"short": (6, 11), "medium": (12, 23), "long": (24, n)}.items():
        for column, count in {"L": n - 2, "L/2": (n - 2) // 2, "L/5": (n - 2) // 5, "chance": n * n}.items():
            expected = precision_by_sorting(probability, contacts, nearest, farthest, count)
            assert results[name][column] == pytest.approx(expected, abs=1e-12), (name, column)


def test_a_perfect_prediction_has_precision_1_and_short_proteins_have_no_long_range():
    contacts = hairpin_contacts(40).astype(np.int8)
    perfect = precisions(contacts.astype(float), contacts)
    assert perfect["long"]["L/5"] == perfect["medium"]["L/5"] == 1 and 0 < perfect["long"]["chance"] < 0.2
    short = precisions(np.zeros((20, 20)), np.zeros((20, 20), np.int8))
    assert math.isnan(short["long"]["L"]) and short["short"]["L"] == 0
    both = summary([perfect, short])
    assert both["long"]["L/5"] == {"mean": 1.0, "standard_error": None, "proteins": 1}
    assert both["short"]["L"]["standard_error"] == pytest.approx(perfect["short"]["L"] / 2), "of x and 0"
    assert summary([short])["long"]["L"]["mean"] is None and "no pairs" in table(summary([short]))[-1]


def test_the_regression_is_the_minimum_of_its_loss():
    """|w|₁ + |b| + C Σ log(1 + exp(-y (x·w + b))) is minimal if the gradient of the sum is minus the sign of w."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(800, 8)) * 0.5
    contacts = rng.random(800) < 1 / (1 + np.exp(2 - 3 * features[:, 1] + 2 * features[:, 4]))
    weights, intercept = heads.fit(features, contacts, 0.15, seed=0)
    signs = np.where(contacts, 1, -1)
    slope = -signs / (1 + np.exp(signs * (features @ weights + intercept)))
    gradient = 0.15 * features.T @ slope
    assert weights[1] > 0.5 and weights[4] < -0.3 and (weights == 0).any()
    for weight, value in zip(weights, gradient):
        assert value == pytest.approx(-np.sign(weight), abs=0.02) if weight else abs(value) < 1.02
    assert 0.15 * slope.sum() == pytest.approx(-np.sign(intercept), abs=0.02)


@pytest.mark.parametrize("contacts, share", [(np.zeros(9, bool), "none"), (np.ones(9, bool), "all"), ([], "none")])
def test_no_head_can_be_fitted_to_one_kind_of_pairs(contacts, share):
    contacts = np.array(contacts, bool)
    with pytest.raises(AmplifyError, match=f"{share} of {len(contacts)} pairs are in contact"):
        heads.fit(np.zeros((len(contacts), 2)), contacts, 0.15, 0)


def planted(reader, tokens):
    """Replacement for attention: noise, and in the second head of layer 1 also the contacts of `secret_contacts`."""
    n = len(tokens)
    rng = np.random.default_rng(tokens.astype(int))
    for layer in range(LAYERS):
        maps = rng.normal(size=(HEADS, n, n)) * 0.1
        if layer == 1:
            maps[1] += secret_contacts(tokens) == 1
        yield torch.from_numpy(maps + maps.transpose(0, 2, 1)).float()


def secret_contacts(tokens):
    rng = np.random.default_rng(tokens.astype(int) + 1)
    upper = np.triu(rng.random((len(tokens), len(tokens))) < 0.1)
    return (upper | upper.T).astype(np.int8)


@pytest.mark.parametrize("settings", [fitting.FitSettings(), fitting.FitSettings(pairs_per_protein=200, seed=5)])
def test_contacts_in_an_attention_head_are_predicted_in_other_proteins(model, monkeypatch, settings):
    monkeypatch.setattr(fitting, "contact_features", planted)
    reader = amplify_ds.load(model[0])
    proteins = [np.random.default_rng(seed).integers(6, 26, 60) for seed in range(12)]
    targets = [Target(str(i), tokens, secret_contacts(tokens)) for i, tokens in enumerate(proteins)]
    head = fitting.fit_head(reader, "m", targets[:6], settings, lambda n: None)
    weights = np.array(head.weights)
    assert weights[1, 1] > 2 and abs(weights[[0, 0, 1], [0, 1, 0]]).max() < weights[1, 1] / 5
    assert head.fit["pairs"] == 6 * (settings.pairs_per_protein or 54 * 55 // 2)
    right = summary([values for _, values in fitting.evaluate(reader, head, targets[6:], lambda n: None)])
    for name in right:
        assert right[name]["L/5"]["mean"] > 0.98 and 0.05 < right[name]["chance"]["mean"] < 0.15, right
    assert fitting.trained_on(head, targets[5:8]) == ["5"]
    shifted = [target._replace(contacts=np.roll(target.contacts, (9, 9), (0, 1))) for target in targets[6:]]
    wrong = summary([values for _, values in fitting.evaluate(reader, head, shifted, lambda n: None)])
    assert wrong["long"]["L/5"]["mean"] < 0.3


def test_too_little_memory_is_reported_before_fitting(model, monkeypatch):
    monkeypatch.setattr(fitting.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10})())
    target = Target("p", np.full(30, 7, np.uint8), hairpin_contacts(30).astype(np.int8))
    with pytest.raises(AmplifyError, match="300 pairs with 2 layers of 2 heads need .*--pairs-per-protein"):
        fitting.fit_head(amplify_ds.load(model[0]), "m", [target], fitting.FitSettings(), lambda n: None)


def run(*arguments):
    return python("-m", "amplify_ds.contacts", *arguments)


def write_hairpin(path, letters, missing=()):
    path.write_text(pdb([THREE[x] for x in letters], hairpin(len(letters)), missing=missing))
    return path


@pytest.fixture(scope="module")
def fitted(model, tmp_path_factory):
    """Return (folder of training structures, head fitted by the command, its output)."""
    folder = tmp_path_factory.mktemp("fitted")
    (folder / "training").mkdir()
    for seed in range(4):
        write_hairpin(folder / f"training/t{seed}.pdb", sequence(30 + seed, seed), missing=(0, 1))
    arguments = ["fit", "--model", model[0], "--structures", folder / "training", "--output", folder / "head.json"]
    result = run(*arguments, "--inverse-strength", 50)
    assert result.returncode == 0, result.stderr
    return folder / "training", folder / "head.json", result.stdout


def probabilities(model, head, letters):
    content = json.loads(head.read_text())
    logits = np.einsum("lh,lhij->ij", content["weights"], features_by_loops(model[1], letters)) + content["intercept"]
    return 1 / (1 + np.exp(-logits))


def test_the_commands_fit_evaluate_and_predict(model, fitted, tmp_path):
    training, head, output = fitted
    content = json.loads(head.read_text())
    used = np.count_nonzero(content["weights"])
    pairs = sum((n - 2 - 6) * (n - 2 - 5) // 2 for n in range(30, 34))
    assert used > 1 and f"{used} of 4 heads are used, fitted on 4 proteins" in output
    assert f"among {pairs:,} pairs" in output
    assert content["fit"]["pairs"] == pairs and list(content["fit"]["proteins"]) == ["t0", "t1", "t2", "t3"]
    letters = {f"e{seed}": sequence(34 + seed, 50 + seed) for seed in range(3)}
    files = [write_hairpin(tmp_path / f"{name}.pdb", x, missing=(4, 20)) for name, x in letters.items()]
    outputs = ["--json", tmp_path / "out/table.json", "--csv", tmp_path / "out/each.csv"]
    result = run("evaluate", "--head", head, "--structures", *files, training / "t1.pdb", *outputs)
    assert result.returncode == 0, result.stderr
    assert "the head was fitted on 1 of these proteins, so the precision is too optimistic: t1" in result.stdout
    with open(tmp_path / "out/each.csv", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    written = json.loads((tmp_path / "out/table.json").read_text())
    values = []
    for name, x in letters.items():
        contacts = hairpin_contacts(len(x)).astype(int)
        contacts[[4, 20]] = contacts[:, [4, 20]] = -1
        observed = len(x) - 2
        expected = precision_by_sorting(probabilities(model, head, x), contacts, 12, 23, observed)
        assert float(rows[name]["medium L"]) == pytest.approx(expected, abs=1e-5)
        assert (rows[name]["length"], rows[name]["observed"]) == (str(len(x)), str(observed))
        values.append(expected)
    values.append(float(rows["t1"]["medium L"]))
    mean, error = np.mean(values), np.std(values, ddof=1) / 2
    assert written["precision"]["medium"]["L"]["mean"] == pytest.approx(mean, abs=1e-5)
    assert written["precision"]["medium"]["L"]["standard_error"] == pytest.approx(error, abs=1e-5)
    line = next(line for line in result.stdout.splitlines() if line.startswith("medium"))
    assert f"12 to 23    {mean:.3f} ± {error:.3f}" in line


@pytest.fixture
def with_unusable(fitted, tmp_path):
    """Return (folder with the training set and three structures that cannot be used, the messages about these)."""
    folder = tmp_path / "mixed"
    shutil.copytree(fitted[0], folder)
    letters = [THREE[x] for x in sequence(20, 9)]
    (folder / "two.pdb").write_text(pdb(letters, hairpin(20), "A", end=False) + pdb(letters, hairpin(20), "B"))
    (folder / "a.cif").write_text("no structure\n")
    (folder / "t2b.pdb").write_text(pdb(letters, hairpin(20)).replace("ATOM  ", "REMARK"))
    return folder, [
        "a.cif: cannot be read as PDB or mmCIF",
        "t2b.pdb: contains no protein chain with coordinates",
        "two.pdb: has the protein chains A, B; choose one",
    ]


def test_structures_that_cannot_be_used_are_left_out_and_listed(model, fitted, with_unusable, tmp_path):
    folder, reasons = with_unusable
    arguments = ["fit", "--model", model[0], "--structures", folder, "--output", tmp_path / "head.json"]
    result = run(*arguments, "--inverse-strength", 50)
    assert result.returncode == 0, result.stderr
    lines = result.stderr[result.stderr.index("note: left out: 3 structures cannot be used:") :].splitlines()
    assert len(lines) == 4 and all(reason in line for reason, line in zip(reasons, lines[1:]))
    head, other = (json.loads(path.read_text()) for path in (tmp_path / "head.json", fitted[1]))
    assert head["fit"].pop("left_out") == ["a", "t2b", "two"] and other["fit"].pop("left_out") == []
    assert head == other and "fitted on 4 proteins" in result.stdout

    arguments = ["--head", tmp_path / "head.json", "--structures", folder]
    result = run("evaluate", *arguments, "--json", tmp_path / "table.json", "--csv", tmp_path / "each.csv")
    assert result.returncode == 0 and "3 structures cannot be used" in result.stderr
    table = json.loads((tmp_path / "table.json").read_text())
    assert (table["proteins"], table["left_out"]) == (4, ["a", "t2b", "two"])
    assert [row.split(",")[0] for row in (tmp_path / "each.csv").read_text().splitlines()] == "name t0 t1 t2 t3".split()

    result = run("predict", *arguments, "--output", tmp_path / "c.npz")
    assert result.returncode == 0 and all(reason in result.stderr for reason in reasons)
    assert np.load(tmp_path / "c.npz").files == ["t0", "t1", "t2", "t3"]


def test_if_no_structure_can_be_used_all_are_listed(model, with_unusable, tmp_path):
    folder, reasons = with_unusable
    for path in folder.glob("t?.pdb"):
        path.unlink()
    result = run("fit", "--model", model[0], "--structures", folder, "--output", tmp_path / "head.json")
    assert result.returncode == 1 and "Traceback" not in result.stderr and not (tmp_path / "head.json").exists()
    assert "error: 3 structures cannot be used" in result.stderr
    assert [result.stderr.count(reason) for reason in reasons] == [1, 1, 1]


def test_left_out_structures_are_also_listed_after_an_error(model, with_unusable, tmp_path):
    folder, reasons = with_unusable
    for path in folder.glob("t?.pdb"):
        path.unlink()
    write_hairpin(folder / "short.pdb", "ACDEF")
    result = run("fit", "--model", model[0], "--structures", folder, "--output", tmp_path / "head.json")
    assert result.returncode == 1 and "none of 0 pairs are in contact" in result.stderr
    assert all(reason in result.stderr for reason in reasons)


def test_predictions_and_plots(model, fitted, tmp_path):
    head, letters = fitted[1], sequence(33, 77)
    path = write_hairpin(tmp_path / "p.pdb", letters, missing=(9,))
    result = run(
        "predict",
        "--head",
        head,
        "--model",
        model[0],
        "--structures",
        path,
        "--output",
        tmp_path / "c.npz",
        "--plot",
        tmp_path / "p.png",
    )
    assert result.returncode == 0, result.stderr
    expected = probabilities(model, head, letters)
    written = np.load(tmp_path / "c.npz")
    assert written.files == ["p"] and written["p"].dtype == np.float16
    np.testing.assert_allclose(written["p"], expected, atol=1e-3)
    returned = amplify_ds.contacts(amplify_ds.load(model[0]), head, {"x": letters})
    np.testing.assert_allclose(returned["x"], expected, atol=1e-5)
    from matplotlib.image import imread

    plot = imread(tmp_path / "p.png")
    assert min(plot.shape[:2]) > 600 and plot[..., :3].std() > 0.05
    assert sorted(x.name for x in tmp_path.iterdir()) == ["c.npz", "p.pdb", "p.png"]


def test_layers_of_a_plot():
    contacts = hairpin_contacts(12).astype(np.int8)
    contacts[2] = contacts[:, 2] = -1
    predicted, known = picture.layers(np.full((12, 12), 0.7), contacts)
    for i in range(12):
        for j in range(12):
            probability = None if j - i < 6 else 0.7
            assert predicted[i, j] == probability or (probability is None and np.isnan(predicted[i, j]))
            shade = 0.25 if 2 in (i, j) else 1 if hairpin_contacts(12)[i, j] else None
            shade = shade if i - j >= 6 else None
            assert known[i, j] == shade or (shade is None and np.isnan(known[i, j]))
    predicted, known = picture.layers(np.full((12, 12), 0.7), None)
    assert np.isfinite(predicted).sum() == 6 * 7 and np.isnan(known).all()


def test_contact_files_give_the_same_head_as_structures(model, fitted, tmp_path):
    letters = {f"t{seed}": sequence(30 + seed, seed) for seed in range(4)}
    (tmp_path / "p.fasta").write_text("".join(f">{name}\n{x}\n" for name, x in letters.items()))
    for name, x in letters.items():
        contacts = hairpin_contacts(len(x)).astype(np.int8)
        contacts[[0, 1]] = contacts[:, [0, 1]] = -1
        np.save(tmp_path / f"{name}.npy", contacts)
    arguments = ["fit", "--model", model[0], "--input", tmp_path / "p.fasta", "--contacts", tmp_path]
    result = run(*arguments, "--output", tmp_path / "head.json", "--inverse-strength", 50)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "head.json").read_text() == fitted[1].read_text()
    assert run(*arguments, "--output", tmp_path / "head.json").returncode == 1


def test_a_killed_command_continues_to_the_same_bytes(fitted, tmp_path):
    fasta = tmp_path / "p.fasta"
    fasta.write_text("".join(f">p{i}\n{sequence(10 + i, i)}\n" for i in range(7)))
    arguments = ["predict", "--head", str(fitted[1]), "--input", str(fasta)]
    killed_and_continued("amplify_ds.contacts", arguments, tmp_path / "whole.npz", tmp_path / "killed.npz")


NAMES = ["../../x", "/etc/passwd", "a/b", "a_b", "..\\y", "$x^{", "sp|P1|A", "1abc:A", ".hidden", "l" * 300, "l" * 301]


def test_names_in_the_archive_do_not_leave_the_folder_when_unpacked(model, fitted, tmp_path):
    fasta, output = tmp_path / "p.fasta", tmp_path / "c.npz"
    fasta.write_text("".join(f">{name}\n{sequence(12 + i, i)}\n" for i, name in enumerate(NAMES)))
    result = run(
        "predict",
        "--head",
        fitted[1],
        "--input",
        fasta,
        "--output",
        output,
        "--plot",
        tmp_path / "p.png",
        "--protein",
        "$x^{",
    )
    assert result.returncode == 0, result.stderr
    assert "7 names are not valid file names and were changed: '../../x' is now '_._.._x', " in result.stdout
    assert f"numpy.load({str(output)!r})['_._.._x']" in result.stdout
    written = np.load(output)
    assert len(set(written.files)) == len(NAMES)
    for i, (name, entry) in enumerate(zip(NAMES, written.files)):  # in input order
        assert written[entry].shape == (12 + i, 12 + i)
        assert entry == name or name not in ("a_b", "sp|P1|A", "1abc:A"), "a safe name is not changed"
    with zipfile.ZipFile(output) as archive:
        archive.extractall(tmp_path / "deep/er/unpacked")
        assert {x.name for x in (tmp_path / "deep/er/unpacked").iterdir()} == set(archive.namelist())
    assert sorted(x.name for x in tmp_path.iterdir()) == ["c.npz", "deep", "p.fasta", "p.png"]


MORE = [*NAMES, "n\x00l", "a_b-2", "..", ".", "é" * 200, "é" * 199]


@given(st.lists(st.text(max_size=8) | st.sampled_from(MORE), unique=True))
def test_file_names_are_distinct_and_safe(names):
    files = file_names(names)
    assert len(files) == len(set(files)) == len(names)
    for file in files:
        assert Path(file).name == file and 0 < len(file.encode()) <= 250 and file.encode()
        assert not set(file) & set("/\\\0\n") and not file.startswith(".")
    assert file_names(files) == files


def test_a_head_is_refused_for_another_model(model, fitted, tmp_path):
    make_folder(tmp_path / "other", seed=9)
    with pytest.raises(AmplifyError, match="a model with 2 layers of 2 heads, this model has 2 layers of 1"):
        amplify_ds.contacts(tmp_path / "other", fitted[1], ["MKV"])
    reader = amplify_ds.load(model[0], precision="fp32")
    with torch.no_grad():
        reader.model.decoder.bias[3] += 1e-3
    with pytest.raises(
        AmplifyError, match=r"head.json: was fitted to the weights of .*model, this model has other weights"
    ):
        amplify_ds.contacts(reader, fitted[1], ["MKV"])
    with pytest.raises(AmplifyError, match='precision="fp32"'):
        amplify_ds.contacts(amplify_ds.load(model[0], precision="bf16"), fitted[1], ["MKV"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "else"}, "not a contact head of this version"),
        ({"weights": [[0.1, 0.2], [0.3]]}, "damaged, invalid values: weights"),
        ({"weights": [["a", 0.2]]}, "damaged, invalid values: weights"),
        ({"intercept": math.nan}, "damaged, invalid values: weights"),
        ({"intercept": None, "model": 3}, "damaged, invalid values: model, intercept"),
        ({"more": 1}, "damaged, invalid values: more"),
        ({"fit": {}}, "damaged, invalid values: fit.proteins"),
    ],
)
def test_damaged_heads(fitted, tmp_path, change, message):
    path = tmp_path / "head.json"
    path.write_text(json.dumps(json.loads(fitted[1].read_text()) | change))
    with pytest.raises(AmplifyError, match=message):
        heads.read(path)


def test_missing_and_malformed_heads(tmp_path):
    with pytest.raises(AmplifyError, match="there is no such file; make one with"):
        heads.read(tmp_path / "absent.json")
    (tmp_path / "head.json").write_text("{")
    with pytest.raises(AmplifyError, match="cannot be read as JSON"):
        heads.read(tmp_path / "head.json")


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["fit", "--model", "m", "--input", "f", "--output", "o"], "fit needs known contacts"),
        (["fit", "--model", "m", "--structures", "f", "--output", "o", "--seed", "-1"], "--seed must be 0 to"),
        (["fit", "--model", "m", "--structures", "f", "--output", "o", "--pairs-per-protein", "0"], "must be positive"),
        (["evaluate", "--head", "h", "--structures", "s", "--contacts", "c"], "--contacts needs --input"),
        (["evaluate", "--head", "h", "--structures", "s", "--input", "c"], "not allowed with"),
        (["predict", "--head", "h", "--input", "f"], "give --output, --plot or both"),
        (["predict", "--head", "h", "--input", "f", "--output", "o", "--protein", "p"], "--protein needs --plot"),
    ],
)
def test_contradictory_flags_are_refused(arguments, text, capsys, monkeypatch):
    from runpy import run_path

    monkeypatch.setattr("sys.argv", ["contacts", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        run_path(str(ROOT / "amplify_ds/contacts.py"), run_name="__main__")
    assert exit_info.value.code == 2 and text in capsys.readouterr().err
