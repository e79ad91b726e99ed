"""examples/using_amplify.ipynb: its code, run from top to bottom in a new Python, against the independent AMPLIFY.

The code has no magics, so the cells run without Jupyter and tests need none of its packages (nbclient, ipykernel).
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

# Runs the code cells in one namespace, in the notebook's folder, with another model; then tells what was drawn.
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
print("FOUND", json.dumps({"protein": names["PROTEIN"], "pictures": pictures}))
"""


def name_of(token: int) -> str:
    """What the tokenizer calls it."""
    return ["<pad>", "<unk>", "<mask>", "<bos>", "<eos>", "|", *LETTERS][token]


@pytest.fixture(scope="module")
def model():
    return reference(SMALL)


@pytest.fixture(scope="module")
def ran(model, tmp_path_factory):
    """(what the notebook printed, what it made) with an exported model of random weights."""
    place = tmp_path_factory.mktemp("notebook")
    export(write(place / "source", model.state_dict()), place / "exported")
    variables = {"HF_HOME": str(place / "cache"), "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
    variables["PYTHONPATH"] = before_path(ROOT)
    result = interpreter("-c", RUN, NOTEBOOK, place / "exported", env=environment(1) | variables)
    assert result.returncode == 0, result.stderr
    printed, _, found = result.stdout.partition("FOUND ")
    return printed, json.loads(found)


@pytest.fixture(scope="module")
def proteins():
    """(family, held out, sequence) of the bundled proteins, in the order of the files."""
    found = []
    for part in ("train", "validation"):
        with dnaio.open(EXAMPLE / f"{part}.fasta.gz") as records:
            for record in records:
                name = record.name.split(" ", 1)[1].split(" OS=")[0]
                found.append((name, part == "validation", record.sequence))
    return found


@pytest.fixture(scope="module")
def members(proteins):
    """Those of the eight most frequent names that say what a protein is."""
    counts = Counter(name for name, *_ in proteins)
    known = [name for name, _ in counts.most_common() if not name.lower().endswith("uncharacterized protein")]
    return [protein for protein in proteins if protein[0] in known[:8]]


@pytest.fixture(scope="module")
def embeddings(model, members):
    """[members, H]: means over the residues of the independent model's last layer."""
    found = []
    with torch.no_grad():
        for *_, sequence in members:
            x = model.encoder(torch.tensor([ids_of(sequence)]))
            for block in model.transformer_encoder:
                x = block(x, 0.0)
            found.append(model.layer_norm_2(x)[0, 1:-1].mean(0).numpy())
    return np.array(found, np.float64)


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
    """[residues, V]: log probabilities of the independent model where each residue in turn is masked."""
    protein = ran[1]["protein"]
    ids, places = torch.tensor([ids_of(protein)] * len(protein)), torch.arange(len(protein))
    ids[places, places + 1] = 2  # <mask>, behind <bos>
    with torch.no_grad():
        return model(ids)[places, places + 1].log_softmax(-1)


def test_masked_residues(ran, proteins, each_masked):
    printed, found = ran
    protein = found["protein"]
    assert (True, protein) in [(held_out, sequence) for _, held_out, sequence in proteins]
    likeliest = each_masked[55].exp().topk(5)
    lines = [f"  {name_of(i)}  {p:.1%}" for i, p in zip(likeliest.indices.tolist(), likeliest.values.tolist())]
    assert "\n".join(["residue 56, which is C:", *lines, ""]) in printed
    first = [name_of(i) for i in each_masked.argmax(-1).tolist()]
    assert f"\nlikeliest  {''.join(first)}\n" in printed
    right = sum(name == residue for name, residue in zip(first, protein))
    assert f"\nright: {right} of {len(protein)}; always C: {protein.count('C')}\n" in printed


def test_picture_of_the_families(ran, proteins, members, embeddings):
    printed, found = ran
    picture = found["pictures"][0]
    held_out = np.array([new for _, new, _ in members])
    count = f"{len(proteins):,} proteins; {len(members)} in the eight families, {held_out.sum()} of them held out"
    assert count in printed and held_out.sum() > 8
    families = [label for label, _ in picture["points"][:-1:2]]  # of each, training and held out; last, the legend's
    assert sorted(families) == sorted({name for name, *_ in members})

    centred = embeddings - embeddings.mean(0)
    variances, directions = np.linalg.eigh(centred.T @ centred)
    expected = centred @ directions[:, [-1, -2]]
    order, drawn = [], []
    for place, family in enumerate(families):
        for new in (False, True):
            order += [i for i, (name, out, _) in enumerate(members) if name == family and out == new]
            drawn += picture["points"][2 * place + new][1]
    expected = expected[order]
    assert np.shape(drawn) == expected.shape
    signs = np.sign((np.array(drawn) * expected).sum(0))  # a direction has none
    np.testing.assert_allclose(drawn * signs, expected, atol=1e-3 * np.abs(expected).max())
    assert variances[-2] > 1.05 * variances[-3], "too close to each other to be compared"


def test_nearest_neighbours(ran, members, embeddings):
    def right(vectors):
        count = 0
        for vector, (family, new, _) in zip(vectors, members):
            if new:
                others = [(np.linalg.norm(vector - x), name) for x, (name, out, _) in zip(vectors, members) if not out]
                count += min(others)[1] == family
        return count

    frequencies = np.array([[sequence.count(x) / len(sequence) for x in ORDER] for *_, sequence in members])
    of_ours, of_frequencies = right(embeddings), right(frequencies)
    assert 0 < of_ours < sum(new for _, new, _ in members), "too easy, or too hard, to tell right from wrong"
    assert f"\n  embeddings              {of_ours}\n  amino acid frequencies  {of_frequencies}\n" in ran[0]


def test_heat_map(ran, each_masked):
    printed, found = ran
    protein = found["protein"]
    wild_type = ids_of(protein)[1:-1]
    expected = each_masked[:, [ids_of(x)[1] for x in ORDER]] - each_masked[range(len(protein)), wild_type][:, None]
    picture = found["pictures"][1]
    [image], [marks] = picture["images"], picture["marks"]
    np.testing.assert_allclose(image, expected.T, atol=1e-3)
    assert [ORDER[int(y)] for _, y in marks] == list(protein) and [x for x, _ in marks] == [*range(1, len(protein) + 1)]
    mean = expected.sum(1) / 19
    first = mean.argmin()
    assert f"least tolerant positions: {protein[first]}{first + 1} ({mean[first]:.1f}), " in printed
