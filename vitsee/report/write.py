"""`vitsee report`: writes an HTML page of everything in the given folders. Does not import torch."""

from __future__ import annotations

import logging
from pathlib import Path

from vitsee.errors import UserError, nearest
from vitsee.report.collect import collect
from vitsee.results.folder import Results

log = logging.getLogger(__name__)


USAGE = """usage: vitsee report [PATH…] [-o FILE]

Writes an HTML page of everything in these folders: the claims and their verdicts, the composed
figures, and every result with its parameters, provenance and tables. The page needs no network and no
other files; anything that would make it larger than about 6 MB is linked instead.

  vitsee report                              all of outputs/, into outputs/report.html
  vitsee report outputs/cka                  one analysis, into outputs/cka/report.html
  vitsee report outputs/figures -o fig.html  the composed figures and the results they show

PATH is a result folder or any folder that contains some."""


def report(paths: list[Path], output: Path | None = None) -> Path:
    """Write the page of everything in these folders, and return its path.

    Raises UserError if a folder does not exist or is empty, or if the page cannot be written.
    """
    from vitsee.report.page import page

    contents = collect(paths)
    file = output or paths[0] / "report.html"
    if file.is_dir():
        raise UserError(f"-o {file} is a folder; give a file, such as {file / 'report.html'}")
    if file.exists() and not file.is_file():
        raise UserError(f"-o {file} is a pipe or a device; give a file, such as -o report.html")
    content = page(contents, file.parent).encode("utf-8", "replace")
    for what in contents.damaged:
        log.warning("warning: left out: %s", what)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return Results(file.parent).write(file.name, content)
    except (OSError, UserError) as error:
        reason = error if isinstance(error, OSError) else error.__cause__
        words = getattr(reason, "strerror", None) or reason
        raise UserError(
            f"cannot write {file}: {words}; choose another file with -o FILE"
        ) from error


def parsed(words: list[str]) -> tuple[list[Path], Path | None]:
    """Parse the command line. Return the folders, and the output file if given."""
    paths: list[Path] = []
    output, rest = None, iter(words)
    for word in rest:
        if word in ("-o", "--output"):
            named = next(rest, None)
            if named is None:
                raise UserError(f"{word} needs a file name: vitsee report … {word} FILE")
            output = Path(named)
        elif word.startswith("-"):
            raise UserError(
                f"vitsee report has no option {word}; it has: -o FILE, --help."
                f"{nearest(word, ['--output', '--help'])}"
            )
        else:
            paths.append(Path(word))
    return paths or [Path("outputs")], output
