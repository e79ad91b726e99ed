"""The residues of a protein chain: which belong to it, which are bonded, and how many are missing in a gap."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import gemmi
import numpy as np

from amplify_ds.errors import AmplifyError
from amplify_ds.inference.contacts.sites import Site, by_number

# Å. A peptide bond is 1.33 long; neighbouring C-alphas are 3.8 apart (2.9 in cis), those with one residue between them
# at least 5. The limit for C-N is gemmi's (have_peptide_bond: 1.5 × 1.341). Both allow for poor resolution.
_PEPTIDE_BOND, _NEIGHBOURING_CA = 1.5 * 1.341, 4.5
_SPAN, _TOLERANCE = 3.8, 5.0  # Å: the longest span of a missing residue; slack for distorted models
LONGEST_GAP = 300  # residues; a longer jump is a change of numbering (fusion proteins often add 1000)
_CAPS = {"NME", "NMA", "NHE"}  # terminal groups that gemmi's table lacks; they are not residues


def protein_part(chain: gemmi.Chain, sequence: Collection[str]) -> list[gemmi.Residue]:
    """Return the residues of a chain without its ligands, ions and water, in whatever order the file has them.

    sequence: the residue names in the sequence of the chain, if the file has one. If neither TER records nor entities
    mark the polymer, amino acids in HETATM records at its ends belong to it only if they are bonded to it. At the
    beginning, modified residues (MSE) belong to it even without a bond, because ligands come after the polymer.
    """
    groups = by_number(residue for residue in chain if _in_polymer(residue, sequence))
    while groups and all(map(_may_be_ligand, groups[-1])) and not bonded(*groups[-2:]):
        groups.pop()
    while groups and all(_may_be_ligand(x) and not _is_modified(x) for x in groups[0]) and not bonded(*groups[:2]):
        groups.pop(0)
    return [residue for group in groups for residue in group]


def bonded(first: Sequence[gemmi.Residue], second: Sequence[gemmi.Residue] = ()) -> bool:
    """Return whether a peptide bond joins two sites, in any of their alternatives; False if a site is empty.

    Sites without C or N are compared by their C-alphas, sites without C-alphas by their nearest atoms (chromophores
    have other atom names).
    """
    if (distance := _distance(first, second, "C", "N")) is not None:
        return distance < _PEPTIDE_BOND
    if (distance := _distance(first, second, "CA", "CA")) is not None:
        return distance < _NEIGHBOURING_CA
    return (_distance(first, second) or np.inf) < _PEPTIDE_BOND


def missing_between(first: Site, second: Site, where: str) -> int:
    """Return how many residues are missing between two sites, in a file without a sequence: 0 if they are bonded.

    The number comes from the residue numbers. Raises AmplifyError if these go backwards, jump by more than LONGEST_GAP,
    or give too few residues to span the distance.
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
        f"{where}: no bond joins {first} and {second}{apart}, and their numbers do not show how many residues are "
        "missing between them; add the sequence (SEQRES, or _entity_poly_seq in mmCIF), or split the chain here"
    )


def _skipped(first: gemmi.Residue, second: gemmi.Residue) -> list[int]:
    """Return the candidates for the number of residues between two: by label_seq (mmCIF) and by author numbering.

    label_seq is ignored if it is consecutive: it may simply count the residues in the file.
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
    """Return the distance in Å between the nearest atoms of two sites; None if a site has no such atom.

    names: the atom names in the first and in the second site; without names, all atoms are compared.
    """
    coordinates = [
        np.array([atom.pos.tolist() for residue in site for atom in residue if name in (None, atom.name)])
        for site, name in zip((first, second), names or (None, None))
    ]
    if not all(map(len, coordinates)):
        return None
    return float(np.linalg.norm(coordinates[0][:, None] - coordinates[1][None], axis=-1).min())
