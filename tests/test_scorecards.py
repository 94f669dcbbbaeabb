"""`scripts/scorecards.py`: claims of several outputs folders side by side, and the table of docs/claims.md."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_report import CLAIM

from vitsee.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The script, for a page of its own."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import scorecards

    monkeypatch.setattr(scorecards, "DOCS", tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    text = f"# Claims\n\n{scorecards.BEGIN}old\n{scorecards.END}\nafter\n"
    (tmp_path / "docs/claims.md").write_text(text)
    yield scorecards
    sys.modules.pop("scorecards")


def scored(folder: Path, *rows: dict[str, object]) -> Path:
    """An outputs folder with these claims."""
    path = folder / "figures/claims-a-vs-b/claims.csv"
    path.parent.mkdir(parents=True)
    pd.DataFrame([CLAIM | row for row in rows]).to_csv(path, index=False)
    return folder


def test_claims_of_several_folders_stand_side_by_side(script, tmp_path, capsys):
    nan = float("nan")
    a = scored(
        tmp_path / "a",
        {"claim": "low_to_high", "holds": "no", "value": -0.2, "low": -0.3, "high": -0.1},
        {"claim": "uniform", "low": nan, "high": nan, "holds": "undecided", "untrained": nan},
    )
    b = scored(
        tmp_path / "b",
        {"claim": "uniform"},
        dict.fromkeys(("value", "low", "high", "untrained"), nan)
        | {"claim": "class_token_first", "holds": "not testable", "why": "no class token"},
    )
    script.main([f"first={a}", f"second={b}"])
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["| claim", "claimed", "first", "second |"]
    assert [line[0].rpartition("(")[2] for line in lines[2:5]] == [
        "`uniform`)",
        "`low_to_high`)",
        "`class_token_first`)",
    ]
    assert lines[2][1:] == [
        "> 0",
        "? undecided: 0.213",
        "✓ yes: 0.213 [0.187, 0.241]; untrained 0.012 |",
    ]
    assert lines[3][1:] == ["> 0", "✗ no: −0.2 [−0.3, −0.1]; untrained 0.012", "not tested |"]
    assert lines[4][1:] == ["> 1", "not tested", "– not testable (no class token) |"]
    assert lines[5][2:] == ["1 no, 1 undecided", "1 yes, 1 not testable |"]


def test_the_page_keeps_what_it_was_given_and_says_what_is_not_measured(script, tmp_path):
    a = scored(tmp_path / "a", {"claim": "uniform"})
    script.main(["--page", f"small={a}"])
    page = tmp_path / "docs/claims.md"
    assert "old" not in page.read_text()
    assert page.read_text().startswith("# Claims\n\n")
    assert page.read_text().endswith("\nafter\n")
    assert page.read_text().count("not measured") == 2
    b = scored(tmp_path / "b", {"claim": "uniform", "holds": "untrained too"})
    script.main(["--page", f"random={b}"])
    (row,) = [line for line in page.read_text().splitlines() if "`uniform`" in line]
    assert row.split(" | ")[2].startswith("✓ yes: 0.213")
    assert row.split(" | ")[3].startswith("≈ untrained too: 0.213")
    first = page.read_text()
    script.main(["--page"])
    assert page.read_text() == first


def test_what_is_no_scorecard_or_no_column_is_refused(script, tmp_path):
    a = scored(tmp_path / "a", {"claim": "uniform"})
    scored(tmp_path / "a/again", {"claim": "uniform"})
    with pytest.raises(UserError, match=r"has 2 scorecards \(claims-a-vs-b, claims-a-vs-b\)"):
        script.main([f"first={a}"])
    script.main([f"first={a / 'figures/claims-a-vs-b'}"])
    with pytest.raises(UserError, match=r"has 0 scorecards \(none\); name a folder with one"):
        script.main([f"first={tmp_path / 'docs'}"])
    with pytest.raises(UserError, match=r"the page has no column smal.*Did you mean small\?"):
        script.main(["--page", f"smal={a}"])


def test_the_table_of_the_page_is_that_of_the_claims_that_are_kept(script):
    text = (ROOT / "docs/claims.md").read_text()
    shown = text.partition(script.BEGIN)[2].partition(script.END)[0]
    assert shown.strip() == script.page_table(ROOT / "docs").strip()
