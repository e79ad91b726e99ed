"""Compare values with those recorded in the JSON files of tests/recorded, or record them."""

import json
import math
import os
from hashlib import sha256

from tests.support.paths import ROOT

RECORDED = ROOT / "tests/recorded"
RECORDING = os.environ.get("RECORD_BEHAVIOUR") == "1"


def check(topic: str, part: str, values: dict, relative: float = 0.0, for_ever: bool = False) -> None:
    """Fail unless `values` equal those recorded under `part` in TOPIC.json; when recording, record them.

    values: {name: str, int, float, bool or None}. Floats may differ by the share `relative`; all else is exact.
    for_ever: values that exist are never recorded again.
    """
    file = RECORDED / f"{topic}.json"
    values = {f"{part}: {name}": value for name, value in values.items()}
    content = json.loads(file.read_text()) if file.exists() else {}
    recorded = {name: value for name, value in content.items() if name.startswith(f"{part}: ")}
    if RECORDING and not (for_ever and recorded):
        assert not os.environ.get("CI"), "do not record in continuous integration; unset RECORD_BEHAVIOUR"
        kept = {name: value for name, value in content.items() if name not in recorded}
        file.write_text(json.dumps(dict(sorted({**kept, **values}.items())), indent=0) + "\n")
        return
    differing = [
        f"  {name}: recorded {recorded.get(name, 'nothing')!r}, now {values.get(name, 'nothing')!r}"
        for name in sorted({*recorded, *values})
        if name not in recorded or name not in values or not _same(recorded[name], values[name], relative)
    ]
    assert not differing, (
        f"{len(differing)} values differ from {file.name} (tests/recorded/README.md says when to record again):\n"
        + "\n".join(differing)
    )


def _same(recorded, value, relative: float) -> bool:
    if isinstance(recorded, float) and isinstance(value, float):
        return math.isclose(recorded, value, rel_tol=relative, abs_tol=0.0)
    return type(recorded) is type(value) and recorded == value


def digest(content) -> str:
    """Return the sha256 of bytes, or of the JSON text of anything else with sorted keys."""
    return sha256(content if isinstance(content, bytes) else json.dumps(content, sort_keys=True).encode()).hexdigest()


def keys(content, path: str = "") -> dict[str, str]:
    """Return {path: types} of everything in a JSON value, such as "progress.history[].loss": "float"."""
    types_of: dict[str, set] = {}
    _visit(content, path, types_of)
    return {path or ".": " | ".join(sorted(types)) for path, types in types_of.items()}


def _visit(content, path: str, types_of: dict[str, set]) -> None:
    types_of.setdefault(path, set()).add(type(content).__name__)
    if isinstance(content, dict):
        for name, value in content.items():
            _visit(value, f"{path}.{name}" if path else name, types_of)
    elif isinstance(content, list):
        for value in content:
            _visit(value, f"{path}[]", types_of)
