"""The residues of a protein chain: which they are, which a bond joins, how many are missing between two."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import gemmi
import numpy as np

from amplify_ds.errors import AmplifyError
from amplify_ds.inference.contacts.sites import Site, by_number

# Å. A peptide bond is 1.33 long, neighboring C-alphas are 3.8 apart (2.9 in cis), those with one residue between them
# at least 5. The bound for C-N is gemmi's (have_peptide_bond: 1.5 × 1.341); both leave room for poor resolution.
_PEPTIDE_BOND, _NEIGHBORING_CA = 1.5 * 1.341, 4.5
_SPAN, _TOLERANCE = 3.8, 5.0  # Å that a missing residue bridges at most; more is allowed for distorted models
LONGEST_GAP = 300  # residues; a longer skip is another numbering (1000 is often added in fusion proteins)
_CAPS = {"NME", "NMA", "NHE"}  # groups at the ends that gemmi's table does not have; they are no residues


def protein_part(chain: gemmi.Chain, sequence: Collection[str]) -> list[gemmi.Residue]:
    """The residues of a chain without its ligands, ions and water, wherever in the file these are.

    sequence: the names in the sequence of the chain, as far as the file has it. Where neither TER nor entities say what
    the polymer is, amino acids in HETATM records at the ends belong to it only if a bond joins them to the rest; before
    the rest also modified ones (MSE), since ligands come after it.
    """
    groups = by_number(residue for residue in chain if _in_polymer(residue, sequence))
    while groups and all(map(_may_be_ligand, groups[-1])) and not bonded(*groups[-2:]):
        groups.pop()
    while groups and all(_may_be_ligand(x) and not _is_modified(x) for x in groups[0]) and not bonded(*groups[:2]):
        groups.pop(0)
    return [residue for group in groups for residue in group]


def bonded(first: Sequence[gemmi.Residue], second: Sequence[gemmi.Residue] = ()) -> bool:
    """Whether a peptide bond joins two sites, in any of their alternatives. Nothing is bonded to nothing.

    Without C and N the C-alphas tell, without these any two atoms (chromophores name theirs otherwise).
    """
    if (distance := _distance(first, second, "C", "N")) is not None:
        return distance < _PEPTIDE_BOND
    if (distance := _distance(first, second, "CA", "CA")) is not None:
        return distance < _NEIGHBORING_CA
    return (_distance(first, second) or np.inf) < _PEPTIDE_BOND


def missing_between(first: Site, second: Site, where: str) -> int:
    """How many residues a file without a sequence lacks between two sites: none where a bond joins them.

    Elsewhere the numbers tell. AmplifyError where they cannot: they go backwards, skip more than LONGEST_GAP, or so few
    residues would not reach from one to the other.
    """
    if bonded(first.residues, second.residues):
        return 0
    distance = _distance(first.residues, second.residues, "C", "N")
    for count in _skipped(first.residue, second.residue):
        reach = _PEPTIDE_BOND + _SPAN * count + _TOLERANCE
        if 0 <= count <= LONGEST_GAP and (distance is None or distance < reach):
            return count
    apart = "" if distance is None else f" ({distance:.1f} Å from C to N)"
    raise AmplifyError(
        f"{where}: no bond joins {first} and {second}{apart}, and their numbers do not tell how many residues are "
        "missing between them; add the sequence (SEQRES, or _entity_poly_seq in mmCIF), or make them two chains"
    )


def _skipped(first: gemmi.Residue, second: gemmi.Residue) -> list[int]:
    """Numbers between two residues: in the sequence of the entity where an mmCIF file has it, and by the author.

    The former may just count the residues there are: then it says nothing.
    """
    differences = []
    if first.label_seq is not None and second.label_seq is not None and second.label_seq - first.label_seq > 1:
        differences.append(second.label_seq - first.label_seq)
    if first.seqid.num is not None and second.seqid.num is not None:
        by_author = second.seqid.num - first.seqid.num
        differences.append(1 if by_author == 0 and first.seqid.icode != second.seqid.icode else by_author)
    return [difference - 1 for difference in differences]


def _in_polymer(residue: gemmi.Residue, sequence: Collection[str]) -> bool:
    if residue.entity_type not in (gemmi.EntityType.Polymer, gemmi.EntityType.Unknown):
        return False
    known = gemmi.find_tabulated_residue(residue.name)
    if known.found() or residue.name in sequence or residue.name in _CAPS:
        return known.is_amino_acid() or residue.name in sequence
    atoms = {atom.name for atom in residue}
    return {"N", "C"} <= atoms or (residue.het_flag == "A" and "CA" in atoms)


def _may_be_ligand(residue: gemmi.Residue) -> bool:
    return residue.entity_type == gemmi.EntityType.Unknown and residue.het_flag != "A"


def _is_modified(residue: gemmi.Residue) -> bool:
    known = gemmi.find_tabulated_residue(residue.name)
    return known.is_amino_acid() and not known.is_standard()


def _distance(first: Sequence[gemmi.Residue], second: Sequence[gemmi.Residue], *names: str) -> float | None:
    """Å between the nearest atoms of two sites, of these names (one each) or of any; None where there are none."""
    places = [
        np.array([atom.pos.tolist() for residue in site for atom in residue if name in (None, atom.name)])
        for site, name in zip((first, second), names or (None, None))
    ]
    if not all(map(len, places)):
        return None
    return float(np.linalg.norm(places[0][:, None] - places[1][None], axis=-1).min())
