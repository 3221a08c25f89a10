"""A fingerprint of a transform: its parameters, its weights, and the code that it runs.

Two transforms with the same fingerprint produce the same arrays, so a cache that names its entries by it never
returns outdated ones.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from torch import nn

PACKAGE = __name__.split(".")[0]


def fingerprint(transform: Any) -> str:
    """Return a hash of a transform, as 64 hexadecimal digits."""
    modules: set[str] = set()
    described = _described(transform, modules, ())
    code = sorted((name, _digest(_source(name) or b"")) for module in modules for name in _imported(module))
    return _digest(repr([monai.__version__, described, sorted(set(code))]).encode())


def _described(value: Any, modules: set[str], parents: tuple[int, ...]) -> Any:
    """Describe a value by nested tuples and strings; add the modules of its classes and functions to ``modules``."""
    if value is None or isinstance(value, bool | int | float | str | bytes | np.dtype | torch.dtype | torch.device):
        return repr(value)
    if id(value) in parents:
        return "…"
    parents = (*parents, id(value))
    if isinstance(value, torch.Tensor | np.ndarray):
        array = np.ascontiguousarray(value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value)
        return str(array.dtype), array.shape, _digest(array.tobytes())
    if isinstance(value, Mapping):
        return tuple((str(key), _described(value[key], modules, parents)) for key in sorted(value, key=str))
    if isinstance(value, list | tuple):
        return tuple(_described(one, modules, parents) for one in value)
    if isinstance(value, Set):
        return tuple(sorted(repr(one) for one in value))
    named = value if isinstance(value, type) or inspect.isroutine(value) else type(value)
    modules.add(str(named.__module__))
    name = f"{named.__module__}.{named.__qualname__}"
    if isinstance(value, nn.Module):
        return name, repr(value), _described(value.state_dict(), modules, parents)
    if named is value or isinstance(value, np.random.RandomState):
        return name
    return name, _described(getattr(value, "__dict__", {}), modules, parents)


@functools.cache
def _imported(module: str) -> frozenset[str]:
    """Return a module of this package and those of it that it imports, also indirectly; empty for other packages."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen and name.split(".")[0] == PACKAGE and _source(name) is not None:
            seen.add(name)
            waiting += _imports_of(name)
    return frozenset(seen)


def _imports_of(module: str) -> list[str]:
    """Return the names of modules, and of what is imported from them, in a module's import statements."""
    spec = importlib.util.find_spec(module)
    package, names = spec.parent if spec else None, []
    for node in ast.walk(ast.parse(_source(module) or b"")):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            whole = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names += [whole, *(f"{whole}.{alias.name}" for alias in node.names)]
    return names


@functools.cache
def _source(module: str) -> bytes | None:
    """Return the source code of a module; ``None`` for a name that is not a module, such as a class."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # the parent is not a package
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin).read_bytes()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
