"""Run examples/using_amplify.ipynb from top to bottom and compare its results with the independent AMPLIFY.

The notebook has no magics, so its cells run in plain Python and the test does not need Jupyter (nbclient, ipykernel).
"""

import json
from collections import Counter

import dnaio
import numpy as np
import pytest
import torch

from amplify_ds.hub.export import export
from tests.support.commands import before_path, environment, interpreter
from tests.support.model_folders import SMALL, reference, write
from tests.support.paths import EXAMPLE, ROOT
from tests.support.small_model import LETTERS, ids_of

NOTEBOOK = ROOT / "examples/using_amplify.ipynb"
ORDER = "GAVLIMFWPSTCYNQDEKRH"

# Runs the code cells in one namespace, in the notebook's folder, with another model; then prints the figures' contents.
RUN = """
import json, os, sys
notebook, model = sys.argv[1:]
cells = json.load(open(notebook, encoding="utf-8"))["cells"]
os.chdir(os.path.dirname(notebook))
names = {"__name__": "__main__"}
for cell in cells:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
        if cell["id"] == "settings":
            assert "MODEL" in names
            names["MODEL"] = model
from matplotlib import pyplot
from matplotlib.collections import PathCollection as Points
pictures = []
for number in pyplot.get_fignums():
    figure = pyplot.figure(number)
    figure.canvas.draw()
    axes = figure.axes[0]
    pictures.append({
        "title": axes.get_title(),
        "images": [image.get_array().tolist() for image in axes.images],
        "marks": [line.get_xydata().tolist() for line in axes.lines],
        "points": [[x.get_label(), x.get_offsets().tolist()] for x in axes.collections if isinstance(x, Points)],
    })
print("FIGURES", json.dumps({"protein": names["PROTEIN"], "pictures": pictures}))
"""


def name_of(token: int) -> str:
    """Return the name of a token in the tokenizer."""
    return ["<pad>", "<unk>", "<mask>", "<bos>", "<eos>", "|", *LETTERS][token]


@pytest.fixture(scope="module")
def model():
    return reference(SMALL)


@pytest.fixture(scope="module")
def ran(model, tmp_path_factory):
    """Return (printed text, contents of the figures) of the notebook with an exported model of random weights."""
    folder = tmp_path_factory.mktemp("notebook")
    export(write(folder / "source", model.state_dict()), folder / "exported")
    variables = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
    variables["PYTHONPATH"] = before_path(ROOT)
    result = interpreter("-c", RUN, NOTEBOOK, folder / "exported", env=environment(1) | variables)
    assert result.returncode == 0, result.stderr
    printed, _, figures = result.stdout.partition("FIGURES ")
    return printed, json.loads(figures)


@pytest.fixture(scope="module")
def proteins():
    """Return (family, held out, sequence) of the bundled proteins, in the order of the files."""
    bundled = []
    for part in ("train", "validation"):
        with dnaio.open(EXAMPLE / f"{part}.fasta.gz") as records:
            for record in records:
                name = record.name.split(" ", 1)[1].split(" OS=")[0]
                bundled.append((name, part == "validation", record.sequence))
    return bundled


@pytest.fixture(scope="module")
def members(proteins):
    """Return the proteins of the eight most frequent names, without uncharacterized proteins."""
    counts = Counter(name for name, *_ in proteins)
    known = [name for name, _ in counts.most_common() if not name.lower().endswith("uncharacterized protein")]
    return [protein for protein in proteins if protein[0] in known[:8]]


@pytest.fixture(scope="module")
def embeddings(model, members):
    """Return [members, H]: means over the residues of the independent model's last layer."""
    means = []
    with torch.no_grad():
        for *_, sequence in members:
            x = model.encoder(torch.tensor([ids_of(sequence)]))
            for block in model.transformer_encoder:
                x = block(x, 0.0)
            means.append(model.layer_norm_2(x)[0, 1:-1].mean(0).numpy())
    return np.array(means, np.float64)


def test_the_file_is_a_notebook_of_format_4_without_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"] == {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names) and all(name.replace("-", "").isalpha() for name in names)
    for cell in notebook["cells"]:
        common = {"cell_type", "id", "metadata", "source"}
        assert all(isinstance(line, str) for line in cell["source"])
        if cell["cell_type"] == "code":
            assert cell.keys() == common | {"execution_count", "outputs"}
            assert cell["execution_count"] is None and cell["outputs"] == [], f"strip the outputs of {cell['id']}"
        else:
            assert cell["cell_type"] == "markdown" and cell.keys() == common


@pytest.fixture(scope="module")
def each_masked(model, ran):
    """Return [residues, V]: log probabilities of the independent model, with one residue masked at a time."""
    protein = ran[1]["protein"]
    ids, indices = torch.tensor([ids_of(protein)] * len(protein)), torch.arange(len(protein))
    ids[indices, indices + 1] = 2  # <mask>; index 0 is <bos>
    with torch.no_grad():
        return model(ids)[indices, indices + 1].log_softmax(-1)


def test_masked_residues(ran, proteins, each_masked):
    printed, figures = ran
    protein = figures["protein"]
    assert (True, protein) in [(held_out, sequence) for _, held_out, sequence in proteins]
    top = each_masked[55].exp().topk(5)
    lines = [f"  {name_of(i)}  {p:.1%}" for i, p in zip(top.indices.tolist(), top.values.tolist())]
    assert "\n".join(["residue 56, which is C:", *lines, ""]) in printed
    likeliest = [name_of(i) for i in each_masked.argmax(-1).tolist()]
    assert f"\nlikeliest  {''.join(likeliest)}\n" in printed
    right = sum(name == residue for name, residue in zip(likeliest, protein))
    assert f"\nright: {right} of {len(protein)}; always C: {protein.count('C')}\n" in printed


def test_picture_of_the_families(ran, proteins, members, embeddings):
    printed, figures = ran
    picture = figures["pictures"][0]
    held_out = np.array([new for _, new, _ in members])
    count = f"{len(proteins):,} proteins; {len(members)} in the eight families, {held_out.sum()} of them held out"
    assert count in printed and held_out.sum() > 8
    families = [
        label for label, _ in picture["points"][:-1:2]
    ]  # training and held-out points alternate; the last are the legend's
    assert sorted(families) == sorted({name for name, *_ in members})

    centred = embeddings - embeddings.mean(0)
    variances, directions = np.linalg.eigh(centred.T @ centred)
    expected = centred @ directions[:, [-1, -2]]
    order, drawn = [], []
    for number, family in enumerate(families):
        for new in (False, True):
            order += [i for i, (name, out, _) in enumerate(members) if name == family and out == new]
            drawn += picture["points"][2 * number + new][1]
    expected = expected[order]
    assert np.shape(drawn) == expected.shape
    signs = np.sign((np.array(drawn) * expected).sum(0))  # the sign of a principal component is arbitrary
    np.testing.assert_allclose(drawn * signs, expected, atol=1e-3 * np.abs(expected).max())
    assert variances[-2] > 1.05 * variances[-3], "the components are too similar in variance to be compared"


def test_nearest_neighbours(ran, members, embeddings):
    def right(vectors):
        count = 0
        for vector, (family, new, _) in zip(vectors, members):
            if new:
                others = [(np.linalg.norm(vector - x), name) for x, (name, out, _) in zip(vectors, members) if not out]
                count += min(others)[1] == family
        return count

    frequencies = np.array([[sequence.count(x) / len(sequence) for x in ORDER] for *_, sequence in members])
    by_embeddings, by_frequencies = right(embeddings), right(frequencies)
    assert 0 < by_embeddings < sum(new for _, new, _ in members), "too easy or too hard for a comparison"
    assert f"\n  embeddings              {by_embeddings}\n  amino acid frequencies  {by_frequencies}\n" in ran[0]


def test_heat_map(ran, each_masked):
    printed, figures = ran
    protein = figures["protein"]
    wild_type = ids_of(protein)[1:-1]
    expected = each_masked[:, [ids_of(x)[1] for x in ORDER]] - each_masked[range(len(protein)), wild_type][:, None]
    picture = figures["pictures"][1]
    [image], [marks] = picture["images"], picture["marks"]
    np.testing.assert_allclose(image, expected.T, atol=1e-3)
    assert [ORDER[int(y)] for _, y in marks] == list(protein) and [x for x, _ in marks] == [*range(1, len(protein) + 1)]
    mean = expected.sum(1) / 19
    lowest = mean.argmin()
    assert f"least tolerant positions: {protein[lowest]}{lowest + 1} ({mean[lowest]:.1f}), " in printed
