"""`make zoo` trains what ships with vitsee, resumes, and refuses names that it does not know."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from vitsee.models import cards

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


def zoo(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "zoo.py"), *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_it_trains_side_by_side_and_again_from_where_it_was(tmp_path):
    words = ["vit_nano", "vit_nano_noskip_1", "--together=2", f"--into={tmp_path}"]
    words += [
        f"--vitsee={sys.executable} -m vitsee",
        "--",
        *TINY,
        f"run.outputs={tmp_path / 'out'}",
    ]
    done = zoo(*words)
    assert done.returncode == 0, done.stderr
    for name in ("vit_nano", "vit_nano_noskip_1"):
        assert cards.read(tmp_path / f"{name}.md").images_seen == 192
    before = (tmp_path / "vit_nano.safetensors").read_bytes()
    again = zoo(*words)
    assert sorted(again.stdout.splitlines()) == sorted(done.stdout.splitlines())
    assert (tmp_path / "vit_nano.safetensors").read_bytes() == before


def test_one_that_fails_is_named_and_the_others_are_trained(tmp_path):
    words = [
        "vit_nano",
        "resnet_mini",
        f"--into={tmp_path}",
        f"--vitsee={sys.executable} -m vitsee",
    ]
    done = zoo(*words, "--", *TINY, f"run.outputs={tmp_path / 'out'}")
    assert done.returncode == 1
    assert "not trained: resnet_mini; the same command resumes" in done.stderr  # it has no depth
    assert [path.name for path in tmp_path.glob("*.md")] == ["vit_nano.md"]


def test_a_name_that_it_does_not_know_is_refused_with_those_it_does():
    done = zoo("vit_mino")
    assert done.returncode == 2
    assert "there is no model vit_mino to train; there are vit_mini, vit_nano," in done.stderr
