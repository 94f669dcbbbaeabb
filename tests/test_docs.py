"""The documentation says what the code does, and its pages lead to each other."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import composed, of_analysis
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vitsee import __version__, cli, listing
from vitsee.analysis import REGISTERED, Analysis
from vitsee.choices import CONF, GROUPS
from vitsee.config import quoted
from vitsee.models import cards, presets
from vitsee.models.sources.timm import EMBEDDED
from vitsee.papers import atlas, verdicts
from vitsee.papers.claims import CLAIMS
from vitsee.papers.request import Request
from vitsee.plugins import import_asked
from vitsee.results.reading import read
from vitsee.testing import check_analysis
from vitsee.training import recipes

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
WRITTEN = sorted(name for name in REGISTERED if f"analyses/{name}.md" in PAGES)
"""Analyses that have a page; `test_every_analysis_has_a_page` names the others."""


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def rows(text: str, heading: str) -> list[list[str]]:
    """Cells of the tables below a heading, their heads left out."""
    parts = re.split(rf"^## {heading}\n", text, flags=re.MULTILINE)
    assert len(parts) == 2, f"the page has no heading '## {heading}', or several"
    lines = [line for line in parts[1].split("\n## ")[0].splitlines() if line.startswith("|")]
    ruled = [i for i, line in enumerate(lines) if set(line) <= set("|-")]
    heads = {i for at in ruled for i in (at, at - 1)}
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for i, line in enumerate(lines)
        if i not in heads
    ]


def code(cell: str) -> str:
    """What stands in a cell as code, and alone."""
    found = re.fullmatch(r"`([^`]*)`", cell)
    assert found, f"{cell!r} should be code"
    return found[1]


def options(analysis: str) -> dict[str, Any]:
    """Every option of an analysis that a user can set, with its default as `vitsee run` composes it."""
    kind = REGISTERED[analysis]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = compose("run", [f"analysis={analysis}"]).analysis
    plain = OmegaConf.to_container(chosen, enum_to_str=True)
    assert isinstance(plain, dict)
    unread = {"name"}
    if kind.weights_only:  # no layers are watched
        unread |= {field.name for field in fields(Analysis)}
    found = {field.name: plain[field.name] for field in fields(kind) if field.name not in unread}
    if kind.weights_only:
        return found
    return found | {"images": kind.default_images, "batch_size": kind.default_batch_size}


def navigation(entries: list[Any]) -> list[str]:
    """Every page that the navigation names."""
    found = []
    for entry in entries:
        target = next(iter(entry.values())) if isinstance(entry, dict) else entry
        found += navigation(target) if isinstance(target, list) else [target]
    return found


def test_every_analysis_has_a_page():
    missing = [f"docs/analyses/{name}.md" for name in sorted(set(REGISTERED) - set(WRITTEN))]
    assert not missing, (
        f"analyses without a page: write {', '.join(missing)}, name it in mkdocs.yml"
    )


def test_every_page_of_an_analysis_is_of_one_that_exists():
    pages = [Path(name).stem for name in PAGES if name.startswith("analyses/")]
    assert sorted(pages) == WRITTEN


@pytest.mark.parametrize("name", WRITTEN)
def test_the_page_of_an_analysis_has_its_options_with_their_defaults(name):
    said = {}
    for option, default, _ in rows(page(f"analyses/{name}.md"), "Options"):
        if option.startswith("`") and default.startswith("`"):  # not the table of presets
            said[code(option)] = yaml.safe_load(code(default))
    assert said == options(name)


@pytest.mark.parametrize("name", [of_analysis(name) for name in WRITTEN])
def test_the_page_of_an_analysis_has_the_columns_of_its_tables(name, measured):
    found = read(measured(name).folder).tables
    said = {
        code(table): [code(column) for column in columns.split(", ")]
        for table, columns, *_ in rows(page(f"analyses/{name}.md"), "Tables")
        if code(table.split(", ")[0]) in found
    }
    assert said == {table: list(rows.columns) for table, rows in found.items()}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_page_of_an_analysis_says_what_it_costs_how_it_is_read_and_where_it_ends(name):
    headings = re.findall(r"^## (.*)$", page(f"analyses/{name}.md"), flags=re.MULTILINE)
    assert {"What is measured", "Options", "Tables", "Cost", "Limits"} <= set(headings)
    assert {"How to read the figure", "How to read the figures"} & set(headings)


def test_every_preset_of_layers_is_described():
    named = {word for row in rows(page("analyses/cka.md"), "Options") for word in row[:1]}
    assert set(presets.PRESETS) <= set(re.findall(r"`(\w+)`", " ".join(named)))


def test_the_gallery_has_a_line_for_each_figure():
    text = page("gallery.md")
    for name in atlas.figures():
        (line,) = re.findall(rf"^- \*\*{name}\*\*.*$", text, flags=re.MULTILINE)
        assert atlas.published(name).title in line


def test_the_page_on_claims_has_every_column_and_verdict():
    text = page("claims.md")
    assert all(f"`{column}`" in text for column in verdicts.COLUMNS)
    said = [row[0] for row in rows(text, "Verdicts")]
    assert said == [
        *(verdicts.YES, verdicts.NO, verdicts.UNDECIDED),
        *(verdicts.UNTRAINED_TOO, verdicts.NOT_TESTABLE),
    ]


def test_every_page_is_in_the_navigation_once():
    named = navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(named) == PAGES


@pytest.mark.parametrize("name", ["../README.md", "../CHANGELOG.md", *PAGES])
def test_links_lead_to_files_that_are_there(name):
    here = (DOCS / name).parent
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", page(name)))
    broken = [
        link
        for link in links
        if "://" not in link and not (here / (link.partition("#")[0] or DOCS / name)).exists()
    ]
    assert not broken


def test_the_citation_names_this_version_and_both_papers():
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert said["cff-version"] == "1.2.0"
    assert said["version"] == __version__
    papers = {reference["url"] for reference in said["references"]}
    assert papers == {"https://arxiv.org/abs/2108.08810", "https://arxiv.org/abs/2010.11929"}
    assert all(paper in (ROOT / "README.md").read_text(encoding="utf-8") for paper in papers)


def test_pages_that_code_and_configuration_speak_of_are_there():
    files = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "Makefile"]
    for folder, pattern in (("vitsee", "*.py"), ("conf", "*.yaml"), ("scripts", "*")):
        files += [path for path in (ROOT / folder).rglob(pattern) if path.is_file()]
    named = {
        found
        for path in files
        for found in re.findall(r"\bdocs/[\w/]+\.(?:md|png)", path.read_text(errors="replace"))
    }
    assert len(named) > 5
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    if find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install -c constraints.txt 'vitsee[docs]'")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_is_built_without_a_warning(site):
    assert (site / "index.html").is_file()
    assert (site / "analyses" / "cka.html").is_file()


def test_pages_of_the_site_fetch_nothing_from_elsewhere(site):
    fetching = re.compile(
        r"<(?:script|img|iframe)\b[^>]*\bsrc=[\"']?(?:https?:)?//|<link\b[^>]*\bhref=[\"']?(?:https?:)?//"
        r"|@import\s+[\"'(]*(?:url\()?[\"']?(?:https?:)?//|url\([\"']?(?:https?:)?//",
        re.IGNORECASE,
    )
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > len(PAGES)
    assert [
        (path.name, found[0])
        for path in pages
        if (found := fetching.search(path.read_text(encoding="utf-8")))
    ] == []


# ---- the commands that pages show ----


def commands() -> list[tuple[str, str]]:
    """Each line that begins with `vitsee`, and the first page that has it; examples of additions are tested below."""
    found: dict[str, str] = {}
    for name in ["../README.md", *PAGES]:
        if name != "extending.md":
            lines = re.findall(r"^    (vitsee .*)$", page(name), flags=re.MULTILINE)
            for line in lines:
                if "--import" not in line and "--config-dir" not in line:
                    found.setdefault(" ".join(line.split()), name)
    return [(name, line) for line, name in found.items()]


def singly(words: list[str]) -> list[list[str]]:
    """The experiments of a sweep over models or shards."""
    swept = [i for i, word in enumerate(words) if re.match(r"(model|run\.shard)=.*,", word)]
    if not swept:
        return [words]
    key, _, values = words[swept[0]].partition("=")
    rest = [word for i, word in enumerate(words) if i != swept[0]]
    return [[*rest, f"{key}={value}"] for value in values.split(",")]


@pytest.mark.parametrize(("name", "line"), commands())
def test_a_command_that_a_page_shows_can_be_given(name, line):
    _, verb, *words = shlex.split(line, comments=True)
    words = [word for word in words if word not in ("-m", "…")]
    words = [word for word in words if not word.startswith("hydra")]  # launchers are an extra
    if verb == "run" and any(word.startswith("figure=") for word in words):
        request = Request.read(words)
        for figure in request.figures:
            request.check(atlas.published(figure))
        assert atlas.zoo(request.zoo).roles
    elif verb in ("run", "train"):
        for overrides in singly(words):
            if verb == "run":
                assert composed(*overrides).model.name
                continue
            with initialize_config_dir(str(CONF), version_base="1.3"):
                assert recipes.build(compose(verb, [quoted(word) for word in overrides])).model.name
    elif verb == "list":
        assert set(words[0].split("|")) <= set(listing.KINDS)
    else:
        assert verb in cli.VERBS


# ---- the examples of docs/extending.md, in an empty folder ----


def examples() -> dict[str, str]:
    """The contents of each file that the page shows, by its path."""
    blocks = re.findall(
        r"^`([\w/]+\.\w+)`\n\n```\w+\n(.*?)^```$",
        page("extending.md"),
        flags=re.DOTALL | re.MULTILINE,
    )
    return dict(blocks)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all examples and nothing else."""
    folder = tmp_path_factory.mktemp("extended")
    for name, content in examples().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


MINE = "--import token_length.py --import my_claims.py --config-dir conf"
FEW = "images=8 batch_size=4 run.workers=0 run.progress=false"
GIVEN = {
    "analysis": ("run --import token_length.py analysis=token_length analysis.patches=true", FEW),
    "figure": (f"run {MINE} figure=norms", FEW),
    "zoo": (f"run {MINE} figure=norms zoo=two", FEW),
    "model": ("list layers --config-dir conf model=vit_s16_dino", ""),
    "models": ("list models --config-dir conf", ""),
    "data set": (
        "run --config-dir conf dataset=pets dataset.root=photos",
        f"analysis.layers=[norm] {FEW}",
    ),
    "recipe": ("train --config-dir conf recipe=vit_nano_short", "--cfg job"),
    "protocol": ("run --config-dir conf protocol=quick", "--cfg job"),
}
"""A command on the page for each kind of example, and what makes it fast."""

ONE_AFTER_ANOTHER = """
import sys
from vitsee import cli
for line in sys.argv[1:]:
    sys.argv = ["vitsee", *line.split()]
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code, line
    print(end="\\0")
"""

together = pytest.mark.xdist_group("examples")  # one worker, so that the commands run once


@pytest.fixture(scope="module")
def said(extended: Path, images: Path) -> dict[str, str]:
    """What each command of GIVEN prints in that folder; all are given in one process."""
    shutil.copytree(images, extended / "photos" / "test")
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER, *map(" ".join, GIVEN.values())],
        cwd=extended,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(GIVEN, done.stdout.split("\0")[:-1], strict=True))


def test_there_is_an_example_of_everything_that_can_be_added():
    kinds = {str(Path(name).parent) for name in examples()}
    assert kinds == {".", *(f"conf/{group}" for group in GROUPS)}
    assert {"token_length.py", "my_claims.py"} <= set(examples())


def test_the_commands_that_are_given_are_those_on_the_page():
    shown = page("extending.md").splitlines()
    assert [line for line, _ in GIVEN.values() if f"    vitsee {line}" not in shown] == []


@together
def test_the_example_of_an_analysis_figure_and_claim_is_measured_drawn_and_judged(extended, said):
    folder = extended / "outputs" / "figures" / "norms-mini"
    assert (folder / "norms.png").is_file()
    (row,) = (folder / "claims.csv").read_text().splitlines()[1:]
    assert row.startswith("tokens_grow,norms,")
    judged = (verdicts.YES, verdicts.NO, verdicts.UNDECIDED, verdicts.UNTRAINED_TOO)
    assert any(f",{holds}," in row for holds in judged)
    assert "tokens_grow" not in CLAIMS, "it is a claim of the other process"


@pytest.mark.parametrize("name", ["token_length", "attention_entropy"])
def test_the_example_of_an_analysis_obeys_the_laws(extended, monkeypatch, name):
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # as it was, afterwards
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = dict(REGISTERED)
    try:
        import_asked(["--import", str(extended / f"{name}.py")])
        check_analysis(REGISTERED[name])
    finally:
        REGISTERED.clear()
        REGISTERED.update(before)
        sys.modules.pop(name, None)


@together
def test_the_example_of_a_model_is_found_by_timm(said):
    assert "vit_small_patch16_224.dino" in said["model"]
    assert re.search(r"^vit_s16_dino +vit_small_patch16_224\.dino ", said["models"], re.MULTILINE)


@together
def test_the_example_of_a_data_set_is_read(extended, said):
    assert list((extended / "outputs" / "cka" / "vit_mini").glob("pets-*/cka.csv"))


@together
def test_the_example_of_a_zoo_casts_its_own_models(extended, said):
    panels = extended / "outputs" / "figures" / "norms-two" / "panels.csv"
    assert "token_length/vit_nano/" in panels.read_text()


@together
def test_the_example_of_a_protocol_is_composed(said):
    assert yaml.safe_load(said["protocol"])["images"] == 64


@together
def test_the_example_of_a_recipe_is_composed(said):
    recipe = yaml.safe_load(said["recipe"])
    assert recipe["recipe"]["images_seen"] == 24000
    assert recipe["recipe"]["name"] == "${model.name}_short"
    assert recipe["model"]["name"] == "vit_nano"


@pytest.mark.parametrize("path", sorted(EMBEDDED.glob("*.md")), ids=lambda path: path.stem)
def test_the_table_of_small_models_says_what_their_cards_say(path):
    card = cards.read(path)
    lines = page("zoo.md").splitlines()
    (row,) = (line for line in lines if line.startswith(f"| `{path.stem}` |"))
    cells = [cell.strip() for cell in row.split("|")[2:6]]
    size = f"{card.parameters / 1e6:.2f} M"
    seen = f"{card.images_seen:,} of {card.train_images:,}"
    assert cells == [f"{card.accuracy:.1%}", f"{card.pixel_probe:.1%}", size, seen]


def test_every_model_of_the_small_zoo_has_its_line_in_the_script():
    script = (ROOT / "scripts" / "zoo.sh").read_text()
    for path in EMBEDDED.glob("*.safetensors"):
        assert f"\ntrain {path.stem} " in script
