"""Clean one sequence: text in, token ids out, or a reason for which it is dropped.

Mended: blanks within the sequence and `*` at its end are removed, lower case is raised. Dropped: an empty sequence; one
with a character that is no token; one with any of B J O U X Z (the rule by which UR100P was made). The chain break `|`
passes. Nearly every sequence needs nothing of this: one table look-up shows it and gives its ids.
"""

from __future__ import annotations

from collections import Counter

from amplify_ds.vocab import RESIDUES, encode_bytes

AMBIGUOUS = b"BJOUXZ"
_ALLOWED = RESIDUES.encode() + b"|"
_UNCLEAN = 0xFF  # no id
_ID_OR_UNCLEAN = bytes(encode_bytes(bytes([byte]))[0] if byte in _ALLOWED else _UNCLEAN for byte in range(256))


def clean(text: bytes, mended: Counter[str], rejected: Counter[str]) -> bytes | None:
    """Return the ids of the sequence `text`, one byte each, or None; what was done is counted by reason."""
    ids = text.translate(_ID_OR_UNCLEAN)
    if ids and _UNCLEAN not in ids:
        return ids
    solid = b"".join(text.split())
    upper = solid.upper()
    sequence = upper.rstrip(b"*")
    if not sequence:
        rejected["empty"] += 1
    elif sequence.translate(None, _ALLOWED + AMBIGUOUS):
        rejected["other characters"] += 1
    elif sequence.translate(None, _ALLOWED):
        rejected["B J O U X Z"] += 1
    else:
        mended["blanks removed"] += solid != text
        mended["lower case raised"] += upper != solid
        mended["* at the end removed"] += sequence != upper
        return encode_bytes(sequence)
    return None
