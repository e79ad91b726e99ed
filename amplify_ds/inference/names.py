"""Turn protein names into safe file names, for the entries of an archive and for contact files.

A protein can have any name. Used as a file name, it could point out of the folder (`../../x`, `/etc/x`) or be invalid
on a file system.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_UNSAFE = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # UniProt's | and the : of 1abc:A are safe
LONGEST = 250  # bytes; file systems allow 255, including the suffix


def file_names(names: Sequence[str]) -> list[str]:
    """Return distinct, safe file names in the order of `names`, which must be distinct. A safe name is not changed.

    Unsafe characters and a leading dot become `_`, a name that is too long is cut, and a number is appended to a name
    that is already taken.
    """
    results = [_safe(name) for name in names]
    taken = {name for name, safe in zip(names, results) if name == safe}
    for index, (name, safe) in enumerate(zip(names, results)):
        if name == safe:
            continue
        number, unique = 1, safe
        while unique in taken:
            number += 1
            unique = f"{_cut(safe, LONGEST - 8)}-{number}"
        taken.add(unique)
        results[index] = unique
    return results


def _safe(name: str) -> str:
    name = _UNSAFE.sub("_", name)
    return _cut("_" + name[1:] if name.startswith(".") else name or "_", LONGEST)


def _cut(name: str, max_bytes: int) -> str:
    return name.encode()[:max_bytes].decode(errors="ignore")
