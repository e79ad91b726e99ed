"""Read untrusted JSON and YAML files: return their content or raise one clear error, within a second.

Refused are repeated keys, integers beyond 64 bits, nesting deeper than 64 levels and oversized files; in YAML also
anchors and aliases, with which a few lines can expand to billions of values.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from amplify_ds.errors import AmplifyError, explain

LARGEST_JSON, LARGEST_YAML = 2**26, 2**16  # bytes
DEEPEST = 64
_SHOWN = 30  # characters of a number in a message


def parse_json(text: str | bytes) -> Any:
    """Return the content of a JSON text. Raises ValueError with the reason if it is invalid or refused."""
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats, parse_int=_integer)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_depth(content)
    return content


def parse_yaml(text: str) -> Any:
    """Return the content of a YAML text. Raises ValueError with the reason if it is invalid or refused."""
    try:
        _check_events(text)
        content = yaml.load(text, _Loader)
    except (yaml.YAMLError, KeyError, AttributeError, TypeError, OverflowError) as error:  # `!!int x` and the like
        raise ValueError(str(error) or type(error).__name__) from None
    return content


def read_json(path: Path, advice: str = "", largest: int = LARGEST_JSON) -> Any:
    """Return the content of a JSON file.

    Raises FileNotFoundError if there is none, and AmplifyError, ending with `advice`, if it cannot be read.
    """
    try:
        return parse_json(_read(path, largest))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise AmplifyError(explain(error) or f"{path}: cannot be read as JSON: {error}{advice}") from None


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file. Raises FileNotFoundError if there is none, AmplifyError if it is invalid."""
    try:
        return parse_yaml(_read(path, LARGEST_YAML).decode())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise AmplifyError(explain(error) or f"{path}: cannot be read as YAML: {error}") from None


def _read(path: Path, largest: int) -> bytes:
    try:
        file = open(path, "rb")
    except NotADirectoryError as error:  # a parent of the path is a file
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from None
    with file:
        content = file.read(largest + 1)  # no more: a device or a pipe may have no end
    if len(content) > largest:
        raise ValueError(f"it is larger than {largest:,} bytes, the limit for such files")
    return content


_TOO_DEEP = f"it is nested deeper than {DEEPEST} levels"


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"{key} appears twice")
            seen.add(key)
    return content


def _integer(text: str) -> int:
    # At most 20 characters. Checked first, because Python refuses thousands of digits with a message of its own.
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError(f"{text[:_SHOWN]}{'…' * (len(text) > _SHOWN)} is an integer beyond 64 bits")
    return int(text)


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(DEEPEST + 1):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent if isinstance(parent, list) else ())
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _check_events(text: str) -> None:
    """Check anchors and depth before anything is constructed: the constructor recurses as deep as the text does."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        if anchor := getattr(event, "anchor", None):  # of an anchor or an alias
            assert event.start_mark is not None  # for mypy: the parser always sets it
            raise ValueError(
                f"line {event.start_mark.line + 1}: anchors and aliases (&{anchor}, *{anchor}) are not supported; "
                "write the value out"
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(_TOO_DEEP)


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # faster, if PyYAML was built with libyaml


class _Loader(_SafeLoader):
    def construct_mapping(self, node, deep=False):
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ValueError(f"line {key.start_mark.line + 1}: {key.value} appears twice")
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_int(self, node):
        if len(node.value) > 100:  # more than 64 binary digits with underscores
            raise ValueError(f"{node.value[:_SHOWN]}… is an integer beyond 64 bits")
        value = self.construct_yaml_int(node)
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"{node.value} is an integer beyond 64 bits")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
