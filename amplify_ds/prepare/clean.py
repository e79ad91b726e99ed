"""Clean sequences: convert text to token ids, and count by reason what is normalised or dropped.

Normalised: blanks within a sequence and a trailing `*` are removed, lower case becomes upper case. Dropped: an empty
sequence; one with a character that is not a token (gaps are counted separately); one with any of B J O U X Z (the rule
by which UR100P was made); on request, entries that UniProt's header calls a fragment or puts below a level of protein
existence, and sequences that are too short or too long. The chain break `|` is kept. Sequences of A C G T N alone are
kept and counted. Nearly all sequences are clean: one table look-up for a whole batch shows it and gives the ids.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from amplify_ds.prepare.alphabet import GAPS
from amplify_ds.prepare.fasta import Batch
from amplify_ds.vocab import RESIDUES, encode_bytes

AMBIGUOUS = b"BJOUXZ"
FRAGMENTS, EXISTENCE, UNLABELLED = "fragments", "protein existence", "names without PE= (kept)"
MODES = ("drop", "keep")
LEVELS = {1: "protein", 2: "transcript", 3: "homology", 4: "predicted", 5: "uncertain"}  # UniProt's PE=
_ALLOWED = RESIDUES.encode() + b"|"
WITH_GAPS = "gaps of an alignment (--alignment strip)"
LIKE_NUCLEOTIDES = "made of A C G T N alone, like nucleotides (kept)"
_NUCLEOTIDES = encode_bytes(b"ACGTN")
_MIN_RESIDUES = 20  # to count as nucleotides: a quarter of the residues of proteins are A C G T N
_SEPARATOR, _UNCLEAN = 0xFE, 0xFF  # not ids: between two sequences, and for a character that is not a token
_EXISTENCE = re.compile(r"\bPE=([1-5])\b")


@dataclass(frozen=True)
class Rules:
    """What is dropped and normalised. Every field is an option of build_shards.py and recorded in the manifest."""

    ambiguous: str = "drop"  # or "keep": B is a token, J O U X Z become <unk>
    fragments: str = "keep"
    max_existence: int = 5  # the highest PE= that passes; UR100P's validation proteins have 1 or 2
    shortest: int = 1  # residues, `|` counted
    longest: int | None = None
    mend: bool = True  # normalise; manifests have this name
    duplicates: str = "drop"

    @property
    def name_rules(self) -> list[str]:
        """The rules that read names, as they are called in the report."""
        return [FRAGMENTS] * (self.fragments == "drop") + [EXISTENCE] * (self.max_existence < max(LEVELS))

    def sequence_rules(self) -> Rules:
        """Return these rules without those that drop an entry for its name or its length."""
        return Rules(ambiguous=self.ambiguous, mend=self.mend)


@dataclass
class Cleaner:
    """Applies rules to batches and counts by reason what it normalises and rejects."""

    rules: Rules
    normalised: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)  # other counts for the report

    def __post_init__(self) -> None:
        self._allowed = _ALLOWED + (AMBIGUOUS if self.rules.ambiguous == "keep" else b"")
        ids = {x: encode_bytes(bytes([x]))[0] for x in self._allowed} | {ord("\n"): _SEPARATOR}
        self._table = bytes(ids.get(x, _UNCLEAN) for x in range(256))
        self._reads_names = bool(self.rules.name_rules)
        self._limits_length = self.rules.shortest > 1 or self.rules.longest is not None

    def clean(self, batch: Batch) -> list[bytes]:
        """Return the ids, one byte each, of the sequences that are kept."""
        self.rejected.update(batch.left_out)
        self.noted.update(batch.noted)
        if not batch.names:
            return []
        text = batch.text
        if self._reads_names:
            lines = [line for name, line in zip(batch.names, text.split(b"\n")) if self._name_passes(name)]
            if not lines:
                return []
            text = b"\n".join(lines)
        translated = text.translate(self._table)
        kept = translated.split(bytes([_SEPARATOR]))
        if _UNCLEAN in translated or b"" in kept:
            pairs = zip(kept, text.split(b"\n"))
            kept = [ids if ids and _UNCLEAN not in ids else self._normalise(line) for ids, line in pairs]
            kept = [ids for ids in kept if ids]
        if self._limits_length:
            kept = [ids for ids in kept if self._length_passes(len(ids))]
        if suspects := [ids for ids in kept if not ids[:_MIN_RESIDUES].translate(None, _NUCLEOTIDES)]:
            self.noted[LIKE_NUCLEOTIDES] += sum(map(_is_like_nucleotides, suspects))
        return kept

    def _name_passes(self, name: str) -> bool:
        if self.rules.fragments == "drop" and ("(Fragment)" in name or "(Fragments)" in name):
            self.rejected[FRAGMENTS] += 1
            return False
        if self.rules.max_existence < max(LEVELS):
            level = _EXISTENCE.search(name)
            if level is None:
                self.noted[UNLABELLED] += 1
            elif int(level[1]) > self.rules.max_existence:
                self.rejected[EXISTENCE] += 1
                return False
        return True

    def _length_passes(self, length: int) -> bool:
        if length < self.rules.shortest:
            self.rejected["too short"] += 1
            return False
        if self.rules.longest is not None and length > self.rules.longest:
            self.rejected["too long"] += 1
            return False
        return True

    def _normalise(self, text: bytes) -> bytes:
        """Return the ids of a sequence that is not clean, or b"" if it is dropped."""
        joined = upper = sequence = text
        if self.rules.mend:
            joined = b"".join(text.split())
            upper = joined.upper()
            sequence = upper.rstrip(b"*")
        if not sequence:
            self.rejected["empty"] += 1
        elif others := sequence.translate(None, self._allowed + AMBIGUOUS):
            self.rejected["other characters" if others.strip(GAPS) else WITH_GAPS] += 1
        elif sequence.translate(None, self._allowed):
            self.rejected["B J O U X Z"] += 1
        else:
            self.normalised["blanks removed"] += joined != text
            self.normalised["lower case raised"] += upper != joined
            self.normalised["* at the end removed"] += sequence != upper
            return encode_bytes(sequence)
        return b""


def _is_like_nucleotides(ids: bytes) -> bool:
    return len(ids) >= _MIN_RESIDUES and not ids.translate(None, _NUCLEOTIDES) and set(_NUCLEOTIDES[:4]) <= set(ids)
