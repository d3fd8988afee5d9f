"""Framework parameters of the command line (`--learning-rate 3e-4`), read by what an algorithm takes.

Pure: nothing here knows a framework. A parameter's type comes from its annotation, and from its default where
annotations promise less than the code takes.
"""

from __future__ import annotations

import difflib
import inspect
import json
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any

from remoterl.errors import ConfigurationError

# In the order in which a text is tried, the strictest first: anything is a str.
_NAMES: dict[type, str] = {
    NoneType: "none",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    list: "a JSON list",
    tuple: "a JSON list",
    dict: "a JSON object",
    str: "a text",
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of an algorithm, and the types a text may be read as (in this order).

    No type at all: it takes an object that no text can stand for (a callable, a class).
    """

    name: str
    types: tuple[type, ...]

    @classmethod
    def of(cls, name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> Parameter:
        """A parameter of this annotation, whose default is a value of one of its types too."""
        found = _types_of(annotation)
        if default is not inspect.Parameter.empty:
            found |= {kind for kind in _NAMES if type(default) is kind}
        if annotation in (inspect.Parameter.empty, Any) and found <= {NoneType}:
            found = set(_NAMES)
        expressible = tuple(kind for kind in _NAMES if kind in found)
        return cls(name, expressible if set(expressible) - {NoneType} else ())

    def read(self, text: str | None) -> Any:
        """The value that a text stands for; None is a bare `--name`, which turns a switch on.

        Raises:
            ConfigurationError: the text is of none of the types.
        """
        option = f"--{self.name.strip('_').replace('_', '-')}"
        if not self.types:
            raise ConfigurationError(f"{option} takes a Python object, which a command line can't give; use a script.")
        expected = " or ".join(
            dict.fromkeys(_NAMES[kind] for kind in sorted(self.types, key=lambda kind: kind is NoneType))
        )
        if text is None:
            if bool in self.types:
                return True
            raise ConfigurationError(f"{option} takes {expected}, got nothing.")
        for kind in self.types:
            try:
                return _READERS[kind](text)
            except ValueError:
                continue
        raise ConfigurationError(f"{option} takes {expected}, got {text!r}.")


def parameters_of(function: Callable[..., Any], leave_out: Iterable[str] = ()) -> dict[str, Parameter]:
    """The parameters that a function names, but for `self`, private ones and those left out."""
    hidden = {"self", *leave_out}
    return {
        name: Parameter.of(name, parameter.annotation, parameter.default)
        for name, parameter in signature_of(function).parameters.items()
        if name not in hidden
        and not name.startswith("_")
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """The signature, with annotations that stand in quotes evaluated where that works."""
    try:
        return inspect.signature(function, eval_str=True)
    except NameError:  # imported for type checkers only
        return inspect.signature(function)


def read_parameters(
    arguments: Sequence[str], parameters: Mapping[str, Parameter], owner: str, options: Iterable[str] = ()
) -> dict[str, Any]:
    """Values by name for `--name value` or `--name=value`, in kebab or snake case.

    Args:
        arguments: what is left of the command line once the command's own options are taken out.
        parameters: what there is, by name.
        owner: whose parameters they are, for errors.
        options: the command's own options, which may be what was meant.

    Raises:
        ConfigurationError: an unknown name (with the closest ones), a wrong type, a name given twice.
    """
    values: dict[str, Any] = {}
    for given, text in _pairs(arguments):
        name = given.replace("-", "_")
        name = name if name in parameters else f"{name}_"  # `lambda_`, where Python keeps `lambda` for itself
        if name not in parameters:
            known = {parameter.strip("_").replace("_", "-") for parameter in parameters} | {*options}
            hint = closest(given.replace("_", "-"), known, "--")
            raise ConfigurationError(f"{owner} has no parameter --{given}.{hint}")
        if name in values:
            raise ConfigurationError(f"--{given} is given twice.")
        values[name] = parameters[name].read(text)
    return values


def closest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """` The closest names: ...`, or nothing where none is close; `lr` is close to `learning-rate`."""
    by_lower_case = {text.lower(): text for text in sorted(known)}
    close = [text for text in by_lower_case if _initials(name) == text or _initials(text) == name.lower()]
    close += [text for text in difflib.get_close_matches(name.lower(), by_lower_case) if text not in close]
    return f" The closest names: {', '.join(prefix + by_lower_case[text] for text in close)}." if close else ""


def _initials(name: str) -> str:
    return "".join(word[0] for word in name.lower().split("-") if word)


def _pairs(arguments: Sequence[str]) -> Iterable[tuple[str, str | None]]:
    position = 0
    while position < len(arguments):
        word = arguments[position]
        position += 1
        if not word.startswith("--") or word == "--":
            raise ConfigurationError(f"expected a parameter as --name value, got {word!r}.")
        name, separator, text = word[2:].partition("=")
        if separator:
            yield name, text
        elif position < len(arguments) and not arguments[position].startswith("--"):
            yield name, arguments[position]
            position += 1
        else:
            yield name, None


def _types_of(annotation: Any) -> set[type]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, UnionType):
        return {kind for member in typing.get_args(annotation) for kind in _types_of(member)}
    if origin is typing.Literal:
        return {type(value) for value in typing.get_args(annotation)}
    if annotation is None:
        return {NoneType}
    kind = origin or annotation
    return {kind} if kind in _NAMES else set()


def _none(text: str) -> None:
    if text.lower() not in ("none", "null"):
        raise ValueError


def _bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        if not float(text).is_integer():  # 1e6 is an integer here
            raise
        return int(float(text))


def _json(kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = json.loads(text)
        if not isinstance(value, kind):
            raise ValueError
        return value

    return read


_READERS: dict[type, Callable[[str], Any]] = {
    NoneType: _none,
    bool: _bool,
    int: _int,
    float: float,
    list: _json(list),
    tuple: lambda text: tuple(_json(list)(text)),
    dict: _json(dict),
    str: str,
}
