"""Store protein names as arrays whose size does not depend on the longest name.

A NumPy text array gives every cell the width of the longest text, four bytes per character, so one name of 60,000
characters would make all cells that wide. Chunks on disk store the concatenated UTF-8 bytes and the end of each name.
The output has the array that NumPy reads, compressed and built a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

BYTES, ENDS = "name_bytes", "name_ends"
_MAX_BYTES = 2**22  # of an array of `as_arrays`


def encode_names(names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return {BYTES: uint8, the concatenated UTF-8 bytes; ENDS: int64 [names], the end of each name}."""
    texts = [name.encode(errors="replace") for name in names]
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    return {BYTES: np.frombuffer(b"".join(texts), np.uint8), ENDS: ends}


def decode_names(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Return the names that `encode_names` stored."""
    text, ends = arrays[BYTES].tobytes(), arrays[ENDS].tolist()
    return [text[begin:end].decode() for begin, end in zip([0, *ends], ends)]


def as_arrays(parts: Iterable[list[str]], dtype: np.dtype) -> Iterator[np.ndarray]:
    """Yield the names as arrays of `dtype`, each of at most `_MAX_BYTES` bytes or one name."""
    step = max(1, _MAX_BYTES // max(1, dtype.itemsize))
    for names in parts:
        for begin in range(0, len(names), step):
            yield np.array(names[begin : begin + step], dtype)
