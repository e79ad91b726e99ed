"""Find the sites of a chain, and choose one of several conformers at each.

A site can have several alternatives: conformers of a residue (the letters of alternative locations), or different
residues (microheterogeneity). The one with the highest mean occupancy is used for all atoms of the site; of equal ones,
the first letter.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

import gemmi
import numpy as np

from amplify_ds.errors import AmplifyError

_BLANK = "\0"  # letter of atoms without alternatives
_USED = ("N", "CA", "C", "CB")


class Site(NamedTuple):
    """residues: all alternatives. residue, letter: the chosen one."""

    residues: list[gemmi.Residue]
    residue: gemmi.Residue
    letter: str

    def coordinates(self, atom: str) -> list[float] | None:
        """Return [x, y, z] of an atom in the chosen conformer, or None if the conformer does not have it."""
        by_letter = {x.altloc: x.pos.tolist() for x in self.residue if x.name == atom}
        return by_letter.get(self.letter, by_letter.get(_BLANK))

    def __str__(self) -> str:
        return f"{self.residue.name} {self.residue.seqid}"


def sites(residues: Iterable[gemmi.Residue], where: str) -> list[Site]:
    """Return the sites of a chain. Raises AmplifyError if residues share a number but are not alternatives."""
    results = []
    for group in by_number(residues):
        for residue in group:
            atoms = [(atom.name, atom.altloc) for atom in residue if atom.name in _USED]
            if len(set(atoms)) < len(atoms) or (len(group) > 1 and all(atom.altloc == _BLANK for atom in residue)):
                raise AmplifyError(
                    f"{where}: several residues have the number {residue.seqid} and are not marked as alternatives of "
                    "each other; renumber them"
                )
        conformers = [(*x, residue, letter) for residue in group for letter, x in _conformers(residue).items()]
        results.append(Site(group, *max(conformers, key=lambda conformer: conformer[:2])[2:]))
    return results


def by_number(residues: Iterable[gemmi.Residue]) -> list[list[gemmi.Residue]]:
    """Group adjacent residues with the same number, insertion code and segment."""
    return [list(group) for _, group in groupby(residues, lambda residue: (str(residue.seqid), residue.segment))]


def _conformers(residue: gemmi.Residue) -> dict[str, tuple[float, int]]:
    """Return {letter: (mean occupancy, tie-breaker)}.

    Blank counts as a conformer only if every atom with a letter also occurs without one; otherwise the atoms without a
    letter are shared by all conformers.
    """
    lettered = {atom.name for atom in residue if atom.altloc != _BLANK}
    both = {atom.name for atom in residue if atom.altloc == _BLANK} & lettered
    occupancies: dict[str, list[float]] = {}
    for atom in residue:
        if atom.altloc != _BLANK or not lettered or (both == lettered and atom.name in both):
            occupancies.setdefault(atom.altloc, []).append(atom.occ)
    # Files have two decimals, so digits after the fourth are rounding errors.
    return {letter: (round(float(np.mean(x)), 4), -ord(letter)) for letter, x in occupancies.items()}
