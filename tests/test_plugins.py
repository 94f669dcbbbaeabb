"""Analyses from outside the package: a file, an installed package, a class in a script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import TINY

import vitsee
from vitsee.analysis import READABLE, REGISTERED, Analysis, register
from vitsee.errors import UserError
from vitsee.models.taps import SURVEY
from vitsee.plugins import import_asked

MINE = '''"""How many images are black."""

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from vitsee.analysis import Analysis, register


@register
@dataclass(kw_only=True)
class {kind}(Analysis):
    """How many images are there?"""

    name: str = "{name}"
    version: ClassVar[int] = 1

    def reduce(self, layer, output):
        return output.flatten(1).double().sum(1)

    def observe(self, view):
        values = next(iter(view.model.values()))
        return {{"images": values.new_tensor(view.images)}}

    def tables(self, sums):
        return {{self.name: pd.DataFrame({{"images": [int(sums.terms["images"])]}})}}

    def figures(self, tables, labels):
        from vitsee.plotting.style import canvas

        figure = canvas((2, 2))
        figure.suptitle(str(tables[self.name]["images"][0]))
        return {{self.name: figure}}
'''


def write(folder: Path, name: str = "counted_here") -> Path:
    path = folder / f"{name}.py"
    path.write_text(MINE.format(name=name, kind="Counted"))
    return path


@pytest.fixture(autouse=True)
def forget(monkeypatch, tmp_path):
    """What a test registers, and imports from its folder, is forgotten afterwards."""
    before, paths = dict(REGISTERED), list(sys.path)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    yield
    REGISTERED.clear()
    REGISTERED.update(before)
    sys.path[:] = paths
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


UNDEFINED = """
    def tables(self, sums):
        mean = [float("nan"), 1.0, float("inf")]
        return {self.name: pd.DataFrame({"images": [1, 2, 3], "mean": mean, "se": float("nan")})}
"""


def warned(run_tiny, caplog, path: Path) -> list[str]:
    """What a run of the analysis in this file warns of."""
    code, _, err = run_tiny(f"--import={path}", "analysis=counted_here", "images=16")
    assert code == 0, err
    (record,) = path.parent.rglob("made_with.json")
    warnings = json.loads(record.read_text())["warnings"]
    assert [f"warning: {w}" for w in warnings] == [m for m in caplog.messages if "warning" in m]
    return warnings


def test_values_that_an_analysis_of_one_s_own_leaves_undefined_are_told(run_tiny, caplog, tmp_path):
    path = write(tmp_path)
    path.write_text(path.read_text() + UNDEFINED)
    message = "counted_here.csv: 2 of 3 values of mean are NaN or infinite"
    assert warned(run_tiny, caplog, path) == [message]


def test_an_analysis_that_says_what_is_undefined_says_it_in_its_own_words(
    run_tiny, caplog, tmp_path
):
    path = write(tmp_path)
    own = '    def warnings(self, sums):\n        return ["it is so"]\n'
    path.write_text(f"{path.read_text()}{UNDEFINED}\n{own}")
    assert warned(run_tiny, caplog, path) == ["it is so"]


def test_an_analysis_in_a_file_runs_is_listed_and_drawn_again(run_tiny, command, tmp_path):
    asked = f"--import={write(tmp_path)}"
    code, out, err = run_tiny(asked, "analysis=counted_here", "images=16")
    assert code == 0, err
    folder = Path(out.splitlines()[0]).parent
    assert (folder / "counted_here.csv").read_text() == "images\n16\n"
    assert command("plot", "--import", str(tmp_path / "counted_here.py"), str(folder))[0] == 0
    assert "How many images are there?" in command("list", asked, "analyses")[1]


def test_two_processes_share_an_analysis_in_a_file(run_tiny, tmp_path):
    asked = ["--import", str(write(tmp_path, "counted_by_two")), "analysis=counted_by_two"]
    code, out, err = run_tiny(*asked, "images=16", "run.gpus=2")
    assert code == 0, err
    assert Path(out.splitlines()[0]).read_text() == "images\n16\n"


def test_changed_code_is_another_result_even_with_the_same_version(forks, tmp_path):
    """That of the file, and that of a file beside it that it imports."""
    path, beside, folders = write(tmp_path, "changing"), tmp_path / "beside_changing.py", []
    path.write_text(f"{path.read_text()}\nimport {beside.stem}")
    beside.write_text("")
    for edited in (None, path, beside):
        if edited:
            edited.write_text(f"{edited.read_text()}\n# changed\n")
        words = ["run", f"--import={path}", "analysis=changing", *TINY, "images=8", "batch_size=4"]
        words += ["dataset=scenes", "run.device=cpu", "run.workers=0", f"run.outputs={tmp_path}"]
        folders.append(Path(forks.run(words).out.splitlines()[0]).parent)
    assert len({*folders}) == 3


def test_without_its_file_a_result_cannot_be_drawn_and_the_message_says_how(
    run_tiny, command, tmp_path
):
    path = write(tmp_path, "left_behind")
    code, out, _ = run_tiny(f"--import={path}", "analysis=left_behind", "images=8")
    assert code == 0
    del REGISTERED["left_behind"]
    folder = str(Path(out.splitlines()[0]).parent)
    code, _, err = command("plot", folder)
    assert code == 2
    assert "there is no analysis left_behind (if it is your own: --import its file)" in err
    del sys.modules["left_behind"]
    assert command("plot", f"--import={path}", folder)[0] == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mien.py", None, r"there is no such file\. Did you mean mine\.py\?"),
        ("mine.py", "1 / 0", r"ZeroDivisionError: division by zero \(.*mine\.py, line 1\)"),
        ("mine.py", "\ndef", r"SyntaxError: invalid syntax \(.*mine\.py, line 2\)"),
        ("json.py", "", r"'json' is not a valid module name or is already taken; rename the file"),
        ("my-analysis.py", "", r"'my-analysis' is not a valid module name"),
        (
            "mine.py",
            MINE.format(name="cka", kind="Mine"),
            r"ValueError: two analyses are called 'cka': vitsee\.analyses\.cka\.CKA and mine\.Mine",
        ),
        (
            "mine.py",
            MINE.format(name="mine", kind="Mine").replace("@dataclass(kw_only=True)\n", ""),
            r"TypeError: Mine is not a dataclass: write @dataclass\(kw_only=True\) below @register",
        ),
        (
            "mine.py",
            MINE.format(name="my analysis", kind="Mine"),
            r"TypeError: Mine has no name of letters, digits, _ and -",
        ),
        *(
            (
                "mine.py",
                MINE.format(name="mine", kind="Mine").replace(
                    "version: ClassVar[int] = 1", declared
                ),
                message,
            )
            for declared, message in {
                'reads: ClassVar = "attention"': (
                    r"Mine\.reads must be a pair, .* such as \('attention', 'attention'\), got 'attention'"
                ),
                'reads: ClassVar = ("attention",)': r"Mine\.reads must be a pair, .*, got \('attention',\)",
                'reads: ClassVar = ("attentoin", "outputs")': (
                    r"Mine\.reads has 'attentoin'; it can have: attention, .*stream\. .* mean attention\?"
                ),
                "models: ClassVar = 2": r"Mine\.models must be \(1,\), \(2,\) or \(1, 2\), got 2",
                'reads: ClassVar = ("residuals", "outputs")': (
                    r"Mine reads residuals, which its default layers, 'blocks', .*: write layers: Any = \"every\""
                ),
            }.items()
        ),
    ],
)
def test_a_file_that_cannot_be_imported_is_named_with_the_reason(name, content, message, tmp_path):
    (tmp_path / "mine.py").write_text("")
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        import_asked(["--import", str(tmp_path / name)])


def test_what_an_analysis_can_read_is_what_can_be_surveyed():
    assert (*SURVEY,) == READABLE


def test_the_default_layers_of_other_models_are_checked_only_where_there_are_some():
    declared = {"name": "mine", "reads": ("outputs", "attention"), "__annotations__": {"name": str}}
    one = dataclass(kw_only=True)(type("Mine", (Analysis,), declared))
    assert register(one) is one
    two = dataclass(kw_only=True)(type("Mine", (Analysis,), declared | {"models": (1, 2)}))
    with pytest.raises(
        UserError, match=r"Mine reads attention, .* write other_layers: Any = \"ever"
    ):
        register(two)


def test_a_word_that_is_no_python_file_and_no_module_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    message = r"--import counted.txt: there is no module of that name \(a Python file is named with \.py\)\. Did"
    with pytest.raises(UserError, match=rf"{message} you mean counted_here\.py\?"):
        import_asked(["--import", "counted.txt"])
    Path("counted.txt").write_text("")
    for named in ("counted.txt", "./counted.txt"):
        with pytest.raises(
            UserError, match=r"txt: the name of a Python file ends in \.py; rename it"
        ):
            import_asked(["--import", named])
    Path("counted.txt").rename("counted.py")
    assert import_asked(["--import", "counted.py"]) == []


def test_an_analysis_without_a_docstring_is_listed_without_a_question(tmp_path, command):
    path = write(tmp_path, "unasked")
    path.write_text(path.read_text().replace('    """How many images are there?"""\n', ""))
    assert "\nunasked\n" in command("list", "analyses", f"--import={path}")[1]


def test_import_without_a_file_says_what_is_missing(command):
    code, _, err = command("run", "--import")
    assert code == 2
    assert "--import needs a Python file or module: --import my_analysis.py" in err


def test_other_words_are_left_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "by_its_module")
    words = ["analysis=cka", "--import", "by_its_module", "-m"]
    assert import_asked(words) == ["analysis=cka", "-m"]
    assert "by_its_module" in REGISTERED


def test_a_class_that_is_defined_again_takes_the_place_of_the_one_before():
    def cell() -> type[Analysis]:
        space: dict[str, object] = {"__name__": "notebook"}
        code = MINE.format(name="again", kind="Again").replace("@register\n", "")
        exec(compile(code, "cell", "exec", dont_inherit=True), space)
        return space["Again"]  # type: ignore[return-value]

    register(cell())
    second = register(cell())
    assert REGISTERED["again"] is second


@pytest.mark.parametrize("broken", [False, True])
def test_an_installed_package_brings_its_analyses(tmp_path, broken):
    """And one whose analysis cannot be imported is named and left out."""
    write(tmp_path, "counted_by_a_package")
    about = tmp_path / "some_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: some-package\nVersion: 1.0\n")
    module = "missing" if broken else "counted_by_a_package"
    (about / "entry_points.txt").write_text(f"[vitsee.analyses]\ncounted = {module}\n")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    }
    listed = subprocess.run(
        [sys.executable, "-m", "vitsee", "list", "analyses"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("counted_by_a_package" in listed.stdout) != broken
    assert (
        "analysis counted (missing) of the package some-package is left out" in listed.stderr
    ) == broken


@pytest.mark.parametrize(
    ("method", "body", "message"),
    [
        (
            "reduce(self, layer, output)",
            "[1]",
            "Slip.reduce returned a list for layer blocks.0; it must return a Tensor",
        ),
        (
            "observe(self, view)",
            "[1]",
            "Slip.observe returned a list; it must return a dictionary {name: Tensor}",
        ),
        ("observe(self, view)", '{"n": 1}', "Slip.observe returned {'n': int}; it must return"),
        ("tables(self, sums)", "pd.DataFrame()", "Slip.tables returned a DataFrame; it must"),
        (
            "tables(self, sums)",
            '{"other": pd.DataFrame({"n": [1]})}',
            "Slip.tables returned no table 'slip', only 'other'; the main table has the analysis's name",
        ),
        ("figures(self, tables, labels)", "None", "Slip.figures returned None; it must return"),
    ],
)
def test_a_method_that_returns_something_else_is_named(run_tiny, tmp_path, method, body, message):
    path = tmp_path / "slip.py"
    mine = MINE.format(name="slip", kind="Slip")
    path.write_text(f"{mine}\n    def {method}:\n        return {body}\n")
    code, _, err = run_tiny(f"--import={path}", "analysis=slip", "images=8")
    assert code == 2
    assert f"analysis=slip: {message}" in err
    assert len(err.splitlines()) == 1


def test_weights_and_joint_figures_are_checked_as_well(run_tiny, command, tmp_path):
    path = write(tmp_path, "drawn_together")
    path.write_text(path.read_text() + "\n    def joined(self, results):\n        return [1]\n")
    asked = [f"--import={path}", "analysis=drawn_together"]
    folders = [
        str(Path(run_tiny(*asked, images)[1].splitlines()[0]).parent)
        for images in ("images=8", "images=16")
    ]
    code, _, err = command("plot", f"--import={path}", *folders)
    assert code == 2
    assert "Counted.joined returned a list; it must return a dictionary {name: Figure}" in err

    path = write(tmp_path, "heavy")
    path.write_text(
        path.read_text() + "    weights_only: ClassVar[bool] = True\n"
        "    def of_weights(self, nets):\n        return None\n"
    )
    code, _, err = run_tiny(f"--import={path}", "analysis=heavy")
    assert code == 2
    assert "Counted.of_weights returned None; it must return a dictionary {name: Tensor}" in err


def test_figures_of_a_result_are_checked_as_well(run_tiny, tmp_path):
    path = write(tmp_path, "drawn_wrongly")
    code, out, err = run_tiny(f"--import={path}", "analysis=drawn_wrongly", "images=8")
    assert code == 0, err
    result = vitsee.load(Path(out.splitlines()[0]).parent)
    type(result._analysis).figures = lambda *words: None
    with pytest.raises(UserError, match=r"Counted\.figures returned None; it must return a dict"):
        result.figures()


def test_an_unknown_analysis_may_be_a_file_that_was_not_imported(run_tiny):
    code, _, err = run_tiny("analysis=of_my_own")
    assert code == 2
    assert "there is no analysis=of_my_own (if it is your own: --import its file)" in err


@pytest.mark.parametrize(
    "method",
    [
        *("reduce(self, layer, output)", "observe(self, view)", "tables(self, sums)"),
        *("figures(self, tables, labels)", "warnings(self, sums)", "check(self, layers)"),
        "__post_init__(self)",
    ],
)
def test_a_method_of_ones_own_analysis_that_fails_is_named_with_its_line(
    run_tiny, tmp_path, method
):
    path = tmp_path / "failing.py"
    mine = MINE.format(name="failing", kind="Failing")
    path.write_text(f"{mine}\n    def {method}:\n        return pd.DataFrame().no_such\n")
    line = len(path.read_text().splitlines())
    code, _, err = run_tiny(f"--import={path}", "analysis=failing", "images=8")
    assert code == 2
    name = method.partition("(")[0]
    assert (
        f"analysis=failing: its method {name} failed: AttributeError: 'DataFrame' object has no attribute "
        f"'no_such' ({path}, line {line}); VITSEE_TRACEBACK=1 prints the traceback" in err
    )
    assert len(err.splitlines()) == 1


def test_the_traceback_of_a_method_that_fails_is_printed_on_request(
    run_tiny, tmp_path, monkeypatch
):
    path = tmp_path / "traced.py"
    mine = MINE.format(name="traced", kind="Traced")
    path.write_text(f"{mine}\n    def observe(self, view):\n        return 1 / 0\n")
    monkeypatch.setenv("VITSEE_TRACEBACK", "1")
    code, _, err = run_tiny(f"--import={path}", "analysis=traced", "images=8")
    assert code == 2
    assert "in observe\n    return 1 / 0" in err
    assert err.splitlines()[-1].startswith("vitsee run: analysis=traced: its method observe failed")


def test_a_method_that_is_missing_is_named(run_tiny, tmp_path):
    path = tmp_path / "unfinished.py"
    mine = MINE.format(name="unfinished", kind="Unfinished")
    path.write_text(mine.replace("def tables", "def table"))
    code, _, err = run_tiny(f"--import={path}", "analysis=unfinished", "images=8")
    assert code == 2
    assert "analysis=unfinished: Unfinished has no method tables; define it" in err
    path.write_text(mine)
    del sys.modules["unfinished"]
    assert run_tiny(f"--import={path}", "analysis=unfinished", "images=8")[0] == 0


def test_an_error_in_an_analysis_of_vitsee_is_a_bug_and_stays_as_it_is(run_tiny, monkeypatch):
    monkeypatch.setattr("vitsee.analyses.cka.CKA.observe", lambda self, view: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_tiny("images=8")


def test_a_result_of_ones_own_analysis_is_repeated_only_with_its_file(run_tiny, command, tmp_path):
    path = write(tmp_path, "to_repeat")
    _, out, _ = run_tiny(f"--import={path}", "analysis=to_repeat", "images=8")
    del REGISTERED["to_repeat"], sys.modules["to_repeat"]
    asked = ["--from", str(Path(out.splitlines()[0]).parent / "experiment.yaml")]
    code, _, err = command("run", *asked)
    assert code == 2
    assert "there is no analysis to_repeat (if it is your own: --import its file)" in err
    assert command("run", f"--import={path}", *asked, f"run.outputs={tmp_path}")[0] == 0


def test_an_analysis_that_is_not_registered_is_named(tmp_path, caplog):
    path = write(tmp_path, "forgotten")
    path.write_text(path.read_text().replace("@register\n", ""))
    import_asked(["--import", str(path)])
    assert (
        "forgotten.py: the analysis Counted is not registered; write @register above" in caplog.text
    )
    caplog.clear()
    del sys.modules["forgotten"]
    write(tmp_path, "forgotten")
    import_asked(["--import", str(path)])
    assert not caplog.text


def test_a_file_without_analyses_and_a_base_class_are_nothing_to_warn_of(tmp_path, caplog):
    path = write(tmp_path, "with_a_base")
    path.write_text(
        path.read_text()
        .replace("@register\n", "class Base(Analysis):\n    pass\n\n\n@register\n")
        .replace("Counted(Analysis)", "Counted(Base)")
    )
    (tmp_path / "of_claims.py").write_text("from vitsee.analysis import Analysis\n")
    import_asked(["--import", str(path), "--import", str(tmp_path / "of_claims.py")])
    assert not caplog.text
