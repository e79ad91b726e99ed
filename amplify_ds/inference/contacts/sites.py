"""The positions of a chain, and which of several conformers counts at each.

A site can hold several alternatives: conformers of a residue (the letters of alternative locations), or different
residues (microheterogeneity). One of them counts, for all atoms of the site: that with the highest mean occupancy; of
equal ones, that whose letter comes first.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

import gemmi
import numpy as np

from amplify_ds.errors import AmplifyError

_BLANK = "\0"  # of atoms without alternatives
_USED = ("N", "CA", "C", "CB")


class Site(NamedTuple):
    """residues: all alternatives. residue, letter: the one that counts."""

    residues: list[gemmi.Residue]
    residue: gemmi.Residue
    letter: str

    def place(self, atom: str) -> list[float] | None:
        """[x, y, z] of an atom in the conformer that counts; None where it has no such atom."""
        found = {x.altloc: x.pos.tolist() for x in self.residue if x.name == atom}
        return found.get(self.letter, found.get(_BLANK))

    def __str__(self) -> str:
        return f"{self.residue.name} {self.residue.seqid}"


def sites(residues: Iterable[gemmi.Residue], where: str) -> list[Site]:
    """Raises AmplifyError where two residues have one number and are no alternatives of each other."""
    found = []
    for group in by_number(residues):
        for residue in group:
            atoms = [(atom.name, atom.altloc) for atom in residue if atom.name in _USED]
            if len(set(atoms)) < len(atoms) or (len(group) > 1 and all(atom.altloc == _BLANK for atom in residue)):
                raise AmplifyError(
                    f"{where}: several residues have the number {residue.seqid} and are not marked as alternatives of "
                    "each other; renumber them"
                )
        conformers = [(*x, residue, letter) for residue in group for letter, x in _conformers(residue).items()]
        found.append(Site(group, *max(conformers, key=lambda conformer: conformer[:2])[2:]))
    return found


def by_number(residues: Iterable[gemmi.Residue]) -> list[list[gemmi.Residue]]:
    """Neighbors that have the same number, insertion code and segment."""
    return [list(group) for _, group in groupby(residues, lambda residue: (str(residue.seqid), residue.segment))]


def _conformers(residue: gemmi.Residue) -> dict[str, tuple[float, int]]:
    """{letter: (mean occupancy, preference among equals)}.

    Blank is one of them where every atom with a lettered place has a blank one too, else it is what all share.
    """
    lettered = {atom.name for atom in residue if atom.altloc != _BLANK}
    both = {atom.name for atom in residue if atom.altloc == _BLANK} & lettered
    occupancies: dict[str, list[float]] = {}
    for atom in residue:
        if atom.altloc != _BLANK or not lettered or (both == lettered and atom.name in both):
            occupancies.setdefault(atom.altloc, []).append(atom.occ)
    # Files give two digits: what is beyond four comes from rounding.
    return {letter: (round(float(np.mean(x)), 4), -ord(letter)) for letter, x in occupancies.items()}
