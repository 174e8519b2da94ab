"""Checks of the documentation: every link, path, name, setting, metric and command in it exists."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import msgspec
import pytest
import yaml
from django.core.management import get_commands

from kvsite.config import SETTINGS, Config
from kvsite.schema import document
from kvsite.server import build
from replication.api import metrics
from replication.messages import Exchange, SnapshotPiece, SnapshotRequest
from replication.replica import Replica
from replication.status import replica_status
from store.clock import Instant
from store.engine import read_clocks
from store.merging import Increment, MapChange, Operation, SetChange
from store.settings import RequestLimits
from store.values import store_bytes
from store.versions import Change, Patch, Update, Write
from tools import docs_site
from tools.paths import REPOSITORY

NAMES = docs_site.pages()
PAGES = [REPOSITORY / name for name in NAMES]
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
    """Return the targets of all links and images of a page."""
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
def test_every_link_has_a_target(page: Path) -> None:
    broken = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(REPOSITORY) or not target.exists():
            broken.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target):
            broken.append(f"{link}: {target.name} has no such heading")
    assert broken == []


def test_links_are_found_at_all() -> None:
    """Otherwise the test above would pass for any page."""
    assert sum(len(links(page)) for page in PAGES) > 100
    assert {"docs/operations.md", "docs/limits.md", "docs/memory.md", "README.md"} <= set(NAMES)


@EACH_PAGE
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    """tests/kvsite/test_config.py checks the other direction: docs/settings.md has every setting."""
    named = set(re.findall(r"\bKV_[A-Z_]*[A-Z]\b", page.read_text("utf-8")))
    known = {setting.variable for setting in SETTINGS}
    known |= {f"{setting.variable}_FILE" for setting in SETTINGS if setting.is_secret}
    assert named - known == set()


CLIENT: Final = "causeway_client"
"""A package. All other names with this beginning are metrics."""

METRICS = set(re.findall(r'"(causeway_[a-z_]+)"', Path(metrics.__file__).read_text("utf-8")))


@EACH_PAGE
def test_every_metric_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"\bcauseway_[a-z_]*[a-z]\b", page.read_text("utf-8"))) - {CLIENT}
    suffixes = re.compile(r"_(total|bucket|sum|count|info)$")
    assert {name for name in named if name not in METRICS and suffixes.sub("", name) not in METRICS} == set()


def test_every_metric_is_documented() -> None:
    page = (REPOSITORY / "docs" / "api.md").read_text("utf-8")
    assert {name for name in METRICS if name not in page} == set()


def test_every_parameter_of_the_api_is_documented() -> None:
    """docs/api.md names each query parameter as `name=…` or `name`."""
    named = set(re.findall(r"[`?&]([a-z-]+)[=`]", (REPOSITORY / "docs" / "api.md").read_text("utf-8")))
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
    """A target is `make NAME` in code."""
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:`|^\$ |^)make ([a-z]+)", page.read_text("utf-8"), re.MULTILINE))
        assert named <= targets, page


def test_every_kind_of_event_is_documented() -> None:
    """docs/operations.md names each kind of event, as the log shows it."""
    code = "\n".join(path.read_text("utf-8") for path in (REPOSITORY / "replication").glob("*.py"))
    kinds = set(re.findall(r"\.record\(\s*\"([a-z]+)\"", code))
    assert {"started", "superseded", "lost"} <= kinds
    page = (REPOSITORY / "docs" / "operations.md").read_text("utf-8")
    assert {kind for kind in kinds if not re.search(rf"`{kind}\b", page)} == set()


def test_every_field_of_the_status_is_documented() -> None:
    """docs/api.md lists each field of ``/replication/status`` in the table of that section."""
    now = Instant(0.0, 0)
    replica = Replica("a:1", ["b:1"], now=now, rng=random.Random(1))
    replica.add_replica_from_view("b:1", now)
    status = replica_status(replica, defaultdict(int), now)
    fields = {
        *status,
        *status["view"][0],
        *status["log"],
        *status["snapshots"],
        *status["throughput"],
        *status["events"][0],
        "open",
    }
    page = (REPOSITORY / "docs" / "api.md").read_text("utf-8")
    section = page.partition("### `/replication/status`")[2].partition("\n### ")[0]
    table = "\n".join(re.findall(r"^\| .+ \|$", section, re.MULTILINE))
    assert {"replica_id", "missing_updates", "messages_refused", "kind"} <= fields
    assert {field for field in fields if f"`{field}`" not in table} == set()


def explanations() -> list[dict[str, Any]]:
    """Return explanations that have, together, every field: of bytes, of each type that merges, of an absent key."""
    node = build(Config(), pytest.fail).node
    store, now = node.inspector._replica.store, read_clocks()
    operations: dict[str, Operation] = {
        "counter": Increment(1),
        "set": SetChange(("red",)),
        "map": MapChange((("name", b'"Ann"'),)),
    }
    for key, operation in operations.items():
        store.put(Change(key, None, patch=Patch(operation, keeps_ttl=True, max_bytes=10_000)), {}, now)
    store.put(Change("bytes", store_bytes(b"1")), {}, now)
    store.put(Change("gone", b"1"), {}, now)
    store.put(Change("gone", None), {}, now)
    store.receive([Update("b:1@0000000000000001", 2, 5, {}, (Write("gone", b"1"),))], now)
    return [node.inspector.explain(key) for key in (*operations, "bytes", "gone")]


def test_every_field_of_an_explanation_is_documented_and_the_example_has_all() -> None:
    """docs/api.md lists each field of ``/replication/explain`` in the tables of that section, and no other."""
    found = explanations()
    versions = [version for each in found for version in each["versions"]]
    parts: list[dict[str, Any]] = [
        *versions,
        *(member for version in versions for member in version["members"]),
        *(part for version in versions for part in version.get("parts", ())),
        *(each["merged"] for each in found if each["merged"]),
        *(update for each in found for update in (*each["pending"], *each["last_updates"])),
    ]
    fields = {name for each in (*found, *parts) for name in each}
    assert {"note", "encoding", "net", "element", "field", "waits_for", "deletes", "has"} <= fields
    page = (REPOSITORY / "docs" / "api.md").read_text("utf-8")
    section = page.partition("### `/replication/explain/<key>`")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", section, re.MULTILINE)
    table = "\n".join(f"{names} {meaning}" for names, meaning in rows)
    assert {field for field in fields if f"`{field}`" not in table} == set()
    assert {name for names, _ in rows for name in re.findall(r"`(\w+)`", names)} - fields == set()
    (example,) = [
        msgspec.json.decode(each) for each in re.findall(r"^(\{\n.*?^\})$", section, re.MULTILINE | re.DOTALL)
    ]
    assert example.keys() == found[0].keys()
    plain = {name for name in versions[-1] if name != "encoding"}
    assert example["versions"][0].keys() == plain


@EACH_PAGE
def test_every_block_of_yaml_is_valid(page: Path) -> None:
    for block in re.findall(r"^```ya?ml\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        assert [*yaml.safe_load_all(block)] != []


def test_the_readme_links_to_every_page() -> None:
    readme = set(links(REPOSITORY / "README.md"))
    assert {f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")} <= readme


# -- paths and names in code spans -----------------------------------------------------------------------------------

GENERATED_DIRECTORIES: Final = frozenset({"build", "dist"})
TOP: Final = sorted(
    path.name
    for path in REPOSITORY.iterdir()
    if path.is_dir() and not path.name.startswith(".") and path.name not in GENERATED_DIRECTORIES
)
CODE: Final = re.compile(r"`([^`\n]+)`")
PATH: Final = re.compile(rf"(?:{'|'.join(TOP)})/[\w./*-]*|[\w-]+\.(?:py|md|toml|yaml)|Makefile|Dockerfile")
MODULE: Final = re.compile(r"\b(?:store|replication|kvsite|tools)(?:\.[a-z_]+)+")
GENERATED: Final = {"import.py", "follow.py", "causeway.env"}
"""Names in examples: files that the reader creates."""


def code_spans(page: Path) -> list[str]:
    """Return the text of all code spans in the prose of a page."""
    return CODE.findall(prose(page))


@EACH_PAGE
def test_every_path_in_a_code_span_exists(page: Path) -> None:
    """A path is relative to the repository or to the page; a bare file name may be anywhere in the repository."""
    missing = []
    for span in code_spans(page):
        path = span.strip()
        if not PATH.fullmatch(path) or path in GENERATED:
            continue
        found = (
            [*REPOSITORY.glob(path)] or (page.parent / path).exists() or ("/" not in path and [*REPOSITORY.rglob(path)])
        )
        if not found:
            missing.append(path)
    assert missing == []


@EACH_PAGE
def test_every_module_in_code_exists(page: Path) -> None:
    """In code spans and code blocks. The last name may be a class or function of the module before it."""
    code = "\n".join([*code_spans(page), *(block[0] for block in FENCED.finditer(page.read_text("utf-8")))])
    missing = set()
    for name in set(MODULE.findall(code)):
        path = REPOSITORY / name.replace(".", "/")
        parents = (path, path.parent)
        if not any(each.is_dir() or each.with_suffix(".py").exists() for each in parents if each != REPOSITORY):
            missing.add(name)
    assert missing == set()


SOURCE_PAGES: Final = [
    REPOSITORY / "ARCHITECTURE.md",
    REPOSITORY / "docs" / "protocol.md",
    *sorted((REPOSITORY / "docs" / "decisions").glob("[0-9]*.md")),
]
NAME: Final = re.compile(r"(?:[A-Za-z_]\w*\.)*([A-Za-z_]\w*)(?:\(.*\))?")


@cache
def source_words() -> frozenset[str]:
    """Return every word in the Python code and the settings of the repository."""
    words: set[str] = set()
    for top in TOP:
        for path in (REPOSITORY / top).rglob("*.py"):
            words |= set(re.findall(r"\w+", path.read_text("utf-8")))
    return frozenset(words | set(re.findall(r"\w+", (REPOSITORY / "pyproject.toml").read_text("utf-8"))))


@pytest.mark.parametrize("page", SOURCE_PAGES, ids=lambda page: page.name)
def test_every_identifier_of_a_page_about_the_code_exists(page: Path) -> None:
    """An identifier is a code span with an underscore or an inner capital, such as `due_at` or `PeerProgress`."""
    missing = set()
    for span in code_spans(page):
        match = NAME.fullmatch(span.strip())
        if match and re.search(r"_|[a-z][A-Z]", match[1]) and match[1] not in source_words():
            missing.add(span)
    assert missing == set()


def test_the_code_map_names_every_module() -> None:
    mapped = set(links(REPOSITORY / "ARCHITECTURE.md"))
    modules = {
        path.relative_to(REPOSITORY).as_posix()
        for package in ("store", "replication", "kvsite")
        for path in (REPOSITORY / package).glob("*.py")
        if path.name not in ("__init__.py", "apps.py")
    }
    assert modules - mapped == set()


# -- the contract ----------------------------------------------------------------------------------------------------

CONTRACT: Final = REPOSITORY / "docs" / "contract.md"
CITATION: Final = re.compile(r"[Cc]ontract(?:\.md)?[`)\]]*,? +(?:sections? +)?((?:P?\d+(?:\.\d+)?(?:,| to| and)? *)+)")


def contract_sections() -> set[str]:
    """Return the numbers of the contract's sections and guarantees: 2, 2.1, P1."""
    text = CONTRACT.read_text("utf-8")
    numbers = re.findall(r"^##+ (\d+(?:\.\d+)?)\.? ", text, re.MULTILINE)
    return {*numbers, *re.findall(r"^- \*\*(P\d+) ", text, re.MULTILINE)}


def test_every_citation_of_the_contract_names_a_section() -> None:
    sections = contract_sections()
    assert {"1", "2.1", "2.8", "5", "P1", "P7"} <= sections
    wrong, citations = [], 0
    suffixes = {".py", ".md", ".txt", ".toml", ".yaml", ".html"}
    for path in (path for top in TOP for path in (REPOSITORY / top).rglob("*") if path.suffix in suffixes):
        text = re.sub(r"\s*\n\s*(?:# )?", " ", path.read_text("utf-8"))
        for cited in CITATION.findall(text):
            citations += 1
            wrong += [
                f"{path.relative_to(REPOSITORY)}: {n}"
                for n in re.findall(r"P?\d+(?:\.\d+)?", cited)
                if n not in sections
            ]
    assert wrong == []
    assert citations > 30


@EACH_PAGE
def test_pages_cite_documents_of_this_repository_only(page: Path) -> None:
    assert re.findall(r"\bSPEC\b|\bDESIGN\b|\.\./shared", page.read_text("utf-8")) == []


def test_code_cites_documents_of_this_repository_only() -> None:
    suffixes = {".py", ".txt", ".toml", ".yaml", ".html", ".lua", ".css", ".js"}
    files = [*REPOSITORY.glob("*.*"), *(path for top in TOP for path in (REPOSITORY / top).rglob("*"))]
    citing = [
        path.relative_to(REPOSITORY).as_posix()
        for path in files
        if path.suffix in suffixes and re.search(r"\b(?:SPEC|DESIGN) [P0-9]", path.read_text("utf-8"))
    ]
    assert citing == []


# -- glossary and decisions ------------------------------------------------------------------------------------------

TERMS: Final = """
membership table; event log; retired clock entries; superseded; ended; duplicate address; `Replication` port;
dependencies; gap; unrecoverable; loss query; rate limiter; fast path; signal pruning; denied response; hold time;
version; wait; peer client; endpoints; peer thread; context; possible holders; undiscovered; orphaned pending update;
not yet notified; index; checker; cycle; shrink; final state; baseline; ablation; dot; vector clock; sibling; causal
past; covers; concurrent; hybrid logical clock; incarnation; update; pending; deferred; log; delta; snapshot;
broadcast; anti-entropy; view; alive; suspect; down; left; write concern; acks; marker; exchange; heartbeat; digest;
seed; alias; report; relay; pacing; replica id; origin; counter; winner; delete clock; gate; engine; node; peer
progress; acknowledged clock; member; stamp; proof; causal metadata; mutant; oracle; scenario;
conversation; compaction; liveness; present incarnation; follows; join; edge; joining; serving; removed; leaving;
serial; token; silence limit; tick; acknowledged write; rejected; random seed; replica; lead;
position; revision; short form
"""
"""Terms that code, JSON, logs and pages use. A new term is added here and to the glossary."""

REPLACED: Final = re.compile(
    r"\b(register|namesakes?|hearsay|bringers?|stranded|unaware|judging|rest_digest|seldom|talker|endings)\b",
    re.IGNORECASE,
)
"""Words that a term of the glossary has replaced."""


def test_the_glossary_defines_every_term_once() -> None:
    rows = re.findall(r"^\| (\*\*.+?) \|", (REPOSITORY / "docs" / "glossary.md").read_text("utf-8"), re.MULTILINE)
    defined = [term for row in rows for term in re.findall(r"\*\*(.+?)\*\*", row)]
    assert [term for term, count in Counter(defined).items() if count > 1] == []
    assert {term.strip() for term in TERMS.replace("\n", " ").split(";")} - set(defined) == set()


@EACH_PAGE
def test_no_page_uses_a_word_that_a_term_has_replaced(page: Path) -> None:
    assert REPLACED.findall(page.read_text("utf-8")) == []


def test_decisions_are_numbered_and_have_the_same_parts() -> None:
    directory = REPOSITORY / "docs" / "decisions"
    records = sorted(directory.glob("[0-9]*.md"))
    assert [int(path.name[:4]) for path in records] == [*range(1, len(records) + 1)]
    assert {path.name for path in records} <= set(links(directory / "README.md"))
    for number, path in enumerate(records, start=1):
        text = path.read_text("utf-8")
        assert text.startswith(f"# {number}. "), path
        assert re.findall(r"^\*\*Status:\*\* |^## (\w+)$", text, re.MULTILINE) == [
            "",
            "Context",
            "Decision",
            "Consequences",
        ], path
        assert len(text.splitlines()) <= 60, path


def test_the_protocol_page_names_every_field_of_every_message() -> None:
    page = (REPOSITORY / "docs" / "protocol.md").read_text("utf-8")
    for message in (Exchange, SnapshotRequest, SnapshotPiece):
        fields = {field.encode_name for field in msgspec.structs.fields(message)}
        assert {field for field in fields if f"`{field}`" not in page} == set()
