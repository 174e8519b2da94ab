"""What a run leaves: a JSON file, charts, and the generated part of docs/benchmarks/README.md."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from tools.benchmark.charts import Drawn, draw_all, file_name
from tools.benchmark.figures import Figure, figure_from_json, markdown_table
from tools.benchmark.processes import BenchmarkError

BEGIN: Final = "<!-- results: written by `python manage.py benchmark --charts docs/benchmarks`, not by hand -->"
END: Final = "<!-- end of results -->"

HEADINGS: Final = {
    "get": "GET",
    "put": "PUT",
    "mix": "Nine GET to one PUT",
    "txn": "Transactions",
    "variant": "What causality costs",
    "lag": "Replication lag",
    "latency": "Latency at half load",
    "catchup": "Catching up",
    "heal": "Healing",
    "memory": "Memory",
    "exchange": "Updates on their way",
    "growth": "Growth",
    "simulation": "Growth with replicas, simulated",
}
"""Sections, in the order in which they are measured and told."""


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(aliased=True),
        "python": platform.python_version(),
    }


def wanted_and_stolen() -> tuple[int, int]:
    """Return for how long processors were wanted since the machine started, and for how much of that the host of a
    virtual machine gave them to others: ticks of ``/proc/stat``."""
    told = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    user, nice, system, _idle, _iowait, irq, softirq, stolen = map(int, told.split()[1:9])
    return user + nice + system + irq + softirq + stolen, stolen


def _processor() -> str:
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = ""
    found = re.search(r"^model name\s*: *(.+)$", told, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


# -------------------------------------------------------------------------------------------------------------- JSON


def write_json(path: Path, how: Mapping[str, Any], figures: Sequence[Figure]) -> None:
    """Write all of it. ``how``: on what and in which way it was measured."""
    told = {"how": dict(how), "figures": [figure.as_json() for figure in figures]}
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> tuple[dict[str, Any], list[Figure]]:
    """Return what ``write_json`` wrote. Raises ``BenchmarkError`` for anything else."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return told["how"], [figure_from_json(each) for each in told["figures"]]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise BenchmarkError(f"{path} is no file of the benchmark's: {exc!r}") from exc


# ------------------------------------------------------------------------------------------------------------- pages


def write_pages(directory: Path, how: Mapping[str, Any], figures: Sequence[Figure]) -> list[Path]:
    """Write the charts, and the generated part of README.md where the directory has one; return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    charts = draw_all(figures)
    written = []
    for chart in charts:
        path = directory / f"{chart.name}.svg"
        path.write_text(chart.svg, encoding="utf-8")
        written.append(path)
    readme = directory / "README.md"
    if readme.exists():
        text = readme.read_text(encoding="utf-8")
        readme.write_text(with_results(text, results(how, figures, charts)), encoding="utf-8")
        written.append(readme)
    return written


def with_results(text: str, results_: str) -> str:
    """Return ``text`` with another generated part. Raises ``BenchmarkError`` where it has no place for one."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise BenchmarkError(f"README.md has no place for results: a line {BEGIN!r} and a line {END!r}")
    return f"{head}{BEGIN}\n\n{results_}\n\n{END}{tail}"


def results(how: Mapping[str, Any], figures: Sequence[Figure], charts: Sequence[Drawn]) -> str:
    """Return the generated part: how it was measured, the targets, then each section with its charts."""
    parts = [in_words(how), targets(figures)]
    drawn = {chart.name: chart for chart in charts}
    for section, rows in groupby(figures, key=lambda figure: figure.section):
        each = list(rows)
        parts.append(f"### {HEADINGS.get(section, section)}")
        names = dict.fromkeys(file_name(figure.chart) for figure in each if figure.chart)
        parts += [f"![{drawn[name].text}]({name}.svg)" for name in names]
        parts.append(markdown_table(each))
    return "\n\n".join(parts)


def targets(figures: Sequence[Figure]) -> str:
    """Return a sentence on how many targets there are and were met, and their table."""
    aimed = [figure for figure in figures if figure.target]
    met = sum(bool(figure.met) for figure in aimed)
    if not aimed:
        return "No figure of this run has a target."
    return f"### Targets\n\n{met} of {len(aimed)} met.\n\n{markdown_table(aimed)}"


def in_words(how: Mapping[str, Any]) -> str:
    """Say on what and in which way it was measured."""
    cores, rounds = (f"{how[name]} {name[:-1]}{'s' if how[name] > 1 else ''}" for name in ("cores", "rounds"))
    where = f"{how['processor']}, {cores}, Python {how['python']}"
    load = f"{how['driver']}, {how['connections']} connections, {how['seconds']:g} s a measurement"
    sentences = [
        f"Measured on {how['when']}: {where}; driver: {load}; medians of {rounds}, interleaved.",
        "Servers and load share one core." if how["shared"] else "All servers on one core, the load on others.",
    ]
    if not how.get("history", True):
        sentences.append("Requests carry no causal metadata.")
    if how.get("peers"):
        sentences.append(f"Peers: {'; '.join(how['peers'])}.")
    if how.get("core_share") is not None:
        sentences.append(f"While loaded, the servers had their core for {100 * how['core_share']:.0f} % of the time.")
        if how["core_share"] < BUSY:
            sentences.append(
                "**The machine was busy with other things**: rates and latencies are worse than it can do; "
                "CPU times and ratios are less affected."
            )
    if how.get("stolen") is not None:
        sentences.append(f"The machine's host gave {100 * how['stolen']:.1f} % of the time that was wanted to others.")
    if how.get("quick"):
        sentences.append("**A quick run**: few, short measurements of small sizes, good to see that it works.")
    return " ".join(sentences)


BUSY: Final = 0.9
"""Servers that are driven as fast as they go take all of their core; where they get less, somebody else took it."""
