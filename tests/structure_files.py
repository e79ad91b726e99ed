"""Structure files in plain text, for the tests of contacts: a hairpin whose contacts follow from its geometry."""

import numpy as np

THREE = dict(zip("ACDEFGHIKLMNPQRSTVWY", (
    "ALA CYS ASP GLU PHE GLY HIS ILE LYS LEU MET ASN PRO GLN ARG SER THR VAL TRP TYR".split()
)))  # fmt: skip


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
