"""Structure and contact files: what is read from text written by hand, against distances by plain loops."""

import gzip
import math

import numpy as np
import pytest
from structure_files import THREE, atom_line, hairpin, hairpin_contacts, mmcif, pdb

from amplify_ds.errors import AmplifyError
from amplify_ds.inference.contacts import structures
from amplify_ds.inference.contacts.sources import from_fasta, from_structures
from amplify_ds.inference.contacts.targets import Target, contacts_of, fitting, known_pairs

SEQUENCE = "MGAKLWSTVDEGRNPQYHFCIMGAKL"
NAMES = [THREE[x] for x in SEQUENCE]
PLACES = hairpin(len(SEQUENCE))


def write(path, text):
    path.write_text(text) if path.suffix != ".gz" else path.write_bytes(gzip.compress(text.encode()))
    return path


def by_loops(places, missing=()):
    """int8 [n, n]: -1 where one of the two is missing."""
    found = np.full((len(places), len(places)), -1)
    for i in range(len(places)):
        for j in range(len(places)):
            if i not in missing and j not in missing:
                found[i, j] = math.dist(places[i], places[j]) < 8
    return found


@pytest.mark.parametrize("name, text", [("a.pdb", pdb), ("a.cif", mmcif), ("a.PDB.gz", pdb), ("a.cif.gz", mmcif)])
def test_residues_without_coordinates_keep_their_places(tmp_path, name, text):
    missing = (0, 1, 7, 8, 25)
    path = write(tmp_path / name, text(NAMES, PLACES, missing=missing))
    ((found,), _) = from_structures([str(path)], lambda n: None)
    assert found.name == "a" and len(found.tokens) == len(SEQUENCE)
    assert structures.read_structure(path)[0] == SEQUENCE
    np.testing.assert_array_equal(found.contacts, by_loops(PLACES, missing))
    i, j = known_pairs(found.contacts)
    kept = {(a, b) for a in range(26) for b in range(a + 6, 26) if not {a, b} & set(missing)}
    assert set(zip(i.tolist(), j.tolist())) == kept
    expected = hairpin_contacts(26)
    assert [found.contacts[a, b] == 1 for a, b in zip(i, j)] == [expected[a, b] for a, b in zip(i, j)]


def test_8_angstrom_is_no_contact_and_a_bit_less_is():
    places = np.array([[0, 0, 0], [8, 0, 0], [0, 7.999, 0]])
    assert contacts_of(places).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]


def test_without_a_sequence_left_out_numbers_are_unknown_residues(tmp_path):
    numbers = [*range(1, 11), *range(13, 29)]
    path = write(tmp_path / "a.pdb", pdb(NAMES, PLACES, seqres=False, numbers=numbers))
    sequence, contacts = structures.read_structure(path)
    assert sequence == SEQUENCE[:10] + "XX" + SEQUENCE[10:]
    places = np.insert(PLACES, [10, 10], 0, axis=0)
    np.testing.assert_array_equal(contacts, by_loops(places, missing=(10, 11)))


def test_modified_and_foreign_residues_alternatives_and_models(tmp_path):
    names = [*NAMES[:3], "MSE", "UNK", *NAMES[5:]]
    other = atom_line("CB", [90, 90, 90], names[6], "A", 7, "B")  # the second alternative of residue 7
    first = pdb(names, PLACES, extra=[other, "ENDMDL"], end=False)
    seqres, atoms = [[x for x in first.splitlines() if x.startswith("SEQRES") == is_it] for is_it in (True, False)]
    second = pdb(names, PLACES * 9, seqres=False, extra=["ENDMDL"]).splitlines()
    text = "\n".join([*seqres, "MODEL        1", *atoms, "MODEL        2", *second]) + "\n"
    sequence, contacts = structures.read_structure(write(tmp_path / "a.pdb", text))
    assert sequence == SEQUENCE[:3] + "MX" + SEQUENCE[5:]
    np.testing.assert_array_equal(contacts, by_loops(PLACES))


def test_a_chain_is_chosen_by_name(tmp_path):
    water = "HETATM    1  O   HOH C   1       0.000   0.000   0.000  1.00 20.00           O"
    text = pdb(NAMES, PLACES, "A", end=False) + pdb(NAMES[:20], PLACES, "B", extra=[water])
    path = write(tmp_path / "1abc.pdb", text)
    with pytest.raises(AmplifyError, match=r"has the protein chains A, B; choose one: .*1abc.pdb:A"):
        structures.read_structure(path)
    with pytest.raises(AmplifyError, match="has no protein chain 'C'; it has A, B"):
        from_structures([f"{path}:C"], lambda n: None)
    found, contents = from_structures([f"{path}:B", f"{path}:A"], lambda n: None)
    assert [(x.name, len(x.tokens)) for x in found] == [("1abc:B", 20), ("1abc:A", 26)]
    assert (contents.proteins, contents.residues) == (2, 46)
    with pytest.raises(AmplifyError, match="more than once: 1abc:A"):
        from_structures([f"{path}:A", f"{path}:A"], lambda n: None)


CA_ONLY = "\n".join(atom_line("CA", place, name, "A", i) for i, (name, place) in enumerate(zip(NAMES[2:9], PLACES)))


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.pdb", "hello\n", "holds no protein chain with coordinates"),
        ("a.cif", "hello\n", "cannot be read as PDB or mmCIF"),
        ("a.cif.gz", "", "cannot be read as PDB or mmCIF|holds no protein chain"),
        ("a.txt", pdb(NAMES, PLACES), "cannot be read as PDB or mmCIF"),
        ("a.pdb", CA_ONLY, "no residue has a C-beta"),
        ("a.pdb", pdb(NAMES, PLACES).replace(" TRP A   6", " TYR A   6"), "TYR 6 has no place in the sequence"),
        ("a.pdb", pdb(NAMES, PLACES).replace("SEQRES   2", "REMARK   2"), "ASN 14 has no place"),
    ],
)
def test_files_that_are_no_structure(tmp_path, name, text, message):
    path = write(tmp_path / name, text)
    with pytest.raises(AmplifyError, match=message) as error:
        structures.read_structure(path)
    assert str(path) in str(error.value)


def test_names_that_are_no_text(tmp_path):
    (tmp_path / "a.pdb").write_bytes(pdb(NAMES, PLACES).encode().replace(b" TRP A   6", b" T\xc6P A   6"))
    with pytest.raises(AmplifyError, match="a.pdb: cannot be read as PDB or mmCIF"):
        structures.read_structure(tmp_path / "a.pdb")


def test_folders_and_what_is_not_there(tmp_path):
    with pytest.raises(AmplifyError, match="holds no structure; expected files ending in .pdb"):
        from_structures([str(tmp_path)], lambda n: None)
    with pytest.raises(AmplifyError, match="there is no such file; expected a folder, FILE or FILE:CHAIN"):
        from_structures([str(tmp_path / "absent.pdb")], lambda n: None)
    for name in ("b.pdb", "a.ent", "c.pdb.gz"):
        write(tmp_path / name, pdb(NAMES, PLACES))
    (tmp_path / "notes.md").write_text("none")
    assert [x.name for x in from_structures([str(tmp_path)], lambda n: None)[0]] == ["a", "b", "c"]


@pytest.fixture
def fasta(tmp_path):
    (tmp_path / "contacts").mkdir()
    (tmp_path / "p.fasta").write_text(">p\nMKVLA\n")
    return tmp_path


def read(folder):
    return from_fasta(folder / "p.fasta", folder / "contacts", lambda n: None)[0][0].contacts


def test_contact_files(fasta):
    (fasta / "contacts/p.txt").write_text("# of p\n1 4\n\n5  2 # and so on\n")
    found = read(fasta)
    assert {(i + 1, j + 1) for i, j in zip(*np.nonzero(found))} == {(1, 4), (4, 1), (2, 5), (5, 2)}
    (fasta / "contacts/p.txt").unlink()
    matrix = np.array([[-1, 0, 1, 0, 0]] * 5)
    matrix = np.minimum(matrix, matrix.T)
    np.save(fasta / "contacts/p.npy", matrix)
    np.testing.assert_array_equal(read(fasta), matrix)


@pytest.mark.parametrize(
    "text, message",
    [("1 6\n", "p.txt: line 1: 1 6 is no pair of the protein's residues, which are 1 to 5"),
     ("# x\n2 2\n", "line 2: 2 2 is no pair"), ("0 3\n", "line 1: 0 3 is no pair"),
     ("1 3 0 8 0.9\n", "line 1: expected two numbers of residues, found '1 3 0 8 0.9'"),
     ("A C\n", "line 1: expected two numbers"), ("-1 3\n", "expected two numbers")],
)  # fmt: skip
def test_lines_that_are_no_contact(fasta, text, message):
    (fasta / "contacts/p.txt").write_text(text)
    with pytest.raises(AmplifyError, match=message):
        read(fasta)


@pytest.mark.parametrize(
    "matrix, message",
    [(np.zeros((5, 4)), "expected a matrix of 5 by 5"), (np.full((5, 5), 2), "expected 1 .*, 0 .* and -1"),
     (np.eye(5, k=1), "is not symmetric"), (np.full((5, 5), None), "cannot be read as a NumPy array"),
     (np.full((5, 5), np.nan), "expected 1 .*, 0 .* and -1"), (np.full((5, 5), "a"), "expected 1 .*, 0 .* and -1")],
)  # fmt: skip
def test_matrices_that_are_none(fasta, matrix, message):
    np.save(fasta / "contacts/p.npy", matrix)
    with pytest.raises(AmplifyError, match=message):
        read(fasta)


def test_contacts_of_every_protein_are_needed(fasta):
    with pytest.raises(AmplifyError, match="holds no contacts of 'p'; expected p.txt"):
        read(fasta)
    with pytest.raises(AmplifyError, match="there is no such folder"):
        from_fasta(fasta / "p.fasta", fasta / "absent", lambda n: None)


def test_what_one_window_cannot_hold_is_refused_or_left_out():
    some = [Target(f"p{length}", np.zeros(length, np.uint8)) for length in (10, 38, 39, 50)]
    with pytest.raises(AmplifyError, match=r"of 4 proteins 2 have more than 38 residues.* p39 \(39\), p50 \(50\)"):
        fitting(some, 40, skip_long=False)
    kept, note = fitting(some, 40, skip_long=True)
    assert [target.name for target in kept] == ["p10", "p38"] and "left out: of 4 proteins 2" in note
    assert fitting(kept, 40, skip_long=False) == (kept, None)
    with pytest.raises(AmplifyError, match="of 2 proteins 2 have more than 38"):
        fitting(some[2:], 40, skip_long=True)
