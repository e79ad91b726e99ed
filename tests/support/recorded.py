"""Compare what was found with the values recorded in the JSON files of tests/recorded, or record them."""

import json
import math
import os
from hashlib import sha256

from tests.support.paths import ROOT

RECORDED = ROOT / "tests/recorded"
RECORDING = os.environ.get("RECORD_BEHAVIOUR") == "1"


def check(topic: str, part: str, found: dict, relative: float = 0.0, for_ever: bool = False) -> None:
    """Fail unless the values recorded under `part` in TOPIC.json are those `found`; when recording, record these.

    found: {name: str, int, float, bool or None}. Floats may differ by the share `relative`; all else is exact.
    for_ever: these values are not recorded anew, whatever is asked.
    """
    file = RECORDED / f"{topic}.json"
    found = {f"{part}: {name}": value for name, value in found.items()}
    content = json.loads(file.read_text()) if file.exists() else {}
    recorded = {name: value for name, value in content.items() if name.startswith(f"{part}: ")}
    if RECORDING and not (for_ever and recorded):
        assert not os.environ.get("CI"), "nothing is recorded in continuous integration; unset RECORD_BEHAVIOUR"
        kept = {name: value for name, value in content.items() if name not in recorded}
        file.write_text(json.dumps(dict(sorted({**kept, **found}.items())), indent=0) + "\n")
        return
    differing = [
        f"  {name}: recorded {recorded.get(name, 'nothing')!r}, found {found.get(name, 'nothing')!r}"
        for name in sorted({*recorded, *found})
        if name not in recorded or name not in found or not _same(recorded[name], found[name], relative)
    ]
    assert not differing, (
        f"{len(differing)} values differ from {file.name} (tests/recorded/README.md says when to record anew):\n"
        + "\n".join(differing)
    )


def _same(recorded, found, relative: float) -> bool:
    if isinstance(recorded, float) and isinstance(found, float):
        return math.isclose(recorded, found, rel_tol=relative, abs_tol=0.0)
    return type(recorded) is type(found) and recorded == found


def digest(content) -> str:
    """sha256 of bytes, or of what JSON makes of anything else, whatever the order of its keys."""
    return sha256(content if isinstance(content, bytes) else json.dumps(content, sort_keys=True).encode()).hexdigest()


def keys(content, place: str = "") -> dict[str, str]:
    """{place: types} of everything in a JSON value: "progress.history[].loss": "float"."""
    found: dict[str, set] = {}
    _visit(content, place, found)
    return {place or ".": " | ".join(sorted(types)) for place, types in found.items()}


def _visit(content, place: str, found: dict[str, set]) -> None:
    found.setdefault(place, set()).add(type(content).__name__)
    if isinstance(content, dict):
        for name, value in content.items():
            _visit(value, f"{place}.{name}" if place else name, found)
    elif isinstance(content, list):
        for value in content:
            _visit(value, f"{place}[]", found)
