"""Mutations, and their effects as a model sees them.

A mutation is a substitution, written A23V (wild-type residue, position from 1, new residue) or p.Ala23Val; several at
once are joined by ":" (also "/", ";", "," or "+"). WT is none at all, with the effect 0. Insertions, deletions,
frameshifts and stops are refused.

Effect of a mutation: Σ over its positions of log p(new) − log p(wild type), in the wild-type sequence, each position on
its own: masked alone (masked-marginal) or not masked (wild-type-marginal, one pass). Meier et al. 2021.
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
    """What is wrong with one mutation. misplaced: the position or the residue there is, so that an offset may help."""

    misplaced = False


def parse(mutant: str, wild_type: np.ndarray, offset: int = 0) -> Changes:
    """The changes of a mutation, by position, none for the wild type; wild_type: token ids. Raises Malformed.

    offset: what the positions of `mutant` are above those in `wild_type`.
    """
    text = mutant.strip()
    if text.upper() in WILD_TYPE:
        return []
    if _SEQUENCE.fullmatch(text):
        return compare(text, wild_type)
    changes = {}
    for old, position, new, one in _substitutions(text):
        place = position - offset
        if not 1 <= place <= len(wild_type):
            above = f", which --offset {offset} makes {offset + 1} to {offset + len(wild_type)}" if offset else ""
            raise _misplaced(f"{one}: the protein has the positions 1 to {len(wild_type)}{above}")
        if (stands := TOKENS[wild_type[place - 1]]) != old:
            raise _misplaced(f"{one}: {stands} is at {position}, not {old}")
        if place - 1 in changes:
            raise Malformed(f"{text}: changes position {position} twice")
        changes[place - 1] = (TOKENS.index(old), TOKENS.index(new))
    return [(position, *tokens) for position, tokens in sorted(changes.items())]


def compare(sequence: str, wild_type: np.ndarray) -> Changes:
    """The changes that make `sequence` of the wild type. Raises Malformed where it is longer or shorter."""
    text = "".join(sequence.split()).rstrip("*").upper()
    tokens = np.frombuffer(encode_bytes(text.encode("ascii", "replace")), dtype=np.uint8)
    if len(tokens) != len(wild_type):
        raise Malformed(
            f"a sequence of {len(tokens):,} residues, the protein has {len(wild_type):,}: insertions and deletions are "
            "not scored, substitutions only. The perplexities of whole sequences are what `score` without --mutations "
            "writes"
        )
    places = np.flatnonzero(tokens != wild_type).tolist()
    if strange := [place for place in places if TOKENS[tokens[place]] not in RESIDUES]:
        raise Malformed(f"{text[strange[0]]!r} at {strange[0] + 1} is none of the 20 residues")
    return [(place, int(wild_type[place]), int(tokens[place])) for place in places]


def find_offset(mutants: Iterable[str], wild_type: np.ndarray) -> int | None:
    """The one offset with which all mutations fit, where there is just one; three different positions show it."""
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
    fitting = [x for x in range(first, last + 1) if (wild_type[positions - x - 1] == residues).all()]
    return fitting[0] if len(fitting) == 1 else None


def _substitutions(text: str) -> Iterator[tuple[str, int, str, str]]:
    """(wild-type residue, position, new residue, text) of each. Raises Malformed."""
    plain = re.sub(r"^p\.", "", text.translate(_BRACKETS), flags=re.IGNORECASE)
    for one in filter(None, re.split(r"[:/;,+\s]+", plain)):
        letters = re.sub(r"^P\.", "", one.upper())
        match = _ONE.fullmatch(letters)
        old = _THREE.get(match[1], match[1]) if match else ""
        new = (old if match[3] == "=" else _THREE.get(match[3], match[3])) if match else ""
        if match is None or len(old) > 1 or len(new) > 1 or new not in RESIDUES or old not in TOKENS:
            if _NO_SUBSTITUTION.search(letters):
                raise Malformed(
                    f"{one!r} is no substitution: insertions, deletions, frameshifts and stops are not scored"
                )
            raise Malformed(f"{one!r} is no mutation such as A23V, p.Ala23Val or A23V:G45D of the 20 residues")
        yield old, int(match[2]), new, one


def _misplaced(message: str) -> Malformed:
    error = Malformed(message)
    error.misplaced = True
    return error


def effect(changes: Iterable[tuple[int, int, int]], log_p: np.ndarray) -> float:
    """Σ log p(new) − log p(wild type); log_p [positions of the protein, V]."""
    return float(sum(float(log_p[position, new]) - float(log_p[position, old]) for position, old, new in changes))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of a and b, [n] each, equal values sharing their mean rank; nan where one is constant."""
    from scipy import stats  # two thirds of a second, so only where something was measured

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)  # nan says it
        return float(stats.spearmanr(a, b).statistic)
