"""Digests of the user's own code change with everything that it uses of its project, and with nothing else."""

from __future__ import annotations

import importlib
import linecache
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vitsee.models.code import SCRIPT, source_of

FILES = {
    "mine_of_project": "import other_of_project\ndef used():\n    return other_of_project.value\n",
    "other_of_project": "value = 2\n",
    "pack_of_project/__init__": "",
    "pack_of_project/net": "from .parts import layer as made\ndef used():\n    return made\n",
    "pack_of_project/parts/__init__": "",
    "pack_of_project/parts/layer": "from ..sizes import width\n",
    "pack_of_project/sizes": "width = 2\n",
    "late_of_project": "def used():\n    from other_of_project import value\n    return value\n",
    "later_of_project": "def used():\n    from pack_of_project.parts.layer import width\n    return width\n",
    "unread_of_project": "value = 2\n",
}
"""Files of a user's project, by module."""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Makes the project, with changes to its files, and returns a module of it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def forget() -> None:
        for name in [name for name in sys.modules if "_of_project" in name]:
            del sys.modules[name]
        linecache.clearcache()
        importlib.invalidate_caches()

    def make(module: str, **changes: str) -> ModuleType:
        forget()
        for name, text in (FILES | changes).items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return importlib.import_module(module)

    yield make
    forget()


@pytest.mark.parametrize(
    ("module", "helper"),
    [
        ("mine_of_project", "other_of_project"),
        ("late_of_project", "other_of_project"),
        ("pack_of_project.net", "pack_of_project/sizes"),
        ("later_of_project", "pack_of_project/sizes"),
    ],
    ids=[
        "imported",
        "imported in a function",
        "three relative imports away",
        "of a package that a function imports",
    ],
)
def test_an_edited_helper_is_other_code_and_an_edited_stranger_is_not(project, module, helper):
    before = source_of(project(module).used)
    assert source_of(project(module, unread_of_project="value = 3\n").used) == before
    assert source_of(project(module, **{helper: "value = width = 3\n"}).used) != before


def test_installed_packages_count_by_their_versions_alone(project):
    text = "import json, numpy, scipy.stats, torch, pandas as pd\ndef used():\n    return pd\n"
    assert len(source_of(project("mine_of_project", mine_of_project=text).used)) == 1


@pytest.mark.parametrize("installed", ["site-packages", "dist-packages"])
def test_packages_that_the_system_or_the_user_installed_are_not_the_project_s(
    installed, project, monkeypatch, tmp_path
):
    (tmp_path / installed).mkdir()
    monkeypatch.syspath_prepend(tmp_path / installed)
    (tmp_path / installed / "library_of_project.py").write_text("value = 2\n")
    text = "import library_of_project\ndef used():\n    return library_of_project.value\n"
    assert len(source_of(project("mine_of_project", mine_of_project=text).used)) == 1


def test_a_relative_import_that_leads_nowhere_is_passed_over(project):
    text = "def used():\n    try:\n        from .....far import away\n    except ImportError:\n        pass\n"
    top, inside = "mine_of_project", "pack_of_project/net"
    assert len(source_of(project(top, **{top: text}).used)) == 1
    assert len(source_of(project("pack_of_project.net", **{inside: text}).used)) == 1


NOTEBOOK = """
import other_of_project
def helper(x):
    return x * SCALE {change}
class Net:
    def forward(self, x):
        return helper(x) + other_of_project.value {own}
"""


@pytest.fixture
def notebook(project, monkeypatch, tmp_path):
    """Runs a script, a notebook's cell (which is in no file) or typed lines of this text, and returns its class."""
    count = iter(range(100))

    def run(
        kind: str,
        other: str = "value = 2\n",
        scale: str = "1",
        unused: int = 1,
        change: str = "",
        own: str = "",
    ) -> Any:
        project("other_of_project", other_of_project=other)
        name = str(tmp_path / f"cell{next(count)}.py")
        text = f"SCALE = {scale}\nUNUSED = {unused}\n{NOTEBOOK.format(change=change, own=own)}"
        main = ModuleType(SCRIPT)
        if kind == "a script":
            Path(name).write_text(text)
            main.__file__ = name
        if kind == "a notebook":
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        monkeypatch.setitem(sys.modules, SCRIPT, main)
        exec(compile(text, name, "exec"), vars(main))
        return vars(main)["Net"]

    return run


KINDS = ["a script", "a notebook", "typed lines"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "edited", [
        {"other": "value = 3\n"}, {"scale": "2"}, {"scale": "[1]"}, {"change": "+ 1"}, {"own": "+ 1"}
    ],
    ids=["a module", "a constant", "a list", "a function", "a method"],
)  # fmt: skip
def test_what_a_class_of_a_notebook_uses_counts_and_the_rest_of_the_notebook_does_not(
    notebook, edited, kind
):
    before = source_of(notebook(kind))
    assert len(before) > 0
    assert source_of(notebook(kind, unused=2)) == before
    assert source_of(notebook(kind, **edited)) != before


def test_code_that_cannot_be_read_is_left_out():
    space: dict[str, Any] = {"__name__": "typed_in"}
    exec("class Net: pass", space)
    assert source_of(space["Net"]) == []
