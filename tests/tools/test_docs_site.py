"""The source of the documentation's site: complete, with links that resolve. `make docs` renders it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.repository.test_docs import anchors, links
from tools import docs_site
from tools.paths import REPOSITORY

ENTRIES = [*docs_site.navigation()]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site") / "source"
    (directory / "old").mkdir(parents=True)
    docs_site.Source(directory).write(docs_site.pages())
    assert not (directory / "old").exists()
    return directory


def test_the_navigation_names_every_page_once() -> None:
    named = [entry.path for entry in ENTRIES]
    assert sorted(named) == sorted(docs_site.place_of(page) for page in docs_site.pages())
    assert len({(entry.section, entry.title) for entry in ENTRIES}) == len(ENTRIES)


def test_titles_of_decisions_are_those_of_their_pages(source: Path) -> None:
    for entry in ENTRIES:
        if re.search(r"decisions/\d", entry.path):
            assert (source / entry.path).read_text("utf-8").startswith(f"# {entry.title}\n")


def test_every_link_of_the_site_resolves_within_it(source: Path) -> None:
    broken, checked = [], 0
    for page in source.rglob("*.md"):
        for link in links(page):
            path, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            target = (page.parent / path).resolve() if path else page
            checked += 1
            if not (target.is_relative_to(source) and target.is_file()):
                broken.append(f"{page.name}: {link}")
            elif anchor and anchor not in anchors(target):
                broken.append(f"{page.name}: {link} has no such heading")
    assert broken == []
    assert checked > 300


def test_code_is_text_and_directories_lead_to_a_file(source: Path) -> None:
    readme = (source / "index.md").read_text("utf-8")
    assert "(docs/api.md)" in readme
    assert "(docs/benchmarks/index.md)" in readme
    architecture = (source / "ARCHITECTURE.md").read_text("utf-8")
    assert "(store/clock.py.txt)" in architecture
    assert "(tools/simulation/__init__.py.txt)" in architecture
    assert (source / "store/clock.py.txt").read_bytes() == (REPOSITORY / "store/clock.py").read_bytes()


def test_code_blocks_stay_as_they_are(source: Path) -> None:
    for page in docs_site.pages():
        blocks = [block[0] for block in docs_site._FENCED.finditer((REPOSITORY / page).read_text("utf-8"))]
        copied = (source / docs_site.place_of(page)).read_text("utf-8")
        assert [block[0] for block in docs_site._FENCED.finditer(copied)] == blocks


def test_llms_txt_lists_every_page_with_what_it_is_about(source: Path) -> None:
    lines = docs_site.llms_txt(source).splitlines()
    assert lines[0] == "# Causeway"
    assert lines[2].startswith("> A replicated")
    entries = [re.fullmatch(r"- \[(.+)\]\((\S+\.md)\): (.{20,400})", line) for line in lines if line.startswith("- ")]
    assert all(entries), lines
    assert [found[2] for found in entries if found] == [entry.path for entry in ENTRIES]


def test_the_site_loads_nothing_from_other_hosts() -> None:
    text = docs_site.CONFIGURATION.read_text("utf-8")
    assert tomllib.loads(text)["project"]["theme"]["font"] is False
    assert "://" not in text


def test_what_a_page_loads_from_other_hosts_is_found(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        '<a href="https://one.example">x</a> <script src="https://two.example/a.js"></script> <img src="a.png">'
        '<link rel="stylesheet" href="//three.example/a.css"> <link href="assets/b.css">'
    )
    assert sorted(docs_site.foreign_resources(tmp_path)) == ["//three.example/a.css", "https://two.example/a.js"]


def test_what_builds_the_site_is_locked_and_in_no_other_environment() -> None:
    locked = (REPOSITORY / "requirements-docs.txt").read_text("utf-8")
    wanted = re.findall(r"^[\w-]+", (REPOSITORY / "requirements-docs.in").read_text("utf-8"), re.MULTILINE)
    assert "zensical" in wanted
    for name in wanted:
        assert re.search(rf"^{re.escape(name)}==\S+ \\$", locked, re.MULTILINE), name
    pinned = re.findall(r"^\S+==\S+ \\$", locked, re.MULTILINE)
    assert locked.count("--hash=sha256:") >= len(pinned) > 3
    for other in ("requirements.txt", "requirements-dev.txt"):
        assert "zensical" not in (REPOSITORY / other).read_text("utf-8")
