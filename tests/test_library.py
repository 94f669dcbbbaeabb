"""vitsee from Python: the same results and the same words as the command line, and what a notebook needs."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import TINY, tiny_overrides
from hydra import compose, initialize_config_dir

import vitsee
from vitsee.choices import CONF
from vitsee.config import override

NOTEBOOK = Path(__file__).parents[1] / "examples/redraw.ipynb"


@pytest.fixture
def measure(images, tmp_path):
    """`vitsee.run_experiment` of the tiny experiment with more overrides and options."""
    words = tiny_overrides(images, tmp_path)
    return lambda *more, **options: vitsee.run_experiment(*words, *more, **options)


def test_the_result_is_where_the_command_puts_it_to_the_byte(measure, command, images, tmp_path):
    elsewhere = tmp_path / "of the command"
    words = [*tiny_overrides(images, elsewhere), "images=16", "analysis.layers=[blocks.*,norm]"]
    code, out, _ = command("run", *words)
    assert code == 0
    theirs = Path(out.splitlines()[0])
    ours = measure(images=16, **{"analysis.layers": ["blocks.*", "norm"]}).path
    assert ours.relative_to(tmp_path) == theirs.parent.relative_to(elsewhere)
    assert (ours / "cka.csv").read_bytes() == theirs.read_bytes()
    assert (ours / "cka.png").read_bytes() == theirs.with_suffix(".png").read_bytes()


MISTAKES = {
    "an unknown analysis": (["analysis=ckaa"], "Did you mean cka?"),
    "an unknown option": (["batchsize=8"], "Did you mean batch_size?"),
    "an unknown option of the analysis": (["analysis.layrs=x"], "Did you mean layers?"),
    "a value of the wrong type": (["batch_size=many"], "batch_size: Value 'many'"),
    "a word without =": (["cka"], "options are written key=value"),
    "too small a minibatch": (["batch_size=3"], "batch_size must be at least 4"),
    "what only the run finds": (["analysis.layers=[block.*]"], "matches 'block"),
    "other shards that are missing": (["run.shards=2"], "shard 0 of 2 is done"),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_raises_what_the_command_says(words, message, measure, run_tiny):
    with pytest.raises(vitsee.UserError) as mistake:
        measure(*words)
    assert message in str(mistake.value)
    code, _, err = run_tiny(*words)
    assert err.splitlines()[-1] == f"vitsee run: {mistake.value}"
    assert isinstance(mistake.value, vitsee.Incomplete) == (code == 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "seed=1,2"], "runs one experiment; use the command line to run several"),
        (["figure=fig01"], "runs one experiment; use the command line to run several"),
        (["--from", "x.yaml"], "--from is for the command line: vitsee run --from"),
        (["--import", "my.py"], "--import: from Python, import the file itself"),
    ],
)
def test_what_is_not_one_experiment_is_refused(words, message):
    with pytest.raises(vitsee.UserError, match=message):
        vitsee.run_experiment(*words)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, r"images=\{1, 2\}: a set cannot be the value of an option; use a string, number"),
        (b"x", r"images=b'x': a bytes cannot be"),
        ("${oc.env:HOME}", r"\$\{…\} would be read as an interpolation; use a value without it"),
    ],
)
def test_a_python_value_that_no_option_can_have_is_refused(measure, value, message):
    with pytest.raises(vitsee.UserError, match=message):
        measure(images=value)


def test_numbers_of_numpy_are_numbers(measure, undrawn):
    assert measure(images=np.int64(16)).labels.images == 16


def test_a_bug_is_not_made_a_mistake(measure, monkeypatch):
    monkeypatch.setattr("vitsee.analyses.cka.gram", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure()


@pytest.mark.parametrize(
    "text", ["a b", "a,b", "{a: 1}", 'say "so"', "it's", "C:\\new\\", '\\"', "k=v", "ü (1)", "null"]
)
def test_a_python_string_is_taken_as_it_is(text):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("run", [override("dataset.root", text), override("run", {"outputs": text})])
    assert cfg.dataset.root == text
    assert cfg.run.outputs == text
    assert cfg.run.device == "auto"


def test_a_folder_that_is_no_result_is_refused(tmp_path):
    with pytest.raises(vitsee.UserError, match="is not a result folder: it has no experiment"):
        vitsee.load(tmp_path)


def test_a_result_can_be_loaded_without_torch_and_shows_itself(measure):
    result = measure(images=16)
    assert repr(result).startswith("<cka of test_vit (random weights), 16 images of images")
    code = (
        f"import sys, vitsee; result = vitsee.load({str(result.path)!r}); "
        "print(result.analysis, *result.tables, *result.figures(), len(result.table)); "
        "print(result.labels.images, result.made_with['identity'], result._repr_png_()[1:4]); "
        "sys.exit('torch' in sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    layers = len(result.made_with["models"]["model"]["layers"])
    identity = result.made_with["identity"]
    assert loaded.stdout.splitlines() == [f"cka cka cka {layers**2}", f"16 {identity} b'PNG'"]


def test_a_matrix_is_in_the_order_of_the_layers(measure, undrawn):
    result = measure()
    layers = result.made_with["models"]["model"]["layers"]
    assert layers != sorted(layers), "the order of the alphabet would do"
    matrix = result.matrix()
    assert list(matrix.index) == list(matrix.columns) == layers
    for column in ("cka", "se"):
        wide = result.matrix(column)
        for row in result.table.itertuples():
            assert wide.loc[row.model_layer, row.other_layer] == getattr(row, column)


def test_a_matrix_of_two_models_has_the_layers_of_the_other_as_columns(measure, undrawn):
    other = [word.replace("model.", "other.") for word in TINY[1:]]
    result = measure("model@other=timm", *other, "analysis.other_layers=[blocks.*.attn]")
    models = result.made_with["models"]
    assert list(result.matrix().index) == models["model"]["layers"]
    assert list(result.matrix().columns) == models["other"]["layers"]
    assert result.matrix().shape[0] != result.matrix().shape[1]


def test_what_is_no_matrix_says_so(measure, undrawn):
    with pytest.raises(vitsee.UserError, match="attention_distance is not a matrix"):
        measure("analysis=attention_distance").matrix()
    with pytest.raises(vitsee.UserError, match=r"no column ckaa; it has: .*Did you mean cka\?"):
        measure("analysis=cka").matrix("ckaa")


def test_figures_are_drawn_from_the_tables_at_hand(measure):
    result = measure(images=16)
    result.tables["cka"]["cka"] = 0.5
    drawn = result.figures()["cka"].axes[0].images[0].get_array()
    assert (drawn == 0.5).all()


def test_importing_vitsee_imports_neither_torch_nor_hydra():
    code = (
        "import sys, vitsee; vitsee.run_experiment, vitsee.load;"
        "sys.exit(any(heavy in sys.modules for heavy in ('torch', 'hydra', 'pandas', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_experiment_can_run_in_another_thread_than_the_main_one(measure, undrawn):
    found = []
    thread = threading.Thread(target=lambda: found.append(measure(images=16)))
    thread.start()
    thread.join()
    assert len(found[0].table) > 0


def test_an_interrupted_experiment_goes_on_with_the_same_call(measure, monkeypatch, undrawn):
    with monkeypatch.context() as patch:
        patch.setattr(
            "vitsee.analyses.cka.u_centre_",
            lambda gram: signal.raise_signal(signal.SIGINT) or gram,
        )
        with pytest.raises(vitsee.Interrupted):
            measure("analysis.layers=[norm]")
    assert len(measure("analysis.layers=[norm]").made_with["launches"]) == 2


def test_one_process_runs_one_experiment_after_another(measure, undrawn):
    first, second = measure(images=16), measure(images=16, analysis="attention_distance")
    again = measure(images=16)
    assert first.path == again.path != second.path
    assert (first.analysis, second.analysis) == ("cka", "attention_distance")
    assert len(again.made_with["launches"]) == 1
    pd.testing.assert_frame_equal(first.table, again.table)


def test_a_process_that_uses_hydra_keeps_its_own_configuration(measure, tmp_path, undrawn):
    mine = tmp_path / "conf"
    mine.mkdir()
    (mine / "mine.yaml").write_text("answer: 42\n")
    with initialize_config_dir(str(mine), version_base="1.2"):
        measure(images=16)
        with pytest.raises(vitsee.UserError):
            measure("analysis=ckaa")
        assert compose("mine").answer == 42


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """With few images, and its cells in one namespace."""
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    sources = ["".join(cell["source"]) for cell in code_cells()]
    assert "IMAGES, BATCH = 512, 64" in sources[0]
    sources[0] = sources[0].replace("IMAGES, BATCH = 512, 64", "IMAGES, BATCH = 16, 8")
    names: dict[str, object] = {}
    try:
        for source in sources:
            exec(compile(source, NOTEBOOK.name, "exec"), names)
        assert len(plt.get_fignums()) >= 2
    finally:
        plt.close("all")
    assert names["result"].labels.images == names["distances"].labels.images == 16
    assert names["matrix"].equals(names["result"].matrix())


def test_the_notebook_shows_what_it_gave_and_nobody_s_folders():
    outputs = [output for cell in code_cells() for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert not [
        one for one in outputs if one["output_type"] == "error" or one.get("name") == "stderr"
    ]
    said = "".join(line for one in outputs for line in one.get("data", {}).get("text/plain", []))
    assert ": outputs/cka/vit_mini/" in said
    assert not re.search(r"/(home|tmp|root|Users|work)/", NOTEBOOK.read_text())
    assert NOTEBOOK.stat().st_size < 300_000


def code_cells() -> list[dict]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]
