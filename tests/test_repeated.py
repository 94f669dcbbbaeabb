"""Warnings that differ only in numbered names: said once, with their count, and nothing else is dropped."""

from __future__ import annotations

import json
import logging

from vitsee.analyses.token_norm import TokenNorm
from vitsee.results.repeated import counted, said_once
from vitsee.runner import run


def constant(layer: str, role: str = "model") -> str:
    return f"{layer} of the {role} is constant over the images; its CKA is 0/0, so NaN"


def test_warnings_about_numbered_layers_are_said_once_with_the_names_of_some():
    layers = [f"layer{i}.0.bn2" for i in range(1, 9)]
    assert said_once(map(constant, layers)) == [
        f"{constant('layer1.0.bn2')} (and 7 more like this: layer2.0.bn2, layer3.0.bn2, layer4.0.bn2 …)"
    ]


def test_a_name_is_given_without_its_punctuation_and_once():
    assert said_once(["blocks.1: 3 are NaN", "blocks.2: 3 are NaN", "blocks.2: 4 are NaN"]) == [
        "blocks.1: 3 are NaN (and 2 more like this: blocks.2)"
    ]


def test_equal_warnings_are_counted():
    assert said_once(["a is not b"] * 3) == ["a is not b (and 2 more like this)"]


def test_other_warnings_stay_in_the_order_in_which_they_came():
    warnings = [constant("bn1"), constant("norm"), constant("bn1", "other"), "accuracy is unknown"]
    assert said_once(warnings) == warnings
    assert said_once([]) == []


def test_a_run_says_them_once_and_its_record_keeps_them_all(tiny, undrawn, monkeypatch, caplog):
    every = [constant(f"blocks.{i}") for i in range(4)]
    monkeypatch.setattr(TokenNorm, "warnings", lambda self, sums: every, raising=False)
    (table, *_) = run(tiny("analysis=token_norm", "images=8")).files
    said = [line for line in caplog.messages if line.startswith("warning: ")]
    assert said == [f"warning: {line}" for line in said_once(every)]
    assert json.loads((table.parent / "made_with.json").read_text())["warnings"] == every


def test_equal_warnings_of_several_figures_come_at_once_and_are_counted_at_the_end(caplog):
    log = logging.getLogger("vitsee.test_repeated")
    caplog.set_level(logging.INFO)
    with counted(log):
        for name in ("vit_huge", "vit_huge", "mixer_huge", "vit_huge"):
            log.warning("warning: %s is left out", name)
            log.info("waiting")
        assert caplog.messages.count("warning: vit_huge is left out") == 1
    assert caplog.messages == [
        *("warning: vit_huge is left out", "waiting", "waiting"),
        *("warning: mixer_huge is left out", "waiting", "waiting"),
        "warning: vit_huge is left out (3 times in all)",
    ]
    log.warning("warning: vit_huge is left out")
    assert caplog.messages[-1] == "warning: vit_huge is left out"
