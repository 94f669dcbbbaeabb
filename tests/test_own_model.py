"""The examples of docs/own_model.md run as they stand, one after the other, in a folder of their own."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

import vitsee.cli

PAGE = (Path(__file__).parents[1] / "docs" / "own_model.md").read_text(encoding="utf-8")
FILES = dict(
    re.findall(r"^`([\w/]+\.\w+)`\n\n```\w+\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
)
LINES = re.findall(r"^    ((?:vitsee|python) .*)$", PAGE, flags=re.MULTILINE)

pytestmark = pytest.mark.xdist_group("elsewhere")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each line of the page prints, given in this order in a folder with the page's files."""
    folder = tmp_path_factory.mktemp("own")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    modules = {name.removesuffix(".py") for name in FILES}
    outputs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        for line in LINES:
            patch.setattr(sys, "argv", shlex.split(line))
            with contextlib.redirect_stdout(io.StringIO()) as out:
                if sys.argv[0] == "python":
                    runpy.run_path(sys.argv[1], run_name="__main__")
                else:
                    try:
                        vitsee.cli.main()
                    except SystemExit as stop:
                        assert not stop.code, line  # noqa: PT017
            outputs[line] = re.sub(r"(?m)^outputs/", f"{folder}/outputs/", out.getvalue())
    for name in modules & sys.modules.keys():
        del sys.modules[name]
    return outputs


def test_there_is_an_example_of_each_source():
    text = " ".join(LINES)
    assert all(
        f"model={name}" in text for name in ("import", "torchvision", "transformers", "open_clip")
    )
    assert {"compare.py", "my_models.py", "save_small.py"} <= FILES.keys()


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("vitsee run")])
def test_an_example_of_the_page_measures_and_draws(line, said):
    written = [Path(path) for path in said[line].split()]
    assert {path.suffix for path in written} == {".csv", ".png"}
    assert all(path.is_file() for path in written)
    made = json.loads((written[0].parent / "made_with.json").read_text())
    assert f"model={made['models']['model']['source']}" in line


def test_the_network_from_python_is_compared_with_one_that_ships(said):
    folder = Path(said["python compare.py"].strip())
    assert folder.parent.name == "small-vs-vit_mini"
    assert (folder / "cka.csv").read_text().count("\n") == 1 + 5 * 12


def test_the_lists_of_the_page_are_lists(said):
    for line, out in said.items():
        if line.startswith("vitsee list"):
            assert len(out.splitlines()) > 3, line
