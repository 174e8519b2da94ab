"""What the documentation says of itself and of the code can be checked: links, settings, metrics, commands."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from django.core.management import get_commands

from kvsite.config import SETTINGS
from kvsite.schema import document
from replication.api import metrics
from store.settings import RequestLimits

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in ("vendor", "node_modules") for part in path.relative_to(ROOT).parts)
)
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=NAMES)

FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^][]|!\[[^][]*\]\([^()]*\))*\]\(([^()\s]+(?:\([^()]*\)[^()\s]*)?)\)")
REFERENCE = re.compile(r"^\[[^]]+\]:\s+(\S+)", re.MULTILINE)
ATTRIBUTE = re.compile(r"(?:src|srcset|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return FENCED.sub("", page.read_text("utf-8"))


def links(page: Path) -> list[str]:
    """Return where a page leads to."""
    text = re.sub(r"`[^`\n]*`", lambda code: code[0] if "](" in code[0] else "", prose(page))
    return [*LINK.findall(text), *REFERENCE.findall(text), *ATTRIBUTE.findall(text)]


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors that GitHub makes of a page's headings: lower case, no punctuation, spaces as dashes."""
    found: Counter[str] = Counter()
    names = set()
    for heading in HEADING.findall(prose(page)):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        names.add(f"{anchor}-{found[anchor]}" if found[anchor] else anchor)
        found[anchor] += 1
    return frozenset(names)


@EACH_PAGE
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT) or not target.exists():
            broken.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target):
            broken.append(f"{link}: {target.name} has no such heading")
    assert broken == []


def test_links_are_found_at_all() -> None:
    """Else the test above would be glad of everything."""
    assert sum(len(links(page)) for page in PAGES) > 100
    assert {"docs/operations.md", "docs/limits.md", "docs/memory.md", "README.md"} <= set(NAMES)


@EACH_PAGE
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    """That each one that exists is documented in docs/settings.md, tests/kvsite/test_config.py sees to."""
    named = set(re.findall(r"\bKV_[A-Z_]*[A-Z]\b", page.read_text("utf-8")))
    assert named - {setting.variable for setting in SETTINGS} == set()


METRICS = set(re.findall(r'"(causeway_[a-z_]+)"', Path(metrics.__file__).read_text("utf-8")))


@EACH_PAGE
def test_every_metric_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"\bcauseway_[a-z_]*[a-z]\b", page.read_text("utf-8")))
    suffixes = re.compile(r"_(total|bucket|sum|count|info)$")
    assert {name for name in named if name not in METRICS and suffixes.sub("", name) not in METRICS} == set()


def test_every_metric_is_documented() -> None:
    told = (ROOT / "docs" / "api.md").read_text("utf-8")
    assert {name for name in METRICS if name not in told} == set()


def test_every_parameter_of_the_api_is_documented() -> None:
    """In docs/api.md as `name=…`, or as `name` alone."""
    named = set(re.findall(r"[`?&]([a-z-]+)[=`]", (ROOT / "docs" / "api.md").read_text("utf-8")))
    parameters = [
        parameter["name"]
        for methods in document(RequestLimits())["paths"].values()
        for operation in methods.values()
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "query"
    ]
    assert {"history", "recent", "prefix"} <= set(parameters)
    assert set(parameters) - named == set()


@EACH_PAGE
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"manage\.py +([a-z_]+)", page.read_text("utf-8")))
    assert named - {*get_commands()} == set()


def test_every_target_of_make_that_a_page_names_exists() -> None:
    """As `make NAME` in code; what is only written about is prose."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:`|^\$ |^)make ([a-z]+)", page.read_text("utf-8"), re.MULTILINE))
        assert named <= targets, page


@EACH_PAGE
def test_every_block_of_yaml_is_one(page: Path) -> None:
    for block in re.findall(r"^```ya?ml\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        assert [*yaml.safe_load_all(block)] != []


def test_no_page_is_left_out_of_the_readme() -> None:
    readme = set(links(ROOT / "README.md"))
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= readme
