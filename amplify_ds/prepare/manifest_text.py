"""The lines of text about a manifest that build_shards.py and inspect_shards.py both print."""

from __future__ import annotations

from collections.abc import Iterable

from amplify_ds.prepare.clean import EXISTENCE, FRAGMENTS

_PATTERNS = {FRAGMENTS: '"(Fragment)"', EXISTENCE: "a higher PE="}


def counts(manifest: dict) -> list[tuple[str, str]]:
    """Return (name, value) lines: what was read, normalised, dropped and kept, and how full the rows are."""
    counted = manifest["counts"]
    return [
        ("records read", f"{counted['records']:,}"),
        *((f"  dropped: {reason}", _dropped(reason, count)) for reason, count in counted["rejected"].items()),
        ("sequences kept", f"{counted['sequences']:,}"),
        *((f"  normalised: {reason}", f"{count:,}") for reason, count in counted["mended"].items()),
        *((f"  noted: {note}", f"{count:,}") for note, count in counted.get("noted", {}).items()),
        ("residues", f"{counted['residues']:,}"),
        ("windows", f"{counted['windows']:,} of at most {manifest['max_length']:,} tokens"),
        ("rows", f"{counted['rows']:,} of {manifest['row_tokens']:,} tokens"),
        ("packing efficiency", f"{manifest['packing_efficiency']:.2%} of the tokens are not <pad>"),
    ]


def _dropped(reason: str, count: int) -> str:
    return f"{count:,}" if count else f"0, no name matched {_PATTERNS.get(reason, 'the rule')}"


def table(lines: Iterable[tuple[str, str]]) -> str:
    """Return (name, value) lines as text in two columns."""
    lines = list(lines)
    width = max([30, *(len(name) + 2 for name, _ in lines)])
    return "\n".join(f"{name:<{width}}{value}" for name, value in lines)
