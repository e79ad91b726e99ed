"""Read JSON and YAML files that may hold anything: either their content or one clear message, within a second.

Refused are a key that appears twice, an integer beyond 64 bits, nesting deeper than 64 levels, a file larger than any
of its kind, and in YAML anchors and aliases: a few lines of them stand for billions of values.
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
    """Raises ValueError, which says what is wrong, for what is no JSON or is refused."""
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats, parse_int=_integer)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_depth(content)
    return content


def parse_yaml(text: str) -> Any:
    """Raises ValueError, which says what is wrong, for what is no YAML or is refused."""
    try:
        _check_events(text)
        content = yaml.load(text, _Loader)
    except (yaml.YAMLError, KeyError, AttributeError, TypeError, OverflowError) as error:  # `!!int x` and the like
        raise ValueError(str(error) or type(error).__name__) from None
    return content


def read_json(path: Path, advice: str = "", largest: int = LARGEST_JSON) -> Any:
    """The content of a JSON file. Raises FileNotFoundError where there is none, else AmplifyError with `advice` behind
    it.
    """
    try:
        return parse_json(_read(path, largest))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise AmplifyError(explain(error) or f"{path}: cannot be read as JSON: {error}{advice}") from None


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises FileNotFoundError where there is none, else AmplifyError."""
    try:
        return parse_yaml(_read(path, LARGEST_YAML).decode())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise AmplifyError(explain(error) or f"{path}: cannot be read as YAML: {error}") from None


def _read(path: Path, largest: int) -> bytes:
    try:
        file = open(path, "rb")
    except NotADirectoryError as error:  # a file stands where a directory of the path should be
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from None
    with file:
        content = file.read(largest + 1)  # no more: the size of a device or a pipe is not known before
    if len(content) > largest:
        raise ValueError(f"it is larger than {largest:,} bytes, which no such file is")
    return content


_TOO_DEEP = f"it is nested deeper than {DEEPEST} levels"


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"{key} appears twice")
            seen.add(key)
    return found


def _integer(text: str) -> int:
    # 19 digits and a sign at most. Checked first: Python refuses thousands of digits in words of its own.
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
    """Before anything is built of it: the parser itself goes as deep as the text does."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        if anchor := getattr(event, "anchor", None):  # what an alias refers to, too
            assert event.start_mark is not None  # the parser gives one to every event
            raise ValueError(
                f"line {event.start_mark.line + 1}: anchors and aliases (&{anchor}, *{anchor}) are not supported; "
                "write the value out"
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(_TOO_DEEP)


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the quick one, where PyYAML was built with libyaml


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
        if len(node.value) > 100:  # binary digits with underscores have most characters
            raise ValueError(f"{node.value[:_SHOWN]}… is an integer beyond 64 bits")
        value = self.construct_yaml_int(node)
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"{node.value} is an integer beyond 64 bits")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
