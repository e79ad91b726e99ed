"""The 27 tokens of AMPLIFY and text <-> ids: the only place in the project where an id is written down.

The position in `TOKENS` is the id, so every id fits in one byte and a protein is an array of uint8. Text becomes ids
without a Python loop over residues: the text is encoded as ASCII, one byte a character (whatever is not ASCII becomes
one "?"), and `bytes.translate` looks every byte up in a table of 256 ids. ASCII text leaves the bytes from 128 up free;
the special tokens spelt out in the text (`<mask>`) are replaced by those before the look-up, which drops white space.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import numpy as np

TOKENS: tuple[str, ...] = (
    "<pad>",
    "<unk>",
    "<mask>",
    "<bos>",
    "<eos>",
    "|",  # the break between the chains of an antibody
    "L",
    "A",
    "G",
    "V",
    "S",
    "E",
    "R",
    "T",
    "I",
    "D",
    "P",
    "K",
    "Q",
    "N",
    "F",
    "Y",
    "M",
    "H",
    "W",
    "C",
    "B",  # aspartate or asparagine: a token, but no training sequence holds it
)
PAD, UNK, MASK, BOS, EOS = range(5)
SPECIAL: tuple[str, ...] = TOKENS[:5]
RESIDUES = "".join(TOKENS[6:26])
"""The 20 standard amino acids, in the order of their ids."""

VOCABULARY_SHA256 = hashlib.sha256("\n".join(TOKENS).encode()).hexdigest()
"""Shards and checkpoints carry this hash: ids of another vocabulary are refused."""

WHITE_SPACE = "\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""What `str.isspace` takes for white space, as a class of regular expressions has it: no part of a sequence."""

_SPACE = re.compile(f"[{WHITE_SPACE}]")
_ASCII_SPACE = bytes(byte for byte in range(128) if chr(byte).isspace())
_SPELT_OUT = re.compile("|".join(SPECIAL).encode())
_FIRST_FREE = 128  # the byte that stands for special token 0 between `_SPELT_OUT` and the table


def _table() -> bytes:
    ids = bytearray([UNK]) * 256
    for index, token in enumerate(TOKENS):
        if token in SPECIAL:
            ids[_FIRST_FREE + index] = index
        else:
            ids[ord(token)] = ids[ord(token.lower())] = index
    return bytes(ids)


_ID_OF_BYTE = _table()


def encode(sequence: str) -> np.ndarray:
    """Return the ids of `sequence` as uint8 [tokens], without <bos> and <eos>.

    Lower-case letters count as upper-case ones, and white space is dropped. `<pad> <unk> <mask> <bos> <eos>` written
    exactly so are those tokens; every other character that is no token is one <unk>.
    """
    if not sequence.isascii():
        sequence = _SPACE.sub(" ", sequence)
    text = sequence.encode("ascii", errors="replace")
    if b"<" in text:
        text = _SPELT_OUT.sub(lambda found: bytes([_FIRST_FREE + SPECIAL.index(found[0].decode())]), text)
    return np.frombuffer(text.translate(_ID_OF_BYTE, _ASCII_SPACE), dtype=np.uint8)


def encode_bytes(sequence: bytes) -> bytes:
    """One id for each byte of ASCII text, white space and "<" included: the fast path of the shard writer.

    The same as `encode` where there is no white space and no special token.
    """
    return sequence.translate(_ID_OF_BYTE)


def decode(ids: Iterable[int]) -> str:
    """Return the tokens of `ids` written one after the other, special tokens spelt out."""
    return "".join([TOKENS[index] for index in ids])
