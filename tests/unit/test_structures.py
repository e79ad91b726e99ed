"""Structure and contact files: hand-written text is read and compared with distances by plain loops."""

import gzip
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amplify_ds.errors import AmplifyError
from amplify_ds.inference.contacts import structures
from amplify_ds.inference.contacts.sources import from_records, from_structures
from amplify_ds.inference.contacts.targets import Target, contacts_of, known_pairs, limit_length
from amplify_ds.inference.records import Records
from tests.support.structure_files import (
    THREE,
    atom_line,
    bonded_chain,
    hairpin,
    hairpin_contacts,
    mmcif,
    mmcif_atoms,
    pdb,
    pdb_atoms,
    plain_reading,
)

SEQUENCE = "MGAKLWSTVDEGRNPQYHFCIMGAKL"
NAMES = [THREE[x] for x in SEQUENCE]
COORDINATES = hairpin(len(SEQUENCE))


def write(path, text):
    path.write_text(text) if path.suffix != ".gz" else path.write_bytes(gzip.compress(text.encode()))
    return path


def by_loops(coordinates, missing=()):
    """Return int8 [n, n] of contacts; -1 if one of the two residues is missing."""
    contacts = np.full((len(coordinates), len(coordinates)), -1)
    for i in range(len(coordinates)):
        for j in range(len(coordinates)):
            if i not in missing and j not in missing:
                contacts[i, j] = math.dist(coordinates[i], coordinates[j]) < 8
    return contacts


@pytest.mark.parametrize("name, text", [("a.pdb", pdb), ("a.cif", mmcif), ("a.PDB.gz", pdb), ("a.cif.gz", mmcif)])
def test_residues_without_coordinates_keep_their_positions(tmp_path, name, text):
    missing = (0, 1, 7, 8, 25)
    path = write(tmp_path / name, text(NAMES, COORDINATES, missing=missing))
    ((target,), _) = from_structures([str(path)], lambda n: None)
    assert target.name == "a" and len(target.tokens) == len(SEQUENCE)
    assert structures.read_structure(path)[0] == SEQUENCE
    np.testing.assert_array_equal(target.contacts, by_loops(COORDINATES, missing))
    i, j = known_pairs(target.contacts)
    known = {(a, b) for a in range(26) for b in range(a + 6, 26) if not {a, b} & set(missing)}
    assert set(zip(i.tolist(), j.tolist())) == known
    expected = hairpin_contacts(26)
    assert [target.contacts[a, b] == 1 for a, b in zip(i, j)] == [expected[a, b] for a, b in zip(i, j)]


def test_a_contact_is_below_8_angstrom():
    coordinates = np.array([[0, 0, 0], [8, 0, 0], [0, 7.999, 0]])
    assert contacts_of(coordinates).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]


def test_without_a_sequence_missing_numbers_are_unknown_residues(tmp_path):
    numbers = [*range(1, 11), *range(13, 29)]
    path = write(tmp_path / "a.pdb", pdb(NAMES, COORDINATES, seqres=False, numbers=numbers))
    sequence, contacts = structures.read_structure(path)
    assert sequence == SEQUENCE[:10] + "XX" + SEQUENCE[10:]
    coordinates = np.insert(COORDINATES, [10, 10], 0, axis=0)
    np.testing.assert_array_equal(contacts, by_loops(coordinates, missing=(10, 11)))


def test_modified_and_foreign_residues_alternatives_and_models(tmp_path):
    names = [*NAMES[:3], "MSE", "UNK", *NAMES[5:]]
    alternative = atom_line("CB", [90, 90, 90], names[6], "A", 7, "B")
    first = pdb(names, COORDINATES, extra=[alternative, "ENDMDL"], end=False)
    seqres, atoms = [[x for x in first.splitlines() if x.startswith("SEQRES") == flag] for flag in (True, False)]
    second = pdb(names, COORDINATES * 9, seqres=False, extra=["ENDMDL"]).splitlines()
    text = "\n".join([*seqres, "MODEL        1", *atoms, "MODEL        2", *second]) + "\n"
    sequence, contacts = structures.read_structure(write(tmp_path / "a.pdb", text))
    assert sequence == SEQUENCE[:3] + "MX" + SEQUENCE[5:]
    np.testing.assert_array_equal(contacts, by_loops(COORDINATES))


def test_a_chain_is_chosen_by_name(tmp_path):
    water = "HETATM    1  O   HOH C   1       0.000   0.000   0.000  1.00 20.00           O"
    text = pdb(NAMES, COORDINATES, "A", end=False) + pdb(NAMES[:20], COORDINATES, "B", extra=[water])
    path = write(tmp_path / "1abc.pdb", text)
    with pytest.raises(AmplifyError, match=r"has the protein chains A, B; choose one: .*1abc.pdb:A"):
        structures.read_structure(path)
    with pytest.raises(AmplifyError, match="has no protein chain 'C'; it has A, B"):
        from_structures([f"{path}:C"], lambda n: None)
    targets, stats = from_structures([f"{path}:B", f"{path}:A"], lambda n: None)
    assert [(x.name, len(x.tokens)) for x in targets] == [("1abc:B", 20), ("1abc:A", 26)]
    assert (stats.proteins, stats.residues) == (2, 46)
    with pytest.raises(AmplifyError, match="more than once: 1abc:A"):
        from_structures([f"{path}:A", f"{path}:A"], lambda n: None)


def read_text(folder, text, chain=None):
    path = folder / ("a.cif" if text.startswith("data_") else "a.pdb")
    return structures.read_structure(write(path, text), chain)


def expected(text):
    """Return (sequence, contacts) of PDB records, by the plain reader and plain loops."""
    names, coordinates = plain_reading(text)
    letters = {three: one for one, three in THREE.items()}
    unknown = [i for i, xyz in enumerate(coordinates) if xyz is None]
    return "".join(letters.get(name, "X") for name in names), by_loops([x or (0, 0, 0) for x in coordinates], unknown)


def same(result, expected_result):
    assert result[0] == expected_result[0]
    np.testing.assert_array_equal(result[1], expected_result[1])


def shifted(atoms, begin, by):
    """Move the residues from `begin` on, which opens the bond before them."""
    return [replace(x, position=x.position + by) if x.index >= begin else x for x in atoms]


ATOMS = bonded_chain(NAMES, COORDINATES)
SEQRES = "".join(f"{line}\n" for line in pdb(NAMES, COORDINATES).splitlines() if line.startswith("SEQRES"))
PLAIN = [str(i) for i in range(1, 27)]
IMGT = "1 2 3 4 5 6 7 8 9 11 12 13 26 27 28 35 36 37 110 111 111A 111B 112B 112A 112 113".split()
NUMBERINGS = {
    "IMGT": IMGT,
    "insertion codes": [*PLAIN[:8], "8A", "8B", "8C", *PLAIN[8:23]],
    "negative": [str(i) for i in (-5, -4, -3, -2, -1, *range(1, 22))],
    "fusion": [*PLAIN[:9], *(str(i) for i in range(1002, 1010)), *(str(i) for i in range(230, 239))],
    "backwards": [str(i) for i in range(26, 0, -1)],
    "thousands": [str(i) for i in range(-900, 9101, 400)],
}


@pytest.mark.parametrize("numbers", NUMBERINGS.values(), ids=list(NUMBERINGS))
def test_a_jump_in_numbers_between_bonded_neighbours_is_not_a_gap(tmp_path, numbers):
    same(read_text(tmp_path, pdb_atoms(ATOMS, numbers)), (SEQUENCE, by_loops(COORDINATES)))
    for labels in (None, list(range(1, 27)), [int(x.strip("AB")) for x in numbers] if numbers is IMGT else None):
        same(read_text(tmp_path, mmcif_atoms(ATOMS, numbers, labels)), (SEQUENCE, by_loops(COORDINATES)))


@pytest.mark.parametrize("labels", [None, [1, 2, 3, 4, 5, 6, *range(7, 27)], [1, 2, 3, 4, 5, 6, *range(10, 30)]])
def test_at_an_open_bond_the_numbers_give_the_gap(tmp_path, labels):
    """Also if label_seq_id of an mmCIF file is consecutive; if it jumps, it gives the gap."""
    # Jumps from -9 to -4, 4 to 2 and 3 to 30 are at closed bonds, the one from 0 to 4 at the open bond.
    numbers = ["-9", *(str(i) for i in range(-4, 1)), "4", "2", "3", *map(str, range(30, 47))]
    atoms = shifted(ATOMS, 6, [3, 0, 0])
    sequence, contacts = read_text(
        tmp_path, mmcif_atoms(atoms, numbers, labels) if labels else pdb_atoms(atoms, numbers)
    )
    assert sequence == SEQUENCE[:6] + "XXX" + SEQUENCE[6:]
    coordinates = np.insert(COORDINATES + np.where(np.arange(26) >= 6, 3, 0)[:, None] * [1, 0, 0], [6, 6, 6], 0, axis=0)
    np.testing.assert_array_equal(contacts, by_loops(coordinates, missing=(6, 7, 8)))


@pytest.mark.parametrize(
    "before, after, labels, missing",
    [
        ("52", "52A", None, 0),
        ("52A", "52B", None, 0),
        ("52A", "53", None, 0),
        ("52", "53", None, 0),
        ("52", "54", None, 1),
        ("-1", "1", None, 1),
        ("52", "54", 6, 5),
        ("54", "52", 6, 5),
        ("52", "54", 400, 1),
    ],
)
def test_number_of_residues_missing_at_an_open_bond(tmp_path, before, after, labels, missing):
    """labels: the difference of label_seq_id at the open bond; a jump that is too large is ignored."""
    numbers = [*(str(i) for i in range(900, 905)), before, after, *(str(i) for i in range(800, 819))]
    label_seq = [*range(1, 7), *range(6 + (labels or 1), 26 + (labels or 1))]
    sequence, _ = read_text(tmp_path, mmcif_atoms(shifted(ATOMS, 6, [3, 0, 0]), numbers, label_seq))
    assert sequence == SEQUENCE[:6] + "X" * missing + SEQUENCE[6:]


def test_decreasing_numbers_at_a_bond_open_by_its_c_alphas_are_refused(tmp_path):
    atoms = [x for x in shifted(ATOMS, 6, [3, 0, 0]) if x.name in ("CA", "CB")]
    with pytest.raises(AmplifyError, match="no bond joins TRP 26 and SER 25, and their numbers do not show"):
        read_text(tmp_path, pdb_atoms(atoms, [*(str(i) for i in range(21, 27)), *(str(i) for i in range(25, 5, -1))]))


@pytest.mark.parametrize("length, closed", [(1.33, True), (1.95, True), (2.1, False), (2.5, False)])
def test_a_bond_is_closed_below_2_angstrom(tmp_path, length, closed):
    atoms = shifted(ATOMS, 6, [0, length - 1.33, 0])
    numbers = [*PLAIN[:6], *(str(i) for i in range(9, 29))]
    assert read_text(tmp_path, pdb_atoms(atoms, numbers))[0] == SEQUENCE[:6] + "XX" * (not closed) + SEQUENCE[6:]


@pytest.mark.parametrize(
    "kept, shift, closed",
    [
        (("CA", "CB"), 0, True),
        (("CA", "CB"), 1.3, False),
        (("N", "CA", "CB"), 0, True),
        (("CA", "C", "CB"), 1.3, False),
    ],
)
def test_without_c_or_n_the_c_alphas_are_compared(tmp_path, kept, shift, closed):
    """They are 3.4 Å apart, and 4.7 after the shift; neither neighbour is a GLY, whose C-alpha is 1.5 Å lower."""
    atoms = [x for x in shifted(ATOMS, 6, [0, shift, 0]) if x.name in kept]
    numbers = [*PLAIN[:6], *(str(i) for i in range(9, 29))]
    assert read_text(tmp_path, pdb_atoms(atoms, numbers))[0] == SEQUENCE[:6] + "XX" * (not closed) + SEQUENCE[6:]


def test_a_chromophore_with_other_atom_names_is_bonded_by_its_nearest_atoms(tmp_path):
    names = [*NAMES[:5], "CRO", *NAMES[6:]]
    renamed = {"N": "N1", "CA": "CA1", "C": "C3", "CB": "CB1"}
    atoms = [replace(x, name=renamed[x.name]) if x.index == 5 else x for x in bonded_chain(names, COORDINATES)]
    numbers = [*PLAIN[:5], "7", *(str(i) for i in range(9, 29))]  # GFP: 64, 66, 68
    result = read_text(tmp_path, pdb_atoms(atoms, numbers, hetero=("CRO",)))
    same(result, (SEQUENCE[:5] + "T" + SEQUENCE[6:], by_loops(COORDINATES, missing=(5,))))


def test_a_residue_without_a_number_next_to_a_gap_is_refused(tmp_path):
    text = mmcif_atoms(shifted(ATOMS, 6, [3, 0, 0]), [*PLAIN[:6], "77", *PLAIN[7:26]])
    assert " 77 ? A 1" in text
    with pytest.raises(AmplifyError, match="no bond joins TRP .* do not show how many residues are missing"):
        read_text(tmp_path, text.replace(" 77 ? A 1", " ? ? A 1"))


@pytest.mark.parametrize(
    "numbers, shift",
    [
        ([*PLAIN[:6], *(str(i) for i in range(1006, 1026))], [9, 0, 0]),  # the numbers of a fusion protein
        ([*PLAIN[:6], *PLAIN[:20]], [9, 0, 0]),  # a second molecule
        ([*(str(i) for i in range(21, 27)), *PLAIN[:20]], [9, 0, 0]),
        (PLAIN, [60, 0, 0]),  # a molecule cut by the edge of a periodic box
        ([*PLAIN[:6], *(str(i) for i in range(9, 29))], [60, 0, 0]),  # two residues cannot span the distance
    ],
    ids=["fusion", "second molecule", "backwards", "far", "too few"],
)
def test_gaps_that_the_numbers_do_not_explain_are_refused(tmp_path, numbers, shift):
    text = pdb_atoms(shifted(ATOMS, 6, shift), numbers)
    with pytest.raises(AmplifyError, match=f"no bond joins TRP {numbers[5]} and SER {numbers[6]} .* do not show"):
        read_text(tmp_path, text)
    assert read_text(tmp_path, SEQRES + text)[0] == SEQUENCE, "a file with a sequence needs no numbers"


def test_more_residues_missing_than_present_is_refused(tmp_path):
    """Free amino acids in one chain, for example ligands in ATOM records."""
    atoms = [replace(x, position=x.position + [9 * x.index, 0, 0]) for x in ATOMS if x.index < 5]
    with pytest.raises(AmplifyError, match=r"numbers more residues are missing \(396\) than present \(5\)"):
        read_text(tmp_path, pdb_atoms(atoms, [str(i) for i in range(501, 902, 100)]))


def test_two_residues_with_one_number_are_refused(tmp_path):
    for second in (5, 3):  # a residue with another name; a LEU after a LEU, which could be merged with it
        atoms = [replace(x, residue="LEU") if x.index == second else x for x in ATOMS]
        numbers = [*PLAIN[:second], "5" if second == 5 else "3", *PLAIN[second + 1 :]]
        with pytest.raises(AmplifyError, match=f"several residues have the number {numbers[second]} and are not"):
            read_text(tmp_path, pdb_atoms(atoms, numbers))


def alternatives(index, *conformers):
    """Return ATOMS with conformers of one residue: (letter, occupancy, shift, atoms left out, residue name)."""
    atoms = [x for x in ATOMS if x.index < index]
    for letter, occupancy, shift, without, *name in conformers:
        atoms += [
            replace(
                x, position=x.position + shift, letter=letter, occupancy=occupancy, residue=(name or [x.residue])[0]
            )
            for x in ATOMS
            if x.index == index and x.name not in without
        ]
    return [*atoms, *(x for x in ATOMS if x.index > index)]


BACKBONE = ("N", "CA", "C")
FAR = np.array([0, 0, 50])
CONFORMERS = {
    "the second": ([("A", 0.3, FAR, ()), ("B", 0.7, 0, ())], "here"),
    "the first": ([("A", 0.7, 0, ()), ("B", 0.3, FAR, ())], "here"),
    "equal: the first letter": ([("B", 0.5, FAR, ()), ("A", 0.5, 0, ())], "here"),
    "three": ([("A", 0.33, FAR, ()), ("B", 0.33, FAR, ()), ("C", 0.34, 0, ())], "here"),
    "common atoms": ([(" ", 1.0, 0, ("CB",)), ("A", 0.2, FAR, BACKBONE), ("B", 0.8, 0, BACKBONE)], "here"),
    "a lettered one beside a blank one": ([(" ", 0.4, FAR, ()), ("B", 0.6, 0, ())], "here"),
    "one atom blank too": ([(" ", 1.0, 0, ("CB",)), ("A", 0.3, FAR, ("N", "C")), ("B", 0.7, 0, BACKBONE)], "here"),
    "never atoms of two": ([("A", 0.6, 0, ("CB",)), ("B", 0.4, FAR, ())], "unknown"),
}


@pytest.mark.parametrize("conformers, where", CONFORMERS.values(), ids=list(CONFORMERS))
def test_the_conformer_with_the_highest_occupancy_is_used(tmp_path, conformers, where):
    atoms = alternatives(6, *conformers)
    result = SEQUENCE, by_loops(COORDINATES, missing=() if where == "here" else (6,))
    for text in (pdb_atoms(atoms, PLAIN), mmcif_atoms(atoms, PLAIN)):
        same(read_text(tmp_path, text), result)


def test_conformers_are_compared_by_mean_occupancy_not_by_number_of_atoms(tmp_path):
    atoms = alternatives(6, ("A", 0.4, FAR, ()), ("B", 0.6, 0, ("N", "CA")))
    same(read_text(tmp_path, SEQRES + pdb_atoms(atoms, PLAIN)), (SEQUENCE, by_loops(COORDINATES)))


@pytest.mark.parametrize("serine, letter", [(0.4, "T"), (0.6, "S"), (0.5, "S")])
def test_of_two_residues_at_one_site_the_one_with_the_higher_occupancy_is_used(tmp_path, serine, letter):
    first, second = (0, FAR) if letter == "S" else (FAR, 0)
    atoms = alternatives(6, ("A", serine, first, (), "SER"), ("B", 1 - serine, second, (), "THR"))
    result = SEQUENCE[:6] + letter + SEQUENCE[7:], by_loops(COORDINATES)
    for text in (pdb_atoms(atoms, PLAIN), mmcif_atoms(atoms, PLAIN), SEQRES + pdb_atoms(atoms, PLAIN)):
        same(read_text(tmp_path, text), result)


HEME = "HETATM 9001 FE   HEM A{:4}      10.000  10.000  10.000  1.00 20.00          FE\n"
WATER = "HETATM 9002  O   HOH A{:4}      12.000  10.000  10.000  1.00 20.00           O\n"
GLUTAMATE = "".join(
    f"HETATM 9{i:03}  {atom:<3} GLU A 401      {20 + i}.000  30.000  30.000  1.00 20.00\n"
    for i, atom in enumerate(("N", "CA", "C", "CB"))
)
TER = "TER    9000      LEU A  26\n"


@pytest.mark.parametrize(
    "order",
    [
        "{0}{1}{heme}{water}{glutamate}",
        "{0}{1}{ter}{glutamate}{heme}{water}",
        "{0}{heme}{1}",
        "{heme}{0}{water}{1}{ter}",
        "{glutamate}{0}{1}",
        "{0}{1}{ter}{heme}{ter}{water}{ter}",
        "{seqres}{0}{heme}{1}{water}",
        "{seqres}{heme}{0}{1}{glutamate}",
    ],
)
def test_ligands_and_water_are_not_residues_wherever_they_are_in_the_file(tmp_path, order):
    first, second = (pdb_atoms([x for x in ATOMS if (x.index < 9) == begin], PLAIN) for begin in (True, False))
    text = order.format(
        first, second, heme=HEME.format(500), water=WATER.format(601), glutamate=GLUTAMATE, ter=TER, seqres=SEQRES
    )
    same(read_text(tmp_path, text), (SEQUENCE, by_loops(COORDINATES)))


def test_modified_residues_and_force_field_names(tmp_path):
    names = ["ACE", "MSE", "SEP", "HSD", "CYX", "HIE", "TPO", "QQQ", "ZZZ", *NAMES[9:25], "NME"]
    modres = "MODRES 1ABC ZZZ A    9  TRP  MADE UP\n"
    atoms = pdb_atoms(bonded_chain(names, COORDINATES), PLAIN, hetero=("MSE", "SEP", "ZZZ"))
    sequence, _ = read_text(tmp_path, modres + atoms)
    assert sequence == "MSHCHTXW" + SEQUENCE[9:25], "caps are left out, an unknown residue is an X"


def test_modified_residues_at_the_ends_belong_to_the_chain(tmp_path):
    """Without TER: the first one, before a gap, and the last one, which is bonded; a free one after it does not."""
    names = ["MSE", *NAMES[1:25], "SEP"]
    atoms = [x for x in bonded_chain(names, COORDINATES) if x.index != 1]
    text = pdb_atoms(atoms, PLAIN, hetero=("MSE", "SEP")) + GLUTAMATE.replace("GLU", "MSE")
    same(read_text(tmp_path, text), ("MX" + SEQUENCE[2:25] + "S", by_loops(COORDINATES, missing=(1,))))


def test_the_c_alpha_of_a_modified_glycine_is_used(tmp_path):
    names = [*NAMES[:5], "SAR", *NAMES[6:]]
    atoms = [x for x in bonded_chain(names, COORDINATES) if (x.index, x.name) != (5, "CB")]
    alpha = next(x.position for x in atoms if (x.index, x.name) == (5, "CA"))
    result = SEQUENCE[:5] + "G" + SEQUENCE[6:], by_loops([*COORDINATES[:5], alpha, *COORDINATES[6:]])
    same(read_text(tmp_path, pdb_atoms(atoms, PLAIN, hetero=("SAR",))), result)


def test_dna_next_to_a_protein_is_not_a_protein_chain(tmp_path):
    seqres = SEQRES + "SEQRES   1 B    3   DA  DC  DG\n"
    dna = "".join(
        f"ATOM   9{i:03}  {atom:<3}  {name} B{i:4}      {20 + 6 * i}.000  30.000  {30 + j}.000  1.00 20.00\n"
        for i, name in enumerate(("DA", "DC", "DG"), 1)
        for j, atom in enumerate(("P", "C1'", "C4'"))
    )
    same(read_text(tmp_path, seqres + pdb_atoms(ATOMS, PLAIN) + TER + dna), (SEQUENCE, by_loops(COORDINATES)))


def test_two_proteins_with_one_chain_name_are_refused(tmp_path):
    text = mmcif_atoms(ATOMS, PLAIN)
    more = mmcif_atoms(shifted(ATOMS, 0, [0, 0, 90]), [str(i) for i in range(41, 67)]).replace(" B 1 . ", " C 2 . ")
    with pytest.raises(AmplifyError, match=r"2 proteins are named chain A \(label_asym_id B, C\)"):
        read_text(tmp_path, text + "".join(x + "\n" for x in more.splitlines() if x.startswith("ATOM")))


@st.composite
def chains(draw):
    """Draw (atoms, numbers) with missing residues, jumps in numbers, insertion codes and conformers."""
    length = draw(st.integers(8, 24))
    names = draw(st.lists(st.sampled_from(list(THREE.values())), min_size=length, max_size=length))
    missing = draw(st.sets(st.integers(1, length - 2), max_size=length // 3))
    numbers, number, code = [], draw(st.integers(-30, 200)), ""
    for i in range(length):
        step = draw(st.sampled_from([1, 1, 1, 2, 7, 12, "code", -40]))
        if isinstance(step, int) and (step > 0 or not {i, i - 1} & missing):
            number, code = number + step, ""
        elif {i, i - 1} & missing or code == "F":
            number, code = number + 1, ""
        else:
            code = chr(ord(code or "@") + 1)
        numbers.append(f"{number}{code}")
    if len(set(numbers)) < length:  # a step back reached a number that is taken
        numbers = [str(i) for i in range(1, length + 1)]
    atoms = [x for x in bonded_chain(names, hairpin(length)) if x.index not in missing]
    for index in draw(st.sets(st.integers(0, length - 1), max_size=5)):
        residue = [x for x in atoms if x.index == index]
        count = draw(st.integers(2, 4))
        occupancies = draw(st.lists(st.sampled_from([0.1, 0.25, 0.3, 0.33, 0.5]), min_size=count, max_size=count))
        letters = draw(st.permutations("ABCD"[:count]))
        split = [
            replace(x, letter=letter, occupancy=occupancy, position=x.position + [0, 0, 0.4 * j])
            for j, (letter, occupancy) in enumerate(zip(letters, occupancies))
            for x in residue
        ]
        atoms = sorted([x for x in atoms if x.index != index] + split, key=lambda x: x.index)
    return atoms, numbers


@settings(deadline=None)
@given(chains())
def test_any_chain_is_read_as_by_a_plain_reader(tmp_path_factory, chain):
    text = pdb_atoms(*chain)
    folder = tmp_path_factory.mktemp("any")
    same(read_text(folder, text), expected(text))
    same(read_text(folder, mmcif_atoms(*chain)), expected(text))


CA_ONLY = "\n".join(atom_line("CA", xyz, name, "A", i) for i, (name, xyz) in enumerate(zip(NAMES[2:9], COORDINATES)))


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.pdb", "hello\n", "contains no protein chain with coordinates"),
        ("a.cif", "hello\n", "cannot be read as PDB or mmCIF"),
        ("a.cif.gz", "", "cannot be read as PDB or mmCIF|contains no protein chain"),
        ("a.txt", pdb(NAMES, COORDINATES), "cannot be read as PDB or mmCIF"),
        ("a.pdb", CA_ONLY, "no residue has a C-beta"),
        ("a.pdb", pdb(NAMES, COORDINATES).replace(" TRP A   6", " TYR A   6"), "TYR 6 does not match the sequence"),
        ("a.pdb", pdb(NAMES, COORDINATES).replace("SEQRES   2", "REMARK   2"), "ASN 14 does not match"),
    ],
)
def test_files_that_are_not_structures(tmp_path, name, text, message):
    path = write(tmp_path / name, text)
    with pytest.raises(AmplifyError, match=message) as error:
        structures.read_structure(path)
    assert str(path) in str(error.value)


def test_residue_names_that_are_not_utf_8(tmp_path):
    (tmp_path / "a.pdb").write_bytes(pdb(NAMES, COORDINATES).encode().replace(b" TRP A   6", b" T\xc6P A   6"))
    with pytest.raises(AmplifyError, match="a.pdb: cannot be read as PDB or mmCIF"):
        structures.read_structure(tmp_path / "a.pdb")


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(AmplifyError, match="contains no structure; expected files ending in .pdb"):
        from_structures([str(tmp_path)], lambda n: None)
    with pytest.raises(AmplifyError, match="there is no such file; expected a folder, FILE or FILE:CHAIN"):
        from_structures([str(tmp_path / "absent.pdb")], lambda n: None)
    for name in ("b.pdb", "a.ent", "c.pdb.gz"):
        write(tmp_path / name, pdb(NAMES, COORDINATES))
    (tmp_path / "notes.md").write_text("none")
    assert [x.name for x in from_structures([str(tmp_path)], lambda n: None)[0]] == ["a", "b", "c"]


@pytest.fixture
def fasta(tmp_path):
    (tmp_path / "contacts").mkdir()
    (tmp_path / "p.fasta").write_text(">p\nMKVLA\n")
    return tmp_path


def read(folder):
    return from_records(Records(folder / "p.fasta"), folder / "contacts", lambda n: None)[0][0].contacts


def test_contact_files(fasta):
    (fasta / "contacts/p.txt").write_text("# of p\n1 4\n\n5  2 # and so on\n")
    contacts = read(fasta)
    assert {(i + 1, j + 1) for i, j in zip(*np.nonzero(contacts))} == {(1, 4), (4, 1), (2, 5), (5, 2)}
    (fasta / "contacts/p.txt").unlink()
    matrix = np.array([[-1, 0, 1, 0, 0]] * 5)
    matrix = np.minimum(matrix, matrix.T)
    np.save(fasta / "contacts/p.npy", matrix)
    np.testing.assert_array_equal(read(fasta), matrix)


@pytest.mark.parametrize(
    "text, message",
    [
        ("1 6\n", "p.txt: line 1: 1 6 is not a pair of residues of the protein; .* from 1 to 5"),
        ("# x\n2 2\n", "line 2: 2 2 is not a pair"),
        ("0 3\n", "line 1: 0 3 is not a pair"),
        ("1 3 0 8 0.9\n", "line 1: expected two residue numbers, found '1 3 0 8 0.9'"),
        ("A C\n", "line 1: expected two residue numbers"),
        ("-1 3\n", "expected two residue numbers"),
    ],
)
def test_lines_that_are_not_contacts(fasta, text, message):
    (fasta / "contacts/p.txt").write_text(text)
    with pytest.raises(AmplifyError, match=message):
        read(fasta)


@pytest.mark.parametrize(
    "matrix, message",
    [
        (np.zeros((5, 4)), "expected a matrix of 5 by 5"),
        (np.full((5, 5), 2), "expected only 1 .*, 0 .* and -1"),
        (np.eye(5, k=1), "the matrix is not symmetric"),
        (np.full((5, 5), None), "cannot be read as a NumPy array"),
        (np.full((5, 5), np.nan), "expected only 1 .*, 0 .* and -1"),
        (np.full((5, 5), "a"), "expected only 1 .*, 0 .* and -1"),
    ],
)
def test_invalid_contact_matrices(fasta, matrix, message):
    np.save(fasta / "contacts/p.npy", matrix)
    with pytest.raises(AmplifyError, match=message):
        read(fasta)


def test_contacts_of_every_protein_are_needed(fasta):
    with pytest.raises(AmplifyError, match="contains no contacts of 'p'; expected p.txt"):
        read(fasta)
    with pytest.raises(AmplifyError, match="there is no such folder"):
        from_records(Records(fasta / "p.fasta"), fasta / "absent", lambda n: None)


def test_proteins_longer_than_a_window_are_refused_or_left_out():
    targets = [Target(f"p{length}", np.zeros(length, np.uint8)) for length in (10, 38, 39, 50)]
    with pytest.raises(AmplifyError, match=r"2 of 4 proteins have more than 38 residues.* p39 \(39\), p50 \(50\)"):
        limit_length(targets, 40, skip_long=False)
    kept, note = limit_length(targets, 40, skip_long=True)
    assert [target.name for target in kept] == ["p10", "p38"] and "left out: 2 of 4 proteins" in note
    assert limit_length(kept, 40, skip_long=False) == (kept, None)
    with pytest.raises(AmplifyError, match="2 of 2 proteins have more than 38"):
        limit_length(targets[2:], 40, skip_long=True)
