"""Structure files in plain text, for the tests of contacts: a hairpin whose contacts follow from its geometry."""

import math
from dataclasses import dataclass

import numpy as np

THREE = dict(
    zip(
        "ACDEFGHIKLMNPQRSTVWY",
        ("ALA CYS ASP GLU PHE GLY HIS ILE LYS LEU MET ASN PRO GLN ARG SER THR VAL TRP TYR".split()),
    )
)


def hairpin(length):
    """float [length, 3]: up one strand and down the other, 3.4 Å a residue, 5 Å apart.

    Residues i and j (from 0) on the two strands are sqrt((3.4 (i + j - length + 1))² + 25) Å apart: below 8 Å exactly
    where |i + j - length + 1| is 0 or 1.
    """
    half = length // 2
    i = np.arange(length)
    return np.stack([np.where(i < half, 0.0, 5.0), np.where(i < half, i, length - 1 - i) * 3.4, 0.0 * i], 1)


def hairpin_contacts(length):
    """bool [length, length] of pairs 6 or more apart along the chain, by that rule."""
    i, j = np.indices((length, length))
    return (abs(i + j - length + 1) <= 1) & (abs(i - j) >= 6)


def pdb(names, places, chain="A", missing=(), seqres=True, numbers=None, extra=(), end=True):
    """PDB text: C-beta (C-alpha of GLY) at `places`; C-alphas elsewhere, so that nobody takes them instead."""
    lines = []
    if seqres:
        for line, begin in enumerate(range(0, len(names), 13), 1):
            lines.append(f"SEQRES {line:3} {chain} {len(names):4}  {' '.join(names[begin : begin + 13])}")
    for i, name in enumerate(names):
        if i not in missing:
            number = i + 1 if numbers is None else numbers[i]
            atoms = (
                [("CA", places[i])] if name == "GLY" else [("CA", places[i] + [0, 0, 40 + 20 * i]), ("CB", places[i])]
            )
            lines += [atom_line(*atom, name, chain, number) for atom in atoms]
    return "\n".join([*lines, *extra, *(["END"] if end else [])]) + "\n"


def atom_line(atom, place, name, chain, number, alternative=" "):
    record = "HETATM" if name == "MSE" else "ATOM  "
    x, y, z = place
    place = f"{x:8.3f}{y:8.3f}{z:8.3f}"
    return f"{record}    1  {atom:<3}{alternative}{name} {chain}{number:4}    {place}  1.00 20.00           C"


def mmcif(names, places, missing=()):
    """mmCIF text of the same, the sequence as that of its entity."""
    lines = ["data_TEST", "loop_", "_entity.id", "_entity.type", "1 polymer", "loop_", "_entity_poly.entity_id"]
    lines += ["_entity_poly.type", "1 'polypeptide(L)'", "loop_", "_entity_poly_seq.entity_id"]
    lines += ["_entity_poly_seq.num", "_entity_poly_seq.mon_id", *(f"1 {i} {x}" for i, x in enumerate(names, 1))]
    lines += ["loop_", "_struct_asym.id", "_struct_asym.entity_id", "B 1", "loop_"]
    fields = (
        "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id label_seq_id"
    )
    fields += " Cartn_x Cartn_y Cartn_z auth_seq_id auth_asym_id pdbx_PDB_model_num"
    lines += [f"_atom_site.{field}" for field in fields.split()]
    for i, name in enumerate(names, 1):
        if i - 1 not in missing:
            x, y, z = places[i - 1]
            for atom, far in (("CA", 0 if name == "GLY" else 40 + 20 * i), ("CB", 0)):
                if (name, atom) != ("GLY", "CB"):
                    lines.append(f"ATOM {i} C {atom} . {name} B 1 {i} {x} {y} {z + far} {i + 100} A 1")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Atom:
    """One atom record. index: of its residue, from 0."""

    index: int
    residue: str
    name: str
    place: np.ndarray
    letter: str = " "
    occupancy: float = 1.0


def bonded_chain(names, places):
    """[Atom]: N, CA, C and CB (but for GLY) of each residue, C and the next N 1.33 Å apart.

    CB, or CA of GLY, is at `places`, so that contacts follow from these; the C-alphas of others are 1.5 Å above.
    """
    alphas = [np.add(place, [0, 0, 0 if name == "GLY" else 1.5]) for name, place in zip(names, places)]
    steps = [after - before for before, after in zip(alphas, alphas[1:])]
    bonds = [step * (1 - 1.33 / np.linalg.norm(step)) / 2 for step in steps]  # of CA to C, and of N to CA
    atoms = []
    for i, name in enumerate(names):
        atoms.append(Atom(i, name, "N", alphas[i] - (bonds[i - 1] if i else [0, 0.9, 1.1])))
        atoms.append(Atom(i, name, "CA", alphas[i]))
        atoms.append(Atom(i, name, "C", alphas[i] + (bonds[i] if i < len(bonds) else [0, 0.9, 1.1])))
        if name != "GLY":
            atoms.append(Atom(i, name, "CB", np.array(places[i])))
    return atoms


def pdb_atoms(atoms, numbers, chain="A", hetero=("MSE",)):
    """PDB records. numbers: of each residue, with its insertion code: "52", "52A", "-3"."""
    lines = []
    for serial, atom in enumerate(atoms, 1):
        record = "HETATM" if atom.residue in hetero else "ATOM"
        number = numbers[atom.index]
        number = f"{number:>4} " if number[-1].isdigit() else f"{number:>5}"
        x, y, z = atom.place
        lines.append(
            f"{record:6}{serial:5}  {atom.name:<3}{atom.letter}{atom.residue:>3} {chain}{number}   "
            f"{x:8.3f}{y:8.3f}{z:8.3f}{atom.occupancy:6.2f} 20.00          {atom.name[0]:>2}"
        )
    return "\n".join(lines) + "\n"


def mmcif_atoms(atoms, numbers, labels=None, chain="A"):
    """mmCIF of the same without a sequence. labels: label_seq_id of each residue; None: unknown."""
    fields = "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id"
    fields += " label_seq_id Cartn_x Cartn_y Cartn_z occupancy auth_seq_id pdbx_PDB_ins_code auth_asym_id"
    lines = ["data_TEST", "loop_", *(f"_atom_site.{field}" for field in (fields + " pdbx_PDB_model_num").split())]
    for serial, atom in enumerate(atoms, 1):
        number, code = numbers[atom.index], "?"
        if not number[-1].isdigit():
            number, code = number[:-1], number[-1]
        label = "." if labels is None else labels[atom.index]
        x, y, z = np.round(atom.place, 3)
        lines.append(
            f"ATOM {serial} {atom.name[0]} {atom.name} {atom.letter.replace(' ', '.')} {atom.residue} B 1 {label} "
            f"{x} {y} {z} {atom.occupancy} {number} {code} {chain} 1"
        )
    return "\n".join(lines) + "\n"


def plain_reading(text):
    """(three-letter names, None where one is missing; places of CB or CA) of PDB records, read by their columns.

    Of a residue the letter with the highest mean occupancy counts, of equal ones the first. Numbers that skip are
    missing residues where C and N are more than 2 Å apart.
    """
    residues = {}
    for line in text.splitlines():
        if line[:6] in ("ATOM  ", "HETATM"):
            place = tuple(float(line[begin : begin + 8]) for begin in (30, 38, 46))
            atom = (line[12:16].strip(), line[16], place, float(line[54:60]))
            residues.setdefault((int(line[22:26]), line[26]), (line[17:20], []))[1].append(atom)
    names, places, last = [], [], None
    for (number, _), (name, atoms) in residues.items():
        letters = sorted({atom[1] for atom in atoms} - {" "})
        means = {x: np.mean([atom[3] for atom in atoms if atom[1] == x]).round(6) for x in letters}
        best = min(letters, key=lambda x: (-means[x], x), default=" ")
        found = {atom[0]: atom[2] for atom in atoms if atom[1] in (" ", best)}
        nitrogens = [atom[2] for atom in atoms if atom[0] == "N"]
        if last and min(math.dist(c, n) for c in last[1] for n in nitrogens) > 2:
            names += [None] * (number - last[0] - 1)
            places += [None] * (number - last[0] - 1)
        names.append(name)
        places.append(found.get("CA" if name == "GLY" else "CB"))
        last = number, [atom[2] for atom in atoms if atom[0] == "C"]
    return names, places
