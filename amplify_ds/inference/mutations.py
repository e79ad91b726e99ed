"""Parse mutations and compute their effects.

A mutation is a substitution, written A23V (wild-type residue, position from 1, new residue) or p.Ala23Val; several are
joined by ":" (also "/", ";", "," or "+"). WT is the wild type, with effect 0. Insertions, deletions, frameshifts and
stops are refused.

The effect of a mutation is Σ over its positions of log p(new) − log p(wild type), in the wild-type sequence, with one
position masked at a time (masked-marginal) or none (wild-type-marginal, one pass). Meier et al. 2021.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator

import numpy as np

from amplify_ds.vocab import RESIDUES, TOKENS, encode_bytes

WILD_TYPE = ("WT", "_WT", "WILDTYPE", "WILD-TYPE", "WILD_TYPE", "WILD TYPE", "=", "P.=", "P.(=)")
Changes = list[tuple[int, int, int]]  # (position from 0, wild-type token, new token)
_THREE_LETTERS = "ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL"
_THREE = dict(zip(_THREE_LETTERS.split(), "ARNDCQEGHILKMFPSTWYV"))
_ONE = re.compile(r"([A-Z]|[A-Z]{3})(-?[0-9]+)([A-Z]|[A-Z]{3}|=)")
_NO_SUBSTITUTION = re.compile(r"DEL|INS|DUP|FS|EXT|TER|\*|[0-9]-$")
_SEQUENCE = re.compile(r"[A-Za-z]{20,}\*?")
_BRACKETS = str.maketrans("", "", "[]()")


class Malformed(ValueError):
    """Raised for an invalid mutation. misplaced: the position or its residue is wrong, so an offset may help."""

    misplaced = False


def parse(mutant: str, wild_type: np.ndarray, offset: int = 0) -> Changes:
    """Return the changes of a mutation, sorted by position; none for the wild type. Raises Malformed.

    wild_type: token ids. offset: subtracted from the positions in `mutant` to get positions in `wild_type`.
    """
    text = mutant.strip()
    if text.upper() in WILD_TYPE:
        return []
    if _SEQUENCE.fullmatch(text):
        return compare(text, wild_type)
    changes = {}
    for old, position, new, part in _substitutions(text):
        index = position - offset - 1
        if not 0 <= index < len(wild_type):
            shifted = (
                f", in the table {offset + 1} to {offset + len(wild_type)} with --offset {offset}" if offset else ""
            )
            raise _misplaced(f"{part}: the protein has positions 1 to {len(wild_type)}{shifted}")
        if (residue := TOKENS[wild_type[index]]) != old:
            raise _misplaced(f"{part}: the residue at {position} is {residue}, not {old}")
        if index in changes:
            raise Malformed(f"{text}: changes position {position} twice")
        changes[index] = (TOKENS.index(old), TOKENS.index(new))
    return [(position, *tokens) for position, tokens in sorted(changes.items())]


def compare(sequence: str, wild_type: np.ndarray) -> Changes:
    """Return the changes that turn the wild type into `sequence`. Raises Malformed if their lengths differ."""
    text = "".join(sequence.split()).rstrip("*").upper()
    tokens = np.frombuffer(encode_bytes(text.encode("ascii", "replace")), dtype=np.uint8)
    if len(tokens) != len(wild_type):
        raise Malformed(
            f"the sequence has {len(tokens):,} residues, the protein has {len(wild_type):,}: insertions and deletions "
            "are not supported, only substitutions. To score whole sequences, use `score` without --mutations"
        )
    indices = np.flatnonzero(tokens != wild_type).tolist()
    if unknown := [index for index in indices if TOKENS[tokens[index]] not in RESIDUES]:
        raise Malformed(f"{text[unknown[0]]!r} at position {unknown[0] + 1} is not one of the 20 residues")
    return [(index, int(wild_type[index]), int(tokens[index])) for index in indices]


def find_offset(mutants: Iterable[str], wild_type: np.ndarray) -> int | None:
    """Return the offset with which all mutations fit, or None unless there is exactly one. Needs three positions."""
    pairs: set[tuple[int, int]] = set()
    for mutant in mutants:
        text = mutant.strip()
        if text.upper() not in WILD_TYPE and not _SEQUENCE.fullmatch(text):
            try:
                pairs.update((position, TOKENS.index(old)) for old, position, *_ in _substitutions(text))
            except Malformed:
                return None
    if len(pairs) < 3:
        return None
    positions, residues = np.array(sorted(pairs)).T
    first, last = int(positions.max()) - len(wild_type), int(positions.min()) - 1
    matches = [x for x in range(first, last + 1) if (wild_type[positions - x - 1] == residues).all()]
    return matches[0] if len(matches) == 1 else None


def _substitutions(text: str) -> Iterator[tuple[str, int, str, str]]:
    """Yield (wild-type residue, position, new residue, text) of each substitution. Raises Malformed."""
    plain = re.sub(r"^p\.", "", text.translate(_BRACKETS), flags=re.IGNORECASE)
    for part in filter(None, re.split(r"[:/;,+\s]+", plain)):
        letters = re.sub(r"^P\.", "", part.upper())
        match = _ONE.fullmatch(letters)
        old = _THREE.get(match[1], match[1]) if match else ""
        new = (old if match[3] == "=" else _THREE.get(match[3], match[3])) if match else ""
        if match is None or len(old) > 1 or len(new) > 1 or new not in RESIDUES or old not in TOKENS:
            if _NO_SUBSTITUTION.search(letters):
                raise Malformed(
                    f"{part!r} is not a substitution: insertions, deletions, frameshifts and stops are not supported"
                )
            raise Malformed(
                f"{part!r} is not a substitution of the 20 residues; expected a form such as A23V, p.Ala23Val or "
                "A23V:G45D"
            )
        yield old, int(match[2]), new, part


def _misplaced(message: str) -> Malformed:
    error = Malformed(message)
    error.misplaced = True
    return error


def effect(changes: Iterable[tuple[int, int, int]], log_p: np.ndarray) -> float:
    """Return Σ log p(new) − log p(wild type); log_p: [positions of the protein, V]."""
    return float(sum(float(log_p[position, new]) - float(log_p[position, old]) for position, old, new in changes))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return the rank correlation of a and b, [n] each; ties share their mean rank; nan if a or b is constant."""
    from scipy import stats  # the import takes two thirds of a second

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)  # the result is nan
        return float(stats.spearmanr(a, b).statistic)
