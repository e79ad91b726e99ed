"""The 27 tokens of AMPLIFY, and conversion between text and ids. No other file of the project spells out an id.

The index in `TOKENS` is the id, so every id fits in one byte and a protein is an array of uint8. Text is converted
without a Python loop over residues: it is encoded as ASCII, one byte per character (any other character becomes "?"),
and `bytes.translate` looks up every byte in a table of 256 ids and drops white space. Special tokens that are spelt out
in the text (`<mask>`) are first replaced by bytes from 128 up, which ASCII does not use.
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
    "B",  # aspartate or asparagine; no training sequence contains it
)
PAD, UNK, MASK, BOS, EOS = range(5)
SPECIAL: tuple[str, ...] = TOKENS[:5]
RESIDUES = "".join(TOKENS[6:26])
"""The 20 standard amino acids, in the order of their ids."""

VOCABULARY_SHA256 = hashlib.sha256("\n".join(TOKENS).encode()).hexdigest()
"""Stored in shards and checkpoints, so that data with other ids are refused."""

WHITE_SPACE = "\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""The characters for which `str.isspace` is true, as the inside of a regular expression's character class."""

_SPACE = re.compile(f"[{WHITE_SPACE}]")
_ASCII_SPACE = bytes(byte for byte in range(128) if chr(byte).isspace())
_SPELT_OUT = re.compile("|".join(SPECIAL).encode())
_FIRST_FREE = 128  # the byte that represents special token 0 before the table is applied


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

    Lower case is converted to upper case, and white space is dropped. `<pad> <unk> <mask> <bos> <eos>`, written exactly
    so, become those tokens; every other character that is no token becomes one <unk>.
    """
    if not sequence.isascii():
        sequence = _SPACE.sub(" ", sequence)
    text = sequence.encode("ascii", errors="replace")
    if b"<" in text:
        text = _SPELT_OUT.sub(lambda match: bytes([_FIRST_FREE + SPECIAL.index(match[0].decode())]), text)
    return np.frombuffer(text.translate(_ID_OF_BYTE, _ASCII_SPACE), dtype=np.uint8)


def encode_bytes(sequence: bytes) -> bytes:
    """Return one id for each byte of ASCII text, white space and "<" included. Used where shards are built.

    Agrees with `encode` on text without white space and special tokens.
    """
    return sequence.translate(_ID_OF_BYTE)


def decode(ids: Iterable[int]) -> str:
    """Return the tokens of `ids` joined into one string, special tokens spelt out."""
    return "".join([TOKENS[index] for index in ids])
