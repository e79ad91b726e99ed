"""Scores compared with plain loops over an independent AMPLIFY, one forward pass per position."""

import csv
import gzip
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import amplify_ds
from amplify_ds.errors import AmplifyError
from amplify_ds.inference import heatmap, mutations, pipelines
from amplify_ds.inference.mutation_tables import parse_table, read_table
from amplify_ds.inference.reading import check, proteins
from amplify_ds.inference.records import Records
from amplify_ds.vocab import TOKENS
from tests.support.commands import python
from tests.support.paths import ROOT
from tests.support.properties import examples
from tests.support.small_model import ids_of, killed_and_continued, log_p, make_folder

WILD = "MKTAYIAKQRQISFVKSHFSRQ"
PROTEINS = {"wild": WILD, "odd": "mkXaZ", "one": "W", "antibody": "EVQ|DIQ", "long": "ACDEFGHIKLMNPQRSTVWY" * 3}
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"


def token(letter):
    return ids_of(letter)[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score") / "model"
    return folder, make_folder(folder, seed=1)


def write_fasta(path, sequences):
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in sequences.items()))
    return path


@pytest.mark.parametrize("one_pass", [False, True])
def test_perplexities_are_those_of_a_plain_loop(model, one_pass):
    folder, reference = model
    perplexities = amplify_ds.score(folder, PROTEINS, one_pass=one_pass, row_tokens=128)
    for name, sequence in PROTEINS.items():
        rows, ids = log_p(reference, sequence, masked=not one_pass), ids_of(sequence)[1:-1]
        losses = [-rows[position, index].item() for position, index in enumerate(ids) if index != 1]
        assert perplexities[name] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4), name
    assert math.isnan(amplify_ds.score(folder, ["XX"], one_pass=one_pass)["0"])


@pytest.mark.parametrize("one_pass", [False, True])
def test_effects_are_those_of_a_plain_loop(model, one_pass):
    folder, reference = model
    mutants = ["M1V", "q22a", "A4A", "T3W:Y5C:K8R", " I12L "]
    rows = log_p(reference, WILD, masked=not one_pass)
    expected = []
    for mutant in mutants:
        changes = [(int(x[1:-1]) - 1, x[0], x[-1]) for x in mutant.strip().upper().split(":")]
        expected.append(sum((rows[p, token(new)] - rows[p, token(old)]).item() for p, old, new in changes))
    effects = amplify_ds.mutation_effects(folder, WILD, mutants, one_pass=one_pass)
    np.testing.assert_allclose(effects, expected, atol=1e-4)
    assert effects[2] == 0 and len(set(effects.round(3))) == 5


def test_a_proteingym_table_is_scored_and_correlated(model, tmp_path):
    folder, reference = model
    rng = np.random.default_rng(0)
    rows = []
    for position in rng.integers(1, len(WILD) + 1, 40):
        new = RESIDUES[rng.integers(20)]
        sequence = WILD[: position - 1] + new + WILD[position:]
        rows.append([f"{WILD[position - 1]}{position}{new}", sequence, str(rng.integers(10)), "1"])
    rows[7][2] = ""  # not measured
    table = tmp_path / "dms.csv"
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows([["mutant", "mutated_sequence", "DMS_score", "DMS_score_bin"], *rows])
    fasta, output = write_fasta(tmp_path / "wild.fasta", {"wild": WILD}), tmp_path / "effects.csv"
    arguments = ["--model", folder, "--input", fasta, "--mutations", table, "--output", output]
    result = python("-m", "amplify_ds.score", *arguments)
    assert result.returncode == 0, result.stderr
    with open(output, newline="") as file:
        written = list(csv.DictReader(file))
    assert [list(row.values())[:4] for row in written] == rows
    log_probabilities = log_p(reference, WILD, masked=True)
    effects = [float(row["masked_marginal"]) for row in written]
    for (mutant, *_), effect in zip(rows, effects):
        row = log_probabilities[int(mutant[1:-1]) - 1]
        expected = row[token(mutant[-1])] - row[token(mutant[0])]
        assert effect == pytest.approx(expected.item(), abs=1e-4)
    pairs = [(effect, float(row[2])) for row, effect in zip(rows, effects) if row[2]]
    expected = correlation_by_counting(*zip(*pairs))
    assert f"wild: Spearman correlation with DMS_score {expected:.4f} over 39 mutations" in result.stdout


def correlation_by_counting(a, b):
    """Return Pearson's correlation of the mean ranks, computed by definition: values below, and half of the ties."""
    ranks = [[sum(y < x for y in c) + (sum(y == x for y in c) + 1) / 2 for x in c] for c in (a, b)]
    return np.corrcoef(*ranks)[0, 1]


def test_spearman():
    rng = np.random.default_rng(1)
    for _ in range(20):
        a, b = rng.integers(0, 6, 30), rng.normal(size=30).round(1)
        assert mutations.spearman(a, b) == pytest.approx(correlation_by_counting(a, b), abs=1e-12)
    assert mutations.spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1)


@pytest.mark.filterwarnings("error")  # a warning would be shown to the user
@pytest.mark.parametrize("a, b", [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [5, 5, 5]), ([1], [2]), ([], [])])
def test_spearman_of_constant_values_is_nan(a, b):
    assert math.isnan(mutations.spearman(np.array(a, float), np.array(b, float)))


def effects_of(model, tmp_path, text, sequences=None, name="table.csv", **options):
    fasta, path = write_fasta(tmp_path / "some.fasta", sequences or {"wild": WILD}), tmp_path / name
    path.write_text(text)
    table = read_table(path)
    types = {p.name: p.tokens for p in proteins(Records(fasta))}
    reader = amplify_ds.load(model[0])
    output = tmp_path / f"effects-{len(list(tmp_path.iterdir()))}.csv"
    return pipelines.effects_file(reader, types, check(Records(fasta)), table, output, True, lambda n: None, **options)


def test_a_table_of_several_proteins_names_them(model, tmp_path):
    sequences = {"a": "MKV", "b": "ACDW"}
    names, effects, _ = effects_of(model, tmp_path, "name\tmutation\nb\tW4A\na\tK2R:V3I\n", sequences, "table.tsv")
    assert names == ["b", "a"]
    for value, (sequence, mutant) in zip(effects, [("ACDW", "W4A"), ("MKV", "K2R:V3I")]):
        (expected,) = amplify_ds.mutation_effects(model[0], sequence, [mutant], one_pass=True)
        assert value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "mutant\nM1V\nA3V\nK2A\nT4A\n",
            r"2 of 4 rows do not .*\n  line 3: A3V: the residue at 3 is T, not A\n  line 5",
        ),
        ("mutant\nM0V\n", "line 2: M0V: the protein has positions 1 to 22"),
        ("mutant\nM23V\n", "line 2: M23V: the protein has positions 1 to 22"),
        ("mutant\nM1V:M1A\n", "changes position 1 twice"),
        ("mutant\nM1X\n", "'M1X' is not a substitution of the 20 residues"),
        ("mutant\nM1del\n", "'M1del' is not a substitution: insertions"),
        ("mutant,mutated_sequence\nM1V,MKT\n", "mutated_sequence differs from the input protein with this mutation"),
        ("mutant,name\nM1V,tame\n", "line 2: no protein in the input is named 'tame'"),
        ("change\nM1V\n", "expected a header with a column mutant, mutation, .* or mutated_sequence, found change"),
        ("mutant\n", "contains no mutations"),
        ("mutant,DMS_score\nM1V\n", "line 2: has 1 columns, the header has 2"),
        ("mutant,wild_type_marginal\nM1V,1\n", "already has a column wild_type_marginal"),
    ],
)
def test_rows_that_do_not_fit_are_named(model, tmp_path, text, message):
    with pytest.raises(AmplifyError, match=message):
        effects_of(model, tmp_path, text)
    assert not list(tmp_path.glob("effects*"))


def test_several_proteins_need_a_column(model, tmp_path):
    with pytest.raises(AmplifyError, match="needs a column 'name'"):
        effects_of(model, tmp_path, "mutant\nM1V\n", {"a": "MK", "b": "MV"})


def test_the_heat_map_shows_every_effect(model, tmp_path):
    folder, reference = model
    tokens = np.array(ids_of("MKXT|W")[1:-1], np.uint8)
    rows = log_p(reference, "MKXT|W", masked=True).numpy()
    effects = heatmap.effects(tokens, rows)
    for i, residue in enumerate(heatmap.ORDER):
        for j in (0, 1, 3, 5):
            assert effects[i, j] == pytest.approx(rows[j, token(residue)] - rows[j, tokens[j]], abs=1e-6)
    assert sorted(heatmap.ORDER) == sorted(RESIDUES) and np.isnan(effects[:, [2, 4]]).all()
    protein = next(proteins(Records(write_fasta(tmp_path / "long.fasta", {"long": PROTEINS["long"] * 2 + "A"}))))
    output, stats = tmp_path / "map.png", check(Records(tmp_path / "long.fasta"))
    pipelines.heatmap_file(amplify_ds.load(folder), protein, stats, output, True, lambda n: None)
    from matplotlib.image import imread

    picture = imread(output)
    assert min(picture.shape[:2]) > 600 and picture[..., :3].std() > 0.05
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.fasta", "map.png"]
    too_long = protein._replace(tokens=np.repeat(protein.tokens[:120], 100))
    with pytest.raises(AmplifyError, match="has 12,000 residues, a heat map shows at most 10,000"):
        pipelines.heatmap_file(amplify_ds.load(folder), too_long, stats, tmp_path / "b.png", True, lambda n: None)


def test_a_killed_command_continues_to_the_same_bytes(model, tmp_path):
    fasta = write_fasta(tmp_path / "some.fasta", PROTEINS)
    arguments = ["--model", str(model[0]), "--input", str(fasta)]
    killed_and_continued("amplify_ds.score", arguments, tmp_path / "whole.csv", tmp_path / "killed.csv")
    with open(tmp_path / "killed.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = amplify_ds.score(model[0], PROTEINS)
    assert [row["length"] + row["unknown"] for row in rows[:2]] == ["220", "52"]
    for row in rows:
        assert float(row["pseudo_perplexity"]) == pytest.approx(expected[row["name"]], rel=1e-4)


@pytest.mark.parametrize(
    "arguments, text",
    [
        ([], "give either --output"),
        (["--output", "a.csv", "--heatmap", "b.png"], "give either --output"),
        (["--output", "a.csv", "--protein", "x"], "--protein needs --heatmap"),
        (["--output", "a.csv", "--offset", "24"], "--offset needs --mutations"),
    ],
)
def test_contradictory_flags_are_refused(arguments, text, capsys, monkeypatch):
    from runpy import run_module

    monkeypatch.setattr("sys.argv", ["score", "--model", "m", "--input", "f", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        run_module("amplify_ds.score", run_name="__main__")
    assert exit_info.value.code == 2 and text in capsys.readouterr().err


CASES = ROOT / "tests/cases"


@pytest.fixture(scope="module")
def deep_scan():
    """Return {name: tokens} of the protein that the tables in tests/cases are about."""
    return {p.name: p.tokens for p in proteins(Records(CASES / "dms_wt.fasta"))}


def changes_of(deep_scan, name, offset=0):
    """Return the changes of each row of a table, as text."""
    parsed = parse_table(read_table(CASES / name), deep_scan, offset)
    return [":".join(f"{TOKENS[old]}{index + 1}{TOKENS[new]}" for index, old, new in changes) for _, changes in parsed]


def test_an_offset_is_suggested_and_applied(deep_scan):
    with pytest.raises(
        AmplifyError, match="5 of 5 rows do not fit.*\n(.*\n)+With --offset 24 all wild-type residues fit"
    ):
        changes_of(deep_scan, "offset24.csv")
    assert changes_of(deep_scan, "offset24.csv", 24) == ["M1G", "K2G", "T3G", "A4G", "Y5G"]


def test_several_mutations_with_any_separator(deep_scan, tmp_path):
    assert changes_of(deep_scan, "slash.csv") == ["M1V:K2R"]
    wild = deep_scan["wt"]
    for text in ("M1V:K2R", "M1V;K2R", "M1V,K2R", "m1v+k2r", "M1V K2R", "p.[Met1Val;Lys2Arg]", "p.Met1Val/p.Lys2Arg"):
        assert mutations.parse(text, wild) == mutations.parse("M1V:K2R", wild), text
    assert mutations.parse("p.(Met1Val)", wild) == mutations.parse("M1V", wild)
    assert mutations.parse("p.Met1=", wild) == [(0, TOKENS.index("M"), TOKENS.index("M"))]


def test_rows_of_the_wild_type_have_effect_0_and_are_not_in_the_correlation(deep_scan, model, tmp_path):
    changes = changes_of(deep_scan, "with_wt_row.csv")
    with open(CASES / "with_wt_row.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert changes == ["", *(row["mutant"] for row in rows[1:])]
    arguments = ["--input", CASES / "dms_wt.fasta", "--mutations", CASES / "with_wt_row.csv", "--one-pass"]
    result = python("-m", "amplify_ds.score", "--model", model[0], *arguments, "--output", tmp_path / "out.csv")
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "out.csv", newline="") as file:
        written = list(csv.DictReader(file))
    effects = [float(row["wild_type_marginal"]) for row in written]
    assert effects[0] == 0 and "note: 1 rows are the wild type" in result.stdout
    expected = correlation_by_counting(effects[1:], [float(row["DMS_score"]) for row in rows[1:]])
    assert f"DMS_score {expected:.4f} over {len(rows) - 1} mutations" in result.stdout


def test_mutations_given_as_sequences_only(deep_scan):
    (wild,) = (sequence for _, sequence in Records(CASES / "dms_wt.fasta"))
    with open(CASES / "subs_only_sequence.csv", newline="") as file:
        sequences = [row["mutated_sequence"] for row in csv.DictReader(file)]
    expected = [
        ":".join(f"{a}{position}{b}" for position, (a, b) in enumerate(zip(wild, sequence), 1) if a != b)
        for sequence in sequences
    ]
    assert changes_of(deep_scan, "subs_only_sequence.csv") == expected and len(expected) > 30


def test_insertions_and_deletions_are_refused(deep_scan):
    with pytest.raises(AmplifyError, match="line 2: the sequence has 118 residues, the protein has 120: insertions"):
        changes_of(deep_scan, "indels_v0.csv")
    for text in ("K2del", "p.Lys2_Thr3insGly", "M1*", "p.Lys2Ter", "p.Lys2fs"):
        with pytest.raises(mutations.Malformed, match="not a substitution"):
            mutations.parse(text, deep_scan["wt"])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["a.csv", "a.txt.gz"])
def test_tables_with_any_delimiter_compression_and_byte_order_mark(tmp_path, delimiter, name):
    text = "\ufeff" + "".join(f"{a}{delimiter}{b}\r\n" for a, b in (("hgvs_pro", "DMS_score"), ("p.Met1Val", "1.5")))
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    table = read_table(tmp_path / name)
    assert table.mutants == ["p.Met1Val"] and table.measured().tolist() == [1.5] and table.lines == [2]


ONE_TO_THREE = dict(
    zip(RESIDUES, "Ala Cys Asp Glu Phe Gly His Ile Lys Leu Met Asn Pro Gln Arg Ser Thr Val Trp Tyr".split())
)


@examples()
@given(st.dictionaries(st.integers(1, len(WILD)), st.sampled_from(RESIDUES), min_size=1, max_size=6), st.data())
def test_mutations_in_any_notation(changes, data):
    """Substitutions in any notation are parsed as the differences between the wild type and the mutated sequence."""
    mutant = "".join(changes.get(position, residue) for position, residue in enumerate(WILD, 1))
    offset = data.draw(st.integers(-30, 400))
    parts = []
    for position, new in data.draw(st.permutations(sorted(changes.items()))):
        old, number, three = WILD[position - 1], position + offset, data.draw(st.booleans())
        parts.append(f"{ONE_TO_THREE[old]}{number}{ONE_TO_THREE[new]}" if three else f"{old}{number}{new}")
    text = data.draw(st.sampled_from([":", "/", ";", ",", "+", " ", ": "])).join(parts)
    text = data.draw(st.sampled_from(["{}", "p.{}", "p.[{}]", " {} "])).format(text)
    tokens = np.array(ids_of(WILD)[1:-1], np.uint8)
    parsed = [change for change in mutations.parse(text, tokens, offset) if change[1] != change[2]]
    assert parsed == mutations.compare(mutant, tokens)
    assert [index + 1 for index, _, _ in parsed] == [p for p in sorted(changes) if changes[p] != WILD[p - 1]]
