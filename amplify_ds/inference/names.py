"""Names of proteins as names of files: in an archive that someone unpacks, and of files that are read.

A protein may be called anything. As the name of a file that could lead out of the folder (`../../x`, `/etc/x`), or be
one that no file system takes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_UNSAFE = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # UniProt's | and the : of 1abc:A are safe
LONGEST = 250  # bytes; a file system takes 255, a suffix included


def file_names(names: Sequence[str]) -> list[str]:
    """Return distinct names without a folder in them: each name itself if it is one, else one made of it.

    Unsafe characters and a dot in front become `_`, what is too long is cut, and what another protein is called already
    has a number behind it. The names themselves must be distinct.
    """
    safe = [_safe(name) for name in names]
    taken = {name for name, found in zip(names, safe) if name == found}
    for index, (name, found) in enumerate(zip(names, safe)):
        if name == found:
            continue
        number, chosen = 1, found
        while chosen in taken:
            number += 1
            chosen = f"{_cut(found, LONGEST - 8)}-{number}"
        taken.add(chosen)
        safe[index] = chosen
    return safe


def _safe(name: str) -> str:
    name = _UNSAFE.sub("_", name)
    return _cut("_" + name[1:] if name.startswith(".") else name or "_", LONGEST)


def _cut(name: str, most: int) -> str:
    return name.encode()[:most].decode(errors="ignore")
