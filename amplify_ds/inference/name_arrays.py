"""Names of proteins as arrays: as many bytes as they have letters, whatever the longest is.

NumPy keeps text in cells as wide as its longest, four bytes a letter, so that one name of 60,000 letters would make
every other as wide. Parts that wait on disk hold the names as UTF-8 laid end to end, and where each ends; the result
has the array that NumPy reads, compressed and made a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

BYTES, ENDS = "name_bytes", "name_ends"
_PART = 2**22  # bytes of the array that are made at a time


def packed(names: Sequence[str]) -> dict[str, np.ndarray]:
    texts = [name.encode(errors="replace") for name in names]
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    return {BYTES: np.frombuffer(b"".join(texts), np.uint8), ENDS: ends}


def unpacked(arrays: Mapping[str, np.ndarray]) -> list[str]:
    text, ends = arrays[BYTES].tobytes(), arrays[ENDS].tolist()
    return [text[begin:end].decode() for begin, end in zip([0, *ends], ends)]


def as_arrays(parts: Iterable[list[str]], dtype: np.dtype) -> Iterator[np.ndarray]:
    """The names as arrays of this dtype, of bounded size."""
    step = max(1, _PART // max(1, dtype.itemsize))
    for names in parts:
        for begin in range(0, len(names), step):
            yield np.array(names[begin : begin + step], dtype)
