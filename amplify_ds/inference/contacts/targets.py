"""Proteins with their known contacts, and the files that contacts are read from.

Two residues are in contact if their C-betas (C-alpha for glycine) are less than 8 Å apart: the definition of CASP, also
used by Rao et al. 2021. A pair is unknown if one of the two has no coordinates; unknown pairs are ignored in fitting
and evaluation.

Contact files are in one folder, one file per protein of a FASTA file, with the name of the protein:
    NAME.txt    one line "i j" per contact, residues numbered from 1; `#` begins a comment. All other pairs are not in
                contact.
    NAME.npy    a symmetric matrix [n, n] of 1 (contact), 0 (no contact) and -1 (unknown), or of booleans
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from amplify_ds.errors import AmplifyError
from amplify_ds.inference.names import file_names

THRESHOLD = 8.0  # Å
MINIMUM_SEPARATION = 6  # residues along the chain; closer ones are in contact because of the backbone
UNKNOWN = -1
_SHOWN = 5  # names in a message


class Target(NamedTuple):
    """A protein. tokens: uint8 [n], without <bos> and <eos>. contacts: int8 [n, n] of 1, 0 and UNKNOWN, or None."""

    name: str
    tokens: np.ndarray
    contacts: np.ndarray | None = None

    def known_contacts(self) -> np.ndarray:
        """Return `contacts`. Raises ValueError if it is None."""
        if self.contacts is None:
            raise ValueError(f"the contacts of {self.name} are not known")
        return self.contacts


def contacts_of(coordinates: np.ndarray) -> np.ndarray:
    """Return int8 [n, n] from the coordinates of the C-betas, [n, 3] in Å; nan means unknown."""
    squares = ((coordinates[:, None].astype(np.float64) - coordinates[None]) ** 2).sum(-1)
    return np.where(np.isnan(squares), UNKNOWN, squares < THRESHOLD**2).astype(np.int8)


def known_pairs(contacts: np.ndarray, nearest: int = MINIMUM_SEPARATION, farthest: int | None = None):
    """Return (i, j), two arrays [P]: the known pairs with nearest <= j - i <= farthest."""
    mask = np.triu(contacts != UNKNOWN, nearest)
    if farthest is not None:
        mask &= ~np.triu(np.ones_like(mask), farthest + 1)
    return np.nonzero(mask)


def observed(contacts: np.ndarray) -> int:
    """Return the number of residues with a known pair, that is, with coordinates: L in precision.py."""
    return int((contacts != UNKNOWN).any(1).sum())


def read_contacts(folder: Path, name: str, length: int) -> np.ndarray:
    """Return int8 [n, n] from the contact file of a protein of `length` residues.

    Raises AmplifyError, with file and line, if the file is missing or invalid.
    """
    for suffix, read in ((".txt", _read_pairs), (".npy", _read_matrix)):
        path = folder / f"{name}{suffix}"
        if file_names([name]) == [name] and path.is_file():
            return read(path, length)
    raise AmplifyError(
        f"{folder}: contains no contacts of {name!r}; expected {name}.txt (one line `i j` per contact, residues "
        f"numbered from 1) or {name}.npy (a matrix of 1, 0 and -1)"
    )


def _read_pairs(path: Path, length: int) -> np.ndarray:
    contacts = np.zeros((length, length), np.int8)
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError:
        raise AmplifyError(f"{path}: not a text file; expected one line `i j` per contact") from None
    for number, line in enumerate(lines, 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        if len(fields) != 2 or not all(field.isascii() and field.isdigit() for field in fields):
            raise AmplifyError(f"{path}: line {number}: expected two residue numbers, found {line.strip()[:60]!r}")
        i, j = map(int, fields)
        if not (1 <= i <= length and 1 <= j <= length) or i == j:
            raise AmplifyError(
                f"{path}: line {number}: {i} {j} is not a pair of residues of the protein; expected two different "
                f"numbers from 1 to {length}"
            )
        contacts[i - 1, j - 1] = contacts[j - 1, i - 1] = 1
    return contacts


def _read_matrix(path: Path, length: int) -> np.ndarray:
    try:
        matrix = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise AmplifyError(f"{path}: cannot be read as a NumPy array: {error}") from None
    if not isinstance(matrix, np.ndarray) or matrix.shape != (length, length):
        shape = getattr(matrix, "shape", "an archive")
        raise AmplifyError(f"{path}: expected a matrix of {length} by {length}, one row per residue; found {shape}")
    if matrix.dtype.kind not in "biuf" or not np.isin(matrix, (1, 0, UNKNOWN)).all():
        raise AmplifyError(f"{path}: expected only 1 (contact), 0 (no contact) and -1 (unknown)")
    if (matrix != matrix.T).any():
        raise AmplifyError(f"{path}: the matrix is not symmetric; entries (i, j) and (j, i) must be equal")
    return matrix.astype(np.int8)


def limit_length(targets: list[Target], max_length: int, skip_long: bool) -> tuple[list[Target], str | None]:
    """Return the targets that fit into one window, and a note about the others or None.

    Raises AmplifyError for the others unless skip_long, and if no target is left. Longer proteins cannot be split into
    windows, because there is no attention between residues of different windows.
    """
    long = [f"{target.name} ({len(target.tokens):,})" for target in targets if len(target.tokens) + 2 > max_length]
    if not long:
        return targets, None
    more = f" and {len(long) - _SHOWN:,} more" if len(long) > _SHOWN else ""
    summary = (
        f"{len(long):,} of {len(targets):,} proteins have more than {max_length - 2:,} residues, the model's limit"
    )
    summary += f": {', '.join(long[:_SHOWN])}{more}"
    kept = [target for target in targets if len(target.tokens) + 2 <= max_length]
    if not skip_long or not kept:
        raise AmplifyError(f"{summary}. Remove or shorten them, or leave them out with --skip-long")
    return kept, f"left out: {summary}"
