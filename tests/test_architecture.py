"""The shape of the project: what may import what, what every file opens with, what a wheel holds."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from vitsee.models.sources.timm import EMBEDDED

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "vitsee").rglob("*.py"))
ROOMS = {
    "io": {"errors"},
    "parallel": {"errors", "io"},
    "plotting": set(),
    "estimators": {"errors", "lazy", "options", "setting"},
    "models": {
        *("analysis", "errors", "estimators", "given", "io", "lazy", "names", "options"),
        *("parallel", "plugins", "returned", "setting"),
    },
    "data": {"errors", "given", "io", "options", "parallel"},
    "results": {
        *("analyses", "analysis", "errors", "io", "options", "parallel", "returned", "study"),
        "sums",
    },
    "analyses": {
        *("analysis", "data", "errors", "estimators", "io", "lazy", "models", "names", "plotting"),
        *("plugins", "sums"),
    },
    "comparing": {"errors", "estimators", "io", "names", "parallel", "plotting", "results"},
    "papers": {
        "analysis",
        "choices",
        "comparing",
        "config",
        "errors",
        "gpus",
        "io",
        "names",
        "options",
        "parallel",
        "plotting",
        "plugins",
        "results",
        "returned",
    },
    "report": {"analyses", "comparing", "analysis", "errors", "io", "results", "version"},
    "training": {
        *("config", "data", "errors", "estimators", "io", "models", "options", "parallel"),
        *("plotting", "results", "setting", "study"),
    },
}
"""What each folder may import of the rest of vitsee: other folders, and modules that lie beside them."""
THERE = {path.stem for path in (ROOT / "vitsee").iterdir()}
DRAWING = (
    *("vitsee", "vitsee.cli", "vitsee.listing", "vitsee.papers.plot", "vitsee.papers.claims"),
    "vitsee.report.write",
)
"""What is imported to list, to draw again, to judge and to report."""


def room(name: str) -> str:
    """The folder of a module, or the module itself where it lies beside the folders; "" outside of vitsee."""
    package, *inside = name.split(".")
    if package != "vitsee":
        return ""
    return inside[0] if inside and inside[0] in THERE else "__init__"


def arrows() -> dict[str, set[str]]:
    """Which rooms each room imports from, in functions too; not what is imported for annotations alone."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        inside = path.relative_to(ROOT).with_suffix("").parts
        here = room(".".join(inside))
        found.setdefault(here, set()).update({room(name) for name in imports(path)} - {here, ""})
    return found


def imports(path: Path) -> set[str]:
    """Names of imported modules, and of what is imported from them, but for annotations."""
    found = set()

    def look(node: ast.AST) -> None:
        for each in ast.iter_child_nodes(node):
            if isinstance(each, ast.If) and "TYPE_CHECKING" in ast.dump(each.test):
                continue
            if isinstance(each, ast.Import):
                found.update(name.name for name in each.names)
            elif isinstance(each, ast.ImportFrom) and each.module:
                found.update(f"{each.module}.{name.name}" for name in each.names)
            look(each)

    look(ast.parse(path.read_text()))
    return found


def test_every_folder_imports_only_what_it_may():
    inside = [path.relative_to(ROOT / "vitsee").parts for path in SOURCES]
    there = {parts[0] for parts in inside if len(parts) > 1}
    assert ROOMS.keys() == there
    found = arrows()
    for folder, allowed in ROOMS.items():
        assert found[folder] <= allowed, folder


def test_no_room_imports_in_a_circle():
    left = {name: set(there) for name, there in arrows().items()}
    while free := {name for name, there in left.items() if not there & left.keys()}:
        left = {name: there for name, there in left.items() if name not in free}
    assert not left


def test_listing_drawing_judging_and_reporting_import_no_torch():
    code = f"import sys, {', '.join(DRAWING)}; print({{'torch', 'timm'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_file_opens_with_a_sentence_that_says_what_it_holds():
    for path in SOURCES:
        words = ast.get_docstring(ast.parse(path.read_text()))
        assert words, path
        assert words.splitlines()[0].endswith((".", ":")), path


def test_analyses_do_not_import_each_other():
    analyses = sorted((ROOT / "vitsee/analyses").glob("[a-z]*.py"))
    assert analyses
    for path in analyses:
        assert not [name for name in imports(path) if name.startswith("vitsee.analyses")], path


def test_the_lowest_versions_that_are_promised_are_those_that_are_run():
    promised = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    run = dict(line.replace("_", "-").lower().split("==") for line in lines if "==" in line)
    for name, lowest in (one.split(">=") for one in promised):
        numbers = lowest.split(".")
        found = run[name].split(".")
        assert (found[: len(numbers)], {*found[len(numbers) :]} - {"0"}) == (numbers, set()), name


@pytest.mark.xdist_group("some")
def test_tests_of_a_group_are_kept_together(request):
    assert "PYTEST_XDIST_WORKER" not in os.environ or request.node.nodeid.endswith("@some")


def test_no_file_is_called_utils():
    assert not [p for p in SOURCES if p.stem in ("utils", "helpers", "common", "misc")]


def test_a_wheel_works_from_any_folder(tmp_path):
    """conf/ and the trained weights are in it; nothing is looked for in the checkout."""
    build = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*build, "--quiet", "--wheel-dir", str(tmp_path)], check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    listed = subprocess.run(
        [sys.executable, "-m", "vitsee", "list", "models"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "vit_l16" in listed.stdout
    weights = sorted(
        path.name for path in (tmp_path / "installed/vitsee/weights").glob("*.safetensors")
    )
    assert weights == sorted(path.name for path in EMBEDDED.glob("*.safetensors"))
    assert {"resnet_mini.safetensors", "vit_mini.safetensors"} <= set(weights)
    assert (tmp_path / "installed/vitsee/conf/run.yaml").is_file()


def test_extras_are_named_as_every_version_of_pip_knows_them():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].keys()
    assert not [name for name in extras if "_" in name]
    install = (ROOT / "Makefile").read_text().partition("'.[")[2].partition("]")[0]
    assert set(install.split(",")) <= extras
