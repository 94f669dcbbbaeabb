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

from vitsee.models.loader import EMBEDDED

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "vitsee").rglob("*.py"))
TORCH_FREE = (
    "figures",
    "results",
    "plotting",
    "errors",
    "library",
    "config",
    "analysis",
    "cli",
    "listing",
    "help",
    "report",
    "pages",
    "atlas",
    "claims",
    "composing",
    "evidence",
    "publish",
    "replicates",
    "verdicts",
)


def imports(path: Path, *, anywhere: bool) -> set[str]:
    """Names of imported modules: at the top of the file only, or in functions too."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if anywhere else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update({node.module, *(f"{node.module}.{name.name}" for name in node.names)})
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_file_opens_with_a_sentence_that_says_what_it_holds(path):
    words = ast.get_docstring(ast.parse(path.read_text()))
    assert words
    assert words.splitlines()[0].endswith((".", ":"))


@pytest.mark.parametrize("name", TORCH_FREE)
def test_configuration_drawing_and_completion_do_not_import_torch(name):
    assert not any(
        i.split(".")[0] in ("torch", "timm")
        for i in imports(ROOT / f"vitsee/{name}.py", anywhere=False)
    )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "vitsee/analyses").glob("[a-z]*.py")), ids=lambda p: p.stem
)
def test_analyses_import_neither_each_other_nor_what_runs_them(path):
    forbidden = ("vitsee.analyses", "vitsee.runner", "vitsee.study", "vitsee.cli", "vitsee.config")
    assert not [name for name in imports(path, anywhere=True) if name.startswith(forbidden)]


def test_every_analysis_has_a_configuration_and_every_configuration_an_analysis():
    from vitsee.analysis import REGISTERED

    assert {path.stem for path in (ROOT / "conf/analysis").glob("*.yaml")} == set(REGISTERED)


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
