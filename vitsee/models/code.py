"""Digests of the user's own code: of classes and functions, and of what their files import from the same project."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from functools import cache, partial
from importlib.machinery import PathFinder
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

from vitsee.models.values import HOOKS, INSTALLED, LIBRARIES, OF_TORCH, as_text, names_in

SCRIPT = "__main__"


def source_of(*things: Any) -> list[str]:
    """Return the SHA-256, as hex, of the code of classes or functions that are not from a well-known library.

    For code in a module the whole file counts, because a class may use the rest of it, and so does every module that
    it imports, in functions too, from its own package or from outside the folders of installed packages. In a script
    or notebook, where the rest changes for other reasons, the class or function counts, with the functions, classes
    and constants of the script that it uses. Code that cannot be read is left out.
    """
    texts: dict[str, None] = {}
    waiting: list[Any] = [_place(thing) for thing in things]
    seen = set()
    while waiting:
        place = waiting.pop(0)
        if place is None or place in seen:
            continue
        seen.add(place)
        if (text := _text(place)) is None:
            continue
        texts[text] = None
        if isinstance(place, str):
            waiting += _used_by_module(place, text)
        else:
            named = _globals(place, text)
            waiting += _used_in_script(text, named)
            texts |= dict.fromkeys(_constants(named))
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts]


def own_code(net: nn.Module) -> list[str]:
    """Return digests of whatever of a network is not from a known library.

    That is the code and the private settings of its modules, hooks on any module, and functions that were set in
    place of a module's own, such as a new `forward`.
    """
    own = [
        (n, m) for n, m in net.named_modules() if type(m).__module__.split(".")[0] not in LIBRARIES
    ]
    private = [
        f"{name}.{key}={as_text(value)}"
        for name, module in own
        for key, value in sorted(vars(module).items())
        if key.startswith("_") and key not in OF_TORCH
    ]
    added = [
        (f"{name}.{key}", function)
        for name, module in net.named_modules()
        for key, function in _added(module)
    ]
    code = source_of(
        *(type(module) for _, module in own), *(of for _, one in added for of in _run(one))
    )
    return [*code, *private, *(f"{key}={as_text(function)}" for key, function in added)]


def _added(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the hooks that run with the module's forward pass, and the functions set as its attributes."""
    for key in HOOKS:
        for hook in getattr(module, key).values():
            yield key, hook
    for key, value in vars(module).items():
        if isinstance(value, (FunctionType, MethodType, partial)):
            yield key, value


def _run(function: Any) -> list[Any]:
    """Return the functions and classes whose code runs when this is called."""
    if isinstance(function, partial):
        return _run(function.func)
    if isinstance(function, MethodType):
        return [function.__func__, type(function.__self__)]
    return [function if isinstance(function, FunctionType) else type(function)]


def _place(thing: Any) -> Any:
    """Return the name of the module whose file counts, the thing itself if it is of a script, or None."""
    module = getattr(thing, "__module__", None) or "builtins"
    if module.split(".")[0] in LIBRARIES:
        return None
    return thing if module == SCRIPT else module


def _text(place: Any) -> str | None:
    try:
        if not isinstance(place, str):
            return _text_of_script(place)
        if place in sys.modules:
            return inspect.getsource(sys.modules[place])
        file = _file(place)
        return file.read_text(encoding="utf-8") if file else None
    except (OSError, TypeError, UnicodeDecodeError):
        return None


def _text_of_script(thing: Any) -> str:
    """Return the source of a script's or notebook's class or function; if it is lost, its compiled code.

    The source of a notebook is known by function, not by class.
    """
    try:
        return textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        if not isinstance(thing, type):
            return as_text(thing)
    bodies = map(_text_of_script, _functions(thing))
    plain = [f"{name}={as_text(v)}" for name, v in vars(thing).items() if isinstance(v, _PLAIN)]
    bases = [f"# {base.__module__}.{base.__qualname__}" for base in thing.__bases__]
    return "\n".join([*bases, *plain, *bodies])


def _functions(thing: Any) -> list[FunctionType]:
    """Return the functions of a class, or the function itself."""
    values = vars(thing).values() if isinstance(thing, type) else [thing]
    functions = (getattr(value, "__func__", value) for value in values)
    return [function for function in functions if isinstance(function, FunctionType)]


_PLAIN = (bool, int, float, complex, str, bytes, tuple)


def _file(module: str) -> Path | None:
    """Return the file of a module without importing anything, not even the packages that contain it."""
    top, *inner = module.split(".")
    try:
        spec, name = find_spec(top), top
        for part in inner:
            name = f"{name}.{part}"
            within = spec.submodule_search_locations if spec else None
            if within is None:
                return None
            spec = PathFinder.find_spec(name, within)
    except (ImportError, ValueError, AttributeError):
        return None
    origin = spec.origin if spec and spec.has_location else None
    return Path(origin).resolve() if origin and origin.endswith(".py") else None


def _used_by_module(module: str, text: str) -> list[str]:
    """Return the modules that a module imports from its project."""
    package = module
    if not hasattr(sys.modules.get(module), "__path__"):
        package = module.rpartition(".")[0]
    return [name for name in _imported(text, package) if _is_own(name, module.split(".")[0])]


@cache
def _imported(text: str, package: str) -> list[str]:
    """Return names of modules that this code imports, and of what could be one."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return []
    modules: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            try:
                base = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # it leads out of the package, so it cannot be imported
                continue
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            modules |= dict.fromkeys(".".join(parts[: i + 1]) for i in range(len(parts)))
    return list(modules)


def _is_own(module: str, package: str = "") -> bool:
    """Return whether a module is of this package, or not of an installed one."""
    top = module.split(".")[0]
    if top in LIBRARIES or top in sys.stdlib_module_names or not (file := _file(module)):
        return False
    return top == package or INSTALLED.isdisjoint(file.parts)


def _used_in_script(text: str, named: dict[str, Any]) -> list[Any]:
    """Return what the code of a script's class or function uses of its project: things of the script, and modules."""
    used: list[Any] = [name for name in _imported(text, "") if _is_own(name)]
    for value in named.values():
        if isinstance(value, ModuleType):
            used.append(value.__name__ if _is_own(value.__name__) else None)
        elif isinstance(value, (type, FunctionType)):
            of = _place(value)
            used.append(of if not isinstance(of, str) or _is_own(of) else None)
    return used


def _constants(named: dict[str, Any]) -> list[str]:
    """Return the values among the globals of a script, as text: constants, and objects such as transforms."""
    return [
        f"{name}={as_text(value)}"
        for name, value in named.items()
        if not isinstance(value, (ModuleType, type, FunctionType)) and not name.startswith("__")
    ]


def _globals(thing: Any, text: str) -> dict[str, Any]:
    """Return the globals of the script that the code of its class or function names."""
    try:
        names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    except SyntaxError:  # its source is lost
        names = set().union(*(names_in(function.__code__) for function in _functions(thing)))
    there = vars(sys.modules[SCRIPT])
    return {name: there[name] for name in sorted(names & there.keys())}
