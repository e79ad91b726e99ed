"""The vocabulary against that of the AMPLIFY repository, and `encode` against a loop over characters."""

import hashlib
import re
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from amplify_ds import vocab

PUBLISHED = "<pad> <unk> <mask> <bos> <eos> | L A G V S E R T I D P K Q N F Y M H W C B".split()
PIECES = [
    "<pad>",
    "<unk>",
    "<mask>",
    "<bos>",
    "<eos>",
    "<",
    "<ma",
    "<MASK>",
    "<<bos>>",
    "é",
    "\u212a",
    "ı",
    "\ud800",
    "😀",
    "|",
    "B",
    "ſ",
    " ",
    "\n",
    "<ma sk>",
    "<ma\xa0sk>",
    "\x1f",
    "\u3000",
    "\ufeff",
    "xzuoj",
    "\x00",
    "\x82",
    "acdefghiklmnpqrstvwy",
    "ACDEFGHIKLMNPQRSTVWY",
]


def encode_by_loop(text: str) -> list[int]:
    ids, position = [], 0
    while position < len(text):
        special = next((token for token in PUBLISHED[:5] if text.startswith(token, position)), None)
        character = special or text[position]
        position += len(character)
        if character.isspace():
            continue
        if "a" <= character <= "z":
            character = chr(ord(character) - 32)
        ids.append(PUBLISHED.index(character) if character in PUBLISHED else 1)
    return ids


def test_tokens_are_the_published_ones():
    assert list(vocab.TOKENS) == PUBLISHED
    assert [vocab.PAD, vocab.UNK, vocab.MASK, vocab.BOS, vocab.EOS] == [0, 1, 2, 3, 4]
    assert sorted(vocab.RESIDUES) == sorted("ACDEFGHIKLMNPQRSTVWY")
    assert vocab.VOCABULARY_SHA256 == hashlib.sha256("\n".join(PUBLISHED).encode()).hexdigest()


def test_published_example():
    assert vocab.encode("KA<mask>ISQ").tolist() == [17, 7, 2, 14, 10, 18]
    assert vocab.encode("").tolist() == []


@given(st.lists(st.text() | st.sampled_from(PIECES)).map("".join))
def test_encode_agrees_with_a_loop_over_characters(text):
    ids = vocab.encode(text)
    assert ids.dtype == np.uint8
    assert ids.tolist() == encode_by_loop(text)


def test_white_space_agrees_with_isspace():
    one = re.compile(f"[{vocab.WHITE_SPACE}]")
    characters = [chr(i) for i in range(sys.maxunicode + 1)]
    assert [c for c in characters if one.match(c)] == [c for c in characters if c.isspace()]


@given(st.binary().filter(bytes.isascii).filter(lambda text: b"<" not in text))
def test_encode_bytes_agrees_with_encode_but_for_white_space(text):
    expected = [1 if letter.isspace() else int(vocab.encode(letter)[0]) for letter in text.decode()]
    assert list(vocab.encode_bytes(text)) == expected


@given(st.lists(st.integers(0, 26)))
def test_encode_inverts_decode(ids):
    assert vocab.encode(vocab.decode(ids)).tolist() == ids
