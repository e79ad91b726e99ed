"""Write structure files as text for the tests of contacts: a hairpin whose contacts follow from its geometry."""

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
    """Return float [length, 3]: two antiparallel strands 5 Å apart, with 3.4 Å per residue.

    Residues i and j (from 0) on different strands are sqrt((3.4 (i + j - length + 1))² + 25) Å apart, which is below
    8 Å if and only if |i + j - length + 1| is 0 or 1.
    """
    half = length // 2
    i = np.arange(length)
    return np.stack([np.where(i < half, 0.0, 5.0), np.where(i < half, i, length - 1 - i) * 3.4, 0.0 * i], 1)


def hairpin_contacts(length):
    """Return bool [length, length]: the contacts of `hairpin` between residues 6 or more apart along the chain."""
    i, j = np.indices((length, length))
    return (abs(i + j - length + 1) <= 1) & (abs(i - j) >= 6)


def pdb(names, coordinates, chain="A", missing=(), seqres=True, numbers=None, extra=(), end=True):
    """Return PDB text with the C-betas (C-alpha of GLY) at `coordinates`, and the other C-alphas far away from them."""
    lines = []
    if seqres:
        for line, begin in enumerate(range(0, len(names), 13), 1):
            lines.append(f"SEQRES {line:3} {chain} {len(names):4}  {' '.join(names[begin : begin + 13])}")
    for i, name in enumerate(names):
        if i not in missing:
            number = i + 1 if numbers is None else numbers[i]
            xyz = coordinates[i]
            atoms = [("CA", xyz)] if name == "GLY" else [("CA", xyz + [0, 0, 40 + 20 * i]), ("CB", xyz)]
            lines += [atom_line(*atom, name, chain, number) for atom in atoms]
    return "\n".join([*lines, *extra, *(["END"] if end else [])]) + "\n"


def atom_line(atom, position, name, chain, number, alternative=" "):
    record = "HETATM" if name == "MSE" else "ATOM  "
    x, y, z = position
    xyz = f"{x:8.3f}{y:8.3f}{z:8.3f}"
    return f"{record}    1  {atom:<3}{alternative}{name} {chain}{number:4}    {xyz}  1.00 20.00           C"


def mmcif(names, coordinates, missing=()):
    """Return the structure of `pdb` as mmCIF text, with the sequence in its entity."""
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
            x, y, z = coordinates[i - 1]
            for atom, offset in (("CA", 0 if name == "GLY" else 40 + 20 * i), ("CB", 0)):
                if (name, atom) != ("GLY", "CB"):
                    lines.append(f"ATOM {i} C {atom} . {name} B 1 {i} {x} {y} {z + offset} {i + 100} A 1")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Atom:
    """An atom record. index: of the residue, from 0. letter: of the alternative location."""

    index: int
    residue: str
    name: str
    position: np.ndarray
    letter: str = " "
    occupancy: float = 1.0


def bonded_chain(names, coordinates):
    """Return a list of Atoms: N, CA, C and CB (not for GLY) of each residue, with 1.33 Å from C to the next N.

    CB, or CA of GLY, is at `coordinates`, which therefore determine the contacts; other C-alphas are 1.5 Å above.
    """
    alphas = [np.add(xyz, [0, 0, 0 if name == "GLY" else 1.5]) for name, xyz in zip(names, coordinates)]
    steps = [after - before for before, after in zip(alphas, alphas[1:])]
    bonds = [step * (1 - 1.33 / np.linalg.norm(step)) / 2 for step in steps]  # from CA to C, and from N to CA
    atoms = []
    for i, name in enumerate(names):
        atoms.append(Atom(i, name, "N", alphas[i] - (bonds[i - 1] if i else [0, 0.9, 1.1])))
        atoms.append(Atom(i, name, "CA", alphas[i]))
        atoms.append(Atom(i, name, "C", alphas[i] + (bonds[i] if i < len(bonds) else [0, 0.9, 1.1])))
        if name != "GLY":
            atoms.append(Atom(i, name, "CB", np.array(coordinates[i])))
    return atoms


def pdb_atoms(atoms, numbers, chain="A", hetero=("MSE",)):
    """Return PDB records. numbers: of each residue, with insertion codes: "52", "52A", "-3"."""
    lines = []
    for serial, atom in enumerate(atoms, 1):
        record = "HETATM" if atom.residue in hetero else "ATOM"
        number = numbers[atom.index]
        number = f"{number:>4} " if number[-1].isdigit() else f"{number:>5}"
        x, y, z = atom.position
        lines.append(
            f"{record:6}{serial:5}  {atom.name:<3}{atom.letter}{atom.residue:>3} {chain}{number}   "
            f"{x:8.3f}{y:8.3f}{z:8.3f}{atom.occupancy:6.2f} 20.00          {atom.name[0]:>2}"
        )
    return "\n".join(lines) + "\n"


def mmcif_atoms(atoms, numbers, labels=None, chain="A"):
    """Return the atoms as mmCIF text without a sequence. labels: label_seq_id of each residue, or None."""
    fields = "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id"
    fields += " label_seq_id Cartn_x Cartn_y Cartn_z occupancy auth_seq_id pdbx_PDB_ins_code auth_asym_id"
    lines = ["data_TEST", "loop_", *(f"_atom_site.{field}" for field in (fields + " pdbx_PDB_model_num").split())]
    for serial, atom in enumerate(atoms, 1):
        number, code = numbers[atom.index], "?"
        if not number[-1].isdigit():
            number, code = number[:-1], number[-1]
        label = "." if labels is None else labels[atom.index]
        x, y, z = np.round(atom.position, 3)
        lines.append(
            f"ATOM {serial} {atom.name[0]} {atom.name} {atom.letter.replace(' ', '.')} {atom.residue} B 1 {label} "
            f"{x} {y} {z} {atom.occupancy} {number} {code} {chain} 1"
        )
    return "\n".join(lines) + "\n"


def plain_reading(text):
    """Read PDB records by their columns and return (three-letter names, coordinates of CB, or CA of GLY).

    Both are None for a missing residue. The alternative with the highest mean occupancy is used, of equal ones the
    first. A jump in numbers counts as missing residues if C and N are more than 2 Å apart.
    """
    residues = {}
    for line in text.splitlines():
        if line[:6] in ("ATOM  ", "HETATM"):
            xyz = tuple(float(line[begin : begin + 8]) for begin in (30, 38, 46))
            atom = (line[12:16].strip(), line[16], xyz, float(line[54:60]))
            residues.setdefault((int(line[22:26]), line[26]), (line[17:20], []))[1].append(atom)
    names, coordinates, last = [], [], None
    for (number, _), (name, atoms) in residues.items():
        letters = sorted({atom[1] for atom in atoms} - {" "})
        means = {x: np.mean([atom[3] for atom in atoms if atom[1] == x]).round(6) for x in letters}
        best = min(letters, key=lambda x: (-means[x], x), default=" ")
        chosen = {atom[0]: atom[2] for atom in atoms if atom[1] in (" ", best)}
        nitrogens = [atom[2] for atom in atoms if atom[0] == "N"]
        if last and min(math.dist(c, n) for c in last[1] for n in nitrogens) > 2:
            names += [None] * (number - last[0] - 1)
            coordinates += [None] * (number - last[0] - 1)
        names.append(name)
        coordinates.append(chosen.get("CA" if name == "GLY" else "CB"))
        last = number, [atom[2] for atom in atoms if atom[0] == "C"]
    return names, coordinates
