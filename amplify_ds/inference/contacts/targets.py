"""Proteins whose contacts are asked for, and those that are known.

Two residues are in contact where their C-betas (C-alpha for glycine) are less than 8 Å apart: the definition of CASP,
which Rao et al. 2021 use as well. A pair is unknown where one of the two has no coordinates; it neither trains nor
counts.

Contact files stand in a folder, one for each protein of a FASTA file, under the protein's name:
    NAME.txt    a line "i j" for each contact, numbers of residues from 1; `#` begins a comment. All other pairs are
                known not to be in contact.
    NAME.npy    a symmetric matrix [n, n] of 1 (contact), 0 (none) and -1 (unknown), or of booleans
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from amplify_ds.errors import AmplifyError
from amplify_ds.inference.names import file_names

THRESHOLD = 8.0  # Å
MINIMUM_SEPARATION = 6  # residues along the chain: nearer ones are in contact through the backbone
UNKNOWN = -1
_SHOWN = 5  # names in a message


class Target(NamedTuple):
    """tokens: uint8 [n], without <bos> and <eos>. contacts: int8 [n, n] of 1, 0, UNKNOWN; None: not known at all."""

    name: str
    tokens: np.ndarray
    contacts: np.ndarray | None = None

    def known_contacts(self) -> np.ndarray:
        """`contacts`; ValueError where nothing is known of them."""
        if self.contacts is None:
            raise ValueError(f"the contacts of {self.name} are not known")
        return self.contacts


def contacts_of(coordinates: np.ndarray) -> np.ndarray:
    """int8 [n, n] from the places of C-betas, [n, 3] in Å; nan where there is none."""
    squares = ((coordinates[:, None].astype(np.float64) - coordinates[None]) ** 2).sum(-1)
    return np.where(np.isnan(squares), UNKNOWN, squares < THRESHOLD**2).astype(np.int8)


def known_pairs(contacts: np.ndarray, nearest: int = MINIMUM_SEPARATION, farthest: int | None = None):
    """(i, j), two arrays [P]: pairs i < j that are known, with nearest <= j - i <= farthest."""
    chosen = np.triu(contacts != UNKNOWN, nearest)
    if farthest is not None:
        chosen &= ~np.triu(np.ones_like(chosen), farthest + 1)
    return np.nonzero(chosen)


def observed(contacts: np.ndarray) -> int:
    """How many residues have coordinates, so that something is known of them: L of the precisions."""
    return int((contacts != UNKNOWN).any(1).sum())


def read_contacts(folder: Path, name: str, length: int) -> np.ndarray:
    """int8 [n, n] from the contact file of a protein of `length` residues. AmplifyError names file and line."""
    for suffix, read in ((".txt", _read_pairs), (".npy", _read_matrix)):
        path = folder / f"{name}{suffix}"
        if file_names([name]) == [name] and path.is_file():
            return read(path, length)
    raise AmplifyError(
        f"{folder}: holds no contacts of {name!r}; expected {name}.txt (a line `i j` for each contact, from 1) or "
        f"{name}.npy (a matrix of 1, 0 and -1)"
    )


def _read_pairs(path: Path, length: int) -> np.ndarray:
    found = np.zeros((length, length), np.int8)
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError:
        raise AmplifyError(f"{path}: is no text; expected a line `i j` for each contact") from None
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not all(word.isascii() and word.isdigit() for word in words):
            raise AmplifyError(f"{path}: line {number}: expected two numbers of residues, found {line.strip()[:60]!r}")
        i, j = map(int, words)
        if not (1 <= i <= length and 1 <= j <= length) or i == j:
            raise AmplifyError(
                f"{path}: line {number}: {i} {j} is no pair of the protein's residues, which are 1 to {length}"
            )
        found[i - 1, j - 1] = found[j - 1, i - 1] = 1
    return found


def _read_matrix(path: Path, length: int) -> np.ndarray:
    try:
        matrix = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise AmplifyError(f"{path}: cannot be read as a NumPy array: {error}") from None
    if not isinstance(matrix, np.ndarray) or matrix.shape != (length, length):
        found = getattr(matrix, "shape", "an archive")
        raise AmplifyError(f"{path}: expected a matrix of {length} by {length}, a row a residue; found {found}")
    if matrix.dtype.kind not in "biuf" or not np.isin(matrix, (1, 0, UNKNOWN)).all():
        raise AmplifyError(f"{path}: expected 1 (contact), 0 (none) and -1 (unknown) only")
    if (matrix != matrix.T).any():
        raise AmplifyError(f"{path}: is not symmetric; contacts of i with j and of j with i are the same")
    return matrix.astype(np.int8)


def fitting(targets: list[Target], max_length: int, skip_long: bool) -> tuple[list[Target], str | None]:
    """Those that one window can hold, and a note on the others. Raises AmplifyError for the others unless skip_long.

    Windows do not help here: a contact between two windows would have no attention.
    """
    long = [f"{target.name} ({len(target.tokens):,})" for target in targets if len(target.tokens) + 2 > max_length]
    if not long:
        return targets, None
    more = f" and {len(long) - _SHOWN:,} more" if len(long) > _SHOWN else ""
    which = f"of {len(targets):,} proteins {len(long):,} have more than {max_length - 2:,} residues, which is what the "
    which += f"model reads at once: {', '.join(long[:_SHOWN])}{more}"
    kept = [target for target in targets if len(target.tokens) + 2 <= max_length]
    if not skip_long or not kept:
        raise AmplifyError(f"{which}. Remove or cut them, or leave them out with --skip-long")
    return kept, f"left out: {which}"
