"""Functions looked into: those behind what a class holds, and the code in their code."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

_HOLDERS = (functools.cached_property, functools.partialmethod, functools.singledispatchmethod)
_WRAPPERS = (FunctionType, staticmethod, classmethod, type(functools.lru_cache(lambda: None)))


def functions_behind(attribute: Any) -> Iterator[FunctionType]:
    """Those that a class's attribute leads to: decorators wrap functions, descriptors hold them."""
    inner: tuple[Any, ...] = ()
    if isinstance(attribute, property):
        inner = (attribute.fget, attribute.fset, attribute.fdel)
    elif isinstance(attribute, _HOLDERS):
        inner = (attribute.func,)
    elif isinstance(attribute, _WRAPPERS):
        inner = (getattr(attribute, "__wrapped__", None),)
    if isinstance(attribute, FunctionType):
        yield attribute
    for one in inner:
        yield from functions_behind(one)


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions, lambdas and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)
