"""Writes the claims tested in several output folders as one Markdown table, with one column per folder.

    python scripts/scorecards.py NAME=FOLDER …            # print the table
    python scripts/scorecards.py --page [NAME=FOLDER …]   # keep the claims in docs/scorecards/, fill in docs/claims.md

FOLDER is an output folder, a composed figure's folder or a claims.csv. On the page, NAME is one of COLUMNS.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from vitsee.errors import UserError, unknown
from vitsee.papers.claims import CLAIMS
from vitsee.papers.composing import CLAIMS as COLUMNS_OF_CLAIMS
from vitsee.report.show_figures import VERDICTS
from vitsee.report.words import short

DOCS = Path(__file__).parents[1] / "docs"
COLUMNS = {
    "small": "(a) small models",
    "random": "(b) the same, random weights",
    "photographs": "(c) ViT-Ti/16, MobileNetV2",
}
"""Headings of the page's columns by name."""
BEGIN, END = "<!-- scorecards -->\n", "<!-- end of scorecards -->\n"


def main(words: list[str]) -> None:
    """Print the table or fill in the page. Raises UserError."""
    page = "--page" in words
    asked = dict(word.partition("=")[::2] for word in words if word != "--page")
    if not page:
        return print(table({name: read(Path(folder)) for name, folder in asked.items()}), end="")
    for name, folder in asked.items():
        if name not in COLUMNS:
            raise unknown(f"the page has no column {name}", name, COLUMNS, "columns")
        read(Path(folder))  # keep nothing from a folder that cannot be shown
        kept(DOCS).mkdir(exist_ok=True)
        shutil.copyfile(claims_in(Path(folder)), kept(DOCS) / f"{name}.csv")
    fill_in(DOCS)
    return None


def fill_in(docs: Path) -> None:
    """Write the table of all stored claims into the page."""
    path = docs / "claims.md"
    before, _, rest = path.read_text().partition(BEGIN)
    path.write_text(before + BEGIN + "\n" + page_table(docs) + "\n" + END + rest.partition(END)[2])


def page_table(docs: Path) -> str:
    """The page's table; a column without stored claims says so."""
    paths = {heading: kept(docs) / f"{name}.csv" for name, heading in COLUMNS.items()}
    empty = pd.DataFrame({"holds": []})
    return table({name: read(path) if path.exists() else empty for name, path in paths.items()})


def kept(docs: Path) -> Path:
    return docs / "scorecards"


def claims_in(folder: Path) -> Path:
    """The claims.csv of a folder. Raises UserError unless there is exactly one."""
    found = [folder] if folder.is_file() else sorted(folder.glob("**/claims.csv"))
    if len(found) != 1:
        there = ", ".join(str(path.parent.name) for path in found) or "none"
        raise UserError(
            f"{folder} has {len(found)} scorecards ({there}); name a folder with one, "
            f"such as OUTPUTS/figures/claims-vit_mini-vs-resnet_mini"
        )
    return found[0]


def read(folder: Path) -> pd.DataFrame:
    """The claims of a folder, by name. Raises UserError."""
    return COLUMNS_OF_CLAIMS.read(claims_in(folder)).set_index("claim")


def table(columns: Mapping[str, pd.DataFrame]) -> str:
    """One row per claim, in the order in which they are declared, and one with the counts of verdicts."""
    tested = [name for name in CLAIMS if any(name in claims.index for claims in columns.values())]
    rows = [["claim", "claimed", *columns]]
    rows.append(["---"] * len(rows[0]))
    for name in tested:
        claim = CLAIMS[name]
        claimed = f"{'>' if claim.above else '<'} {short(claim.threshold)}"
        cells = [cell(claims, name) for claims in columns.values()]
        rows.append([f"{claim.statement} (`{name}`)", claimed, *cells])
    rows.append(["**all**", "", *(counts(claims) for claims in columns.values())])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def cell(claims: pd.DataFrame, name: str) -> str:
    """The verdict, the statistic with its interval and its untrained value, and why it is not testable."""
    if name not in claims.index:
        return "not measured" if claims.empty else "not tested"
    row = claims.loc[name]
    value, low, high, untrained = (
        short(row[key] if pd.notna(row[key]) else None)
        for key in ("value", "low", "high", "untrained")
    )
    text = f"{VERDICTS[row['holds']]} {row['holds']}"
    if pd.notna(row["value"]):
        text += f": {value}"
        text += f" [{low}, {high}]" if pd.notna(row["low"]) else ""
    text += f"; untrained {untrained}" if pd.notna(row["untrained"]) else ""
    why = row.get("why")
    return text + (f" ({why})" if row["holds"] == "not testable" and isinstance(why, str) else "")


def counts(claims: pd.DataFrame) -> str:
    """The number of claims with each verdict."""
    count = claims["holds"].value_counts()
    return ", ".join(f"{count[verdict]} {verdict}" for verdict in VERDICTS if verdict in count)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as mistake:
        sys.exit(f"scorecards.py: {mistake}")
