"""Ray's label selectors: which simulators a trainer asks for. Pure.

Ray matches them itself where it places (placement groups); here they choose among nodes that are known already.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from remoterl.errors import ConfigurationError

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"(?:[A-Za-z0-9.-]+/)?{_NAME}")
_SELECTOR = re.compile(rf"(?P<negated>!?)(?:in\((?P<several>{_NAME}(?:, ?{_NAME})*)\)|(?P<one>{_NAME}))")


def check_selector(selector: Mapping[str, str] | None) -> dict[str, str]:
    """The selector as a dict of its own.

    Raises:
        ConfigurationError: a key or a value is not of Ray's syntax (Ray 2.60, `label_selector`).
    """
    if selector is None:
        return {}
    if not isinstance(selector, Mapping):
        raise ConfigurationError(f"labels must be a dict of strings, got {type(selector).__name__}.")
    for key, value in selector.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise ConfigurationError(f"label names follow Kubernetes' rules, got {key!r}.")
        if not isinstance(value, str) or not _SELECTOR.fullmatch(value):
            raise ConfigurationError(
                f"label {key!r} must be asked for as 'value', '!value', 'in(one,two)' or '!in(one,two)', got {value!r}."
            )
    return dict(selector)


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Does a node with these labels satisfy every condition? What is negated holds for a missing label too."""
    return all(_holds(labels.get(key), condition) for key, condition in selector.items())


def parse_options(options: list[str] | None, name: str = "--label", form: str = "KEY=VALUE") -> dict[str, str]:
    """Read the command line's options of this name, KEY=VALUE each.

    Raises:
        ConfigurationError: one has no `=`.
    """
    labels = {}
    for text in options or []:
        key, separator, value = text.partition("=")
        if not separator:
            raise ConfigurationError(f"{name} takes {form}, got {text!r}.")
        labels[key] = value
    return labels


def _holds(value: str | None, condition: str) -> bool:
    match = _SELECTOR.fullmatch(condition)
    if match is None:
        return False
    wanted = re.split(r", ?", match["several"]) if match["several"] else [match["one"]]
    return (value in wanted) != bool(match["negated"])
