"""Build the documentation as a static site: ``make docs``.

The pages of the repository are written for readers of the repository: they link to each other, to modules and to
directories. This module copies them into ``build/docs/source`` in the same layout, so that the links hold in a site
too. zensical.toml names them in its navigation, and zensical renders them, with a search that runs in the browser.

``llms.txt`` (llmstxt.org) lists the pages, which are beside the rendered ones as Markdown, for programs that read text.

It needs only the standard library, because zensical is installed into an environment of its own (.venv/docs).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from tools.paths import REPOSITORY, say

CONFIGURATION: Final = REPOSITORY / "zensical.toml"

INDEXES: Final = ("README.md", "__init__.py", "kustomization.yaml")
"""The file that a link to a directory leads to: the first one that exists."""

SHOWN: Final = frozenset({".md", ".html", ".png", ".svg"})
"""Files that browsers show. Others get the ending ``.txt``, so that browsers show them instead of saving them."""

_FENCED: Final = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_TARGET: Final = re.compile(
    r"""(?P<before>\]\(|\b(?:src|srcset|href)="|^\[[^]]+\]:\ +)(?P<link>[^()\s"]+)(?=[)"\s])""", re.MULTILINE
)
"""A link: of Markdown, of HTML, or defined on a line of its own."""
_NO_PROSE: Final = re.compile(r"[#>|<-]|    |\*\*Status:|Contents:")
"""How blocks begin that are no paragraph, or say nothing of what the page is about."""


class Entry(NamedTuple):
    """A page of the navigation. ``path``: in the source of the site."""

    section: str
    title: str
    path: str


def configuration() -> dict[str, Any]:
    """Return the settings of zensical."""
    project: dict[str, Any] = tomllib.loads(CONFIGURATION.read_text("utf-8"))["project"]
    return project


def navigation() -> Iterator[Entry]:
    """Yield the pages of the navigation, in its order."""
    for item in configuration()["nav"]:
        ((section, content),) = item.items()
        for page in [{section: content}] if isinstance(content, str) else content:
            ((title, path),) = page.items()
            yield Entry(section, title, path)


def place_of(path: str) -> str:
    """Return where a file of the repository is in the site. ``path``: relative to the repository."""
    directory, _, name = path.rpartition("/")
    if name == "README.md":
        name = "index.md"
    elif Path(name).suffix not in SHOWN:
        name += ".txt"
    return f"{directory}/{name}" if directory else name


class Source:
    """The source of the site in ``directory``: pages with links that hold there, and the files that they link to."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._copied: set[str] = set()

    def write(self, pages: list[str]) -> None:
        """Write ``pages``, named relative to the repository, and what they link to. Replaces the directory."""
        shutil.rmtree(self._directory, ignore_errors=True)
        for page in pages:
            target = self._directory / place_of(page)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self._with_links(page), "utf-8")

    def _with_links(self, page: str) -> str:
        """Return the text of a page, with links as they are in the site."""
        text, parts, end = (REPOSITORY / page).read_text("utf-8"), [], 0
        for block in _FENCED.finditer(text):
            parts += [self._replaced(page, text[end : block.start()]), block[0]]
            end = block.end()
        return "".join([*parts, self._replaced(page, text[end:])])

    def _replaced(self, page: str, text: str) -> str:
        text = text.replace("<details>", '<details markdown="1">')  # GitHub reads Markdown in it anyway.
        return _TARGET.sub(lambda found: found["before"] + self._link(page, found["link"]), text)

    def _link(self, page: str, link: str) -> str:
        path, mark, anchor = link.partition("#")
        if not path or re.match(r"[a-z]+:", link):
            return link
        target = (REPOSITORY / page).parent.joinpath(unquote(path)).resolve()
        if target.is_dir():
            target = next(target / name for name in INDEXES if (target / name).exists())
        name = target.relative_to(REPOSITORY).as_posix()
        if target.suffix != ".md":
            self._copy(name)
        here = (REPOSITORY / place_of(page)).parent
        return f"{os.path.relpath(REPOSITORY / place_of(name), here)}{mark}{anchor}"

    def _copy(self, name: str) -> None:
        if name not in self._copied:
            self._copied.add(name)
            target = self._directory / place_of(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, target)


def pages() -> list[str]:
    """Return all pages of the repository, relative to it."""
    found = (path.relative_to(REPOSITORY) for path in REPOSITORY.rglob("*.md"))
    return sorted(path.as_posix() for path in found if not any(map(_is_hidden, path.parts)))


def _is_hidden(part: str) -> bool:
    """Return whether a directory has files of others, or generated ones."""
    return part.startswith(".") or part in {"build", "node_modules", "vendor"}


def llms_txt(source: Path) -> str:
    """Return the list of pages for programs that read text. ``source``: where the source of the site is."""
    project = configuration()
    lines, section = [f"# {project['site_name']}", "", f"> {project['site_description']}"], ""
    for entry in navigation():
        if entry.section != section:
            section = entry.section
            lines += ["", f"## {section}", ""]
        lines.append(f"- [{entry.title}]({entry.path}): {summary((source / entry.path).read_text('utf-8'))}")
    return "\n".join([*lines, ""])


def summary(text: str) -> str:
    """Return the first sentence of a page, as plain text."""
    blocks = _FENCED.sub("", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)).split("\n\n")
    prose = next((block for block in map(str.rstrip, blocks) if block and not _NO_PROSE.match(block.lstrip("\n"))), "")
    plain = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", " ".join(prose.split())).replace("**", "")
    return re.split(r"(?<=\.)\s", plain, maxsplit=1)[0].rstrip(":.") + "."


def foreign_resources(site: Path) -> Iterator[str]:
    """Yield the addresses of other hosts from which pages of the site load scripts, styles, fonts or images."""
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        yield from re.findall(r"<(?:script|img|iframe|source)\b[^>]*?\ssrc(?:set)?=\"?((?:https?:)?//[^\"\s>]+)", text)
        yield from re.findall(r"<link\b[^>]*?\shref=\"?((?:https?:)?//[^\"\s>]+)", text)


def main() -> int:
    """Build the site and return the exit code."""
    project = configuration()
    source, site = REPOSITORY / project["docs_dir"], REPOSITORY / project["site_dir"]
    Source(source).write(pages())
    shutil.rmtree(site, ignore_errors=True)
    done = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=REPOSITORY, check=False)
    if done.returncode:
        return done.returncode
    for entry in navigation():
        shutil.copyfile(source / entry.path, site / entry.path)
    (site / "llms.txt").write_text(llms_txt(source), "utf-8")
    if foreign := sorted(set(foreign_resources(site))):
        say(f"The site must load nothing from other hosts: {', '.join(foreign)}")
        return 1
    say(f"The documentation is in {project['site_dir']}: python3 -m http.server --directory {project['site_dir']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
