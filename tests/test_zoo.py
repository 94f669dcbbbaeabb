"""`make zoo` trains the next small models, resumes, and replaces those that ship only as a whole."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from forks import Forks
from hydra import compose, initialize_config_dir

from vitsee.choices import CONF
from vitsee.models import cards, loader, timm_architecture
from vitsee.models.sources import timm as embedded
from vitsee.options import ModelOptions, Pool, Source
from vitsee.training import recipes

# One worker, so that the models are trained once.
pytestmark = pytest.mark.xdist_group("zoo")

ROOT = Path(__file__).parents[1]
TINY = [
    *(
        "dataset.size=128",
        "recipe.images_seen=192",
        "recipe.batch_size=64",
        "recipe.test_images=32",
    ),
    *("model.args.depth=2", "run.device=cpu", "run.progress=false"),
]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("zoo", ROOT / "scripts" / "zoo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def zoo_here(forks: Forks) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The script in this process, whose trainings are forks."""

    class Training:
        def __init__(self, words: list[str], **how: object) -> None:
            self.fork = forks.start(words[1:])

        def poll(self) -> int:
            self.returncode = self.fork.end()
            return self.returncode

        def communicate(self) -> tuple[str, str]:
            return self.fork.out, self.fork.err

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        out, err, module = StringIO(), StringIO(), script()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", ["zoo.py", *words])
            patch.setattr(module, "subprocess", SimpleNamespace(Popen=Training, PIPE=None))
            code = module.main()
        return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture(scope="module")
def trained(zoo_here, tmp_path_factory) -> tuple[list[str], subprocess.CompletedProcess[str], Path]:
    """Two tiny trainings side by side, one of which fails: the command, what it did, and its folder."""
    into = tmp_path_factory.mktemp("zoo")
    words = ["vit_nano", "resnet_mini", "vit_nano_gap", "--together=2", f"--into={into}"]
    words += ["--vitsee=vitsee", "--", *TINY, f"run.outputs={into / 'out'}"]
    return words, zoo_here(*words), into


def test_it_trains_what_can_be_trained_and_names_what_failed(trained):
    _, done, into = trained
    assert done.returncode == 1
    assert "not trained: resnet_mini; the same command resumes" in done.stderr  # it has no depth
    assert sorted(path.name for path in into.glob("*.md")) == ["vit_nano.md", "vit_nano_gap.md"]
    card = cards.read(into / "vit_nano.md")
    assert (card.name, card.images_seen, card.classes) == ("vit_nano", 192, 64)


def test_again_it_goes_on_from_where_it_was(trained, zoo_here):
    words, done, into = trained
    before = (into / "vit_nano.safetensors").read_bytes()
    again = zoo_here("vit_nano", *words[3:])
    assert again.returncode == 0, again.stderr
    assert again.stdout in done.stdout
    assert (into / "vit_nano.safetensors").read_bytes() == before


def test_without_names_it_trains_what_is_missing(trained, monkeypatch):
    _, _, into = trained
    asked, module = [], script()
    monkeypatch.setattr(sys, "argv", ["zoo.py", f"--into={into}"])
    monkeypatch.setattr(module, "train", lambda names, *words: asked.extend(names))
    assert module.main() == 0
    assert asked == [n for n in module.TRAININGS if n not in ("vit_nano", "vit_nano_gap")]


def test_a_name_that_it_does_not_know_is_refused_with_those_it_does():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "zoo.py"), "vit_mino"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "there is no model vit_mino to train; there are vit_mini, vit_nano," in done.stderr


@pytest.mark.parametrize("name", script().TRAININGS)
def test_every_training_is_one_that_can_begin(name, tmp_path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        asked = recipes.build(compose("train", script().options(name, tmp_path, gpu=True)))
    net = timm_architecture.skeleton(asked.model)
    size = tuple(timm_architecture.data_config(net)["input_size"])
    assert (asked.recipe.name, asked.model.name, size) == (name, name, (3, 48, 48))
    assert net.num_classes == {"contours": 64, "lines": 16}[asked.dataset.name]


def test_every_role_is_played_by_a_model_that_is_trained():
    roles = yaml.safe_load((ROOT / "scripts" / "zoo_roles.yaml").read_text())["roles"]
    played = {role["model"] for role in roles.values() if "model" in role}
    assert played <= set(script().TRAININGS)
    assert set(roles) == set(yaml.safe_load((CONF / "zoo" / "mini.yaml").read_text())["roles"])


class TestShipping:
    @pytest.fixture
    def root(self, tmp_path) -> Path:
        """A repository with one model that ships."""
        for folder in ("vitsee/weights", "conf/model", "conf/zoo"):
            (tmp_path / folder).mkdir(parents=True)
        for old in (
            "vitsee/weights/old.md",
            "vitsee/weights/old.safetensors",
            "conf/model/old.yaml",
        ):
            (tmp_path / old).write_text("old")
        return tmp_path

    def test_nothing_changes_while_a_model_is_missing(self, trained, root, capsys):
        _, _, into = trained
        assert script().ship(into, root) == 1
        assert "not yet in" in capsys.readouterr().err
        assert (root / "vitsee/weights/old.md").exists()

    def test_the_models_that_ship_are_replaced_as_a_whole(
        self, trained, root, tmp_path, monkeypatch
    ):
        _, _, into = trained
        module = script()
        every = tmp_path / "every"
        every.mkdir()
        for name in module.TRAININGS:
            source = "vit_nano_gap" if "gap" in name else "vit_nano"
            for kind in ("md", "safetensors"):
                shutil.copy(into / f"{source}.{kind}", every / f"{name}.{kind}")
        assert module.ship(every, root) == 0
        assert not (root / "vitsee/weights/old.md").exists()
        assert not (root / "conf/model/old.yaml").exists()
        assert (root / "vitsee/weights/vit_mini_seed_1.md").exists()
        assert not (root / "vitsee/weights/vit_mini_seed_1.safetensors").exists()
        assert "dataset=contours" in (root / "conf/zoo/mini.yaml").read_text()
        made = yaml.safe_load((root / "conf/model/vit_nano_gap.yaml").read_text())
        assert (made["pool"], made["dataset"], made["embedded"]) == ("gap", "contours", True)
        monkeypatch.setattr(embedded, "EMBEDDED", root / "vitsee/weights")
        typed = {"pool": Pool.gap, "source": Source.timm}
        options = {k: v for k, v in made.items() if k not in ("defaults", *typed)}
        model = ModelOptions(**options, **typed)
        assert loader.load(model, "cpu").net.num_classes == 64
