"""The output of a run: a JSON file, charts, and the generated part of docs/benchmarks/README.md."""

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

from tools.benchmark.charts import Chart, draw_all, file_name
from tools.benchmark.figures import Figure, figure_from_json, markdown_table
from tools.benchmark.processes import BenchmarkError

BEGIN: Final = "<!-- results: written by `python manage.py benchmark --charts docs/benchmarks`, not by hand -->"
END: Final = "<!-- end of results -->"

HEADINGS: Final = {
    "get": "GET",
    "put": "PUT",
    "mix": "90 % GET, 10 % PUT",
    "txn": "Transactions",
    "acks": "Acknowledged writes",
    "waiting": "What waiting requests cost others",
    "streams": "What event streams cost others",
    "ablation": "The cost of causality",
    "lag": "Replication lag",
    "latency": "Latency at half load",
    "catchup": "Catch-up of an empty replica",
    "heal": "Healing of a partition",
    "memory": "Memory",
    "exchange": "Replication traffic",
    "growth": "Growth of the cost of a request",
    "simulation": "Growth with the number of replicas (simulation)",
}
"""Section -> its heading, in the order of measurement and of the report."""


def machine() -> dict[str, Any]:
    """Describe this machine."""
    return {
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(aliased=True),
        "python": platform.python_version(),
    }


def busy_and_stolen_ticks() -> tuple[int, int]:
    """Return two times since the machine started, in ticks of ``/proc/stat``.

    The first is the time in which processes wanted a processor. The second is its part in which the host of a virtual
    machine ran other machines instead (steal time).
    """
    line = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    user, nice, system, _idle, _iowait, irq, softirq, stolen = map(int, line.split()[1:9])
    return user + nice + system + irq + softirq + stolen, stolen


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*: *(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


# -------------------------------------------------------------------------------------------------------------- JSON


def write_json(path: Path, how: Mapping[str, Any], figures: Sequence[Figure]) -> None:
    """Write all figures. ``how``: the machine and the parameters of the run."""
    content = {"how": dict(how), "figures": [figure.as_json() for figure in figures]}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> tuple[dict[str, Any], list[Figure]]:
    """Return what ``write_json`` wrote. Raises ``BenchmarkError`` if the file has other content."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["how"], [figure_from_json(each) for each in content["figures"]]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise BenchmarkError(f"{path} is not a results file of the benchmark: {exc!r}") from exc


# ------------------------------------------------------------------------------------------------------------- pages


def write_pages(directory: Path, how: Mapping[str, Any], figures: Sequence[Figure]) -> list[Path]:
    """Write the charts, and the generated part of README.md if the directory has one; return the files."""
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
    """Return ``text`` with a new generated part. Raises ``BenchmarkError`` if the two marker lines are missing."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise BenchmarkError(f"README.md has no place for results: it needs a line {BEGIN!r} and a line {END!r}")
    return f"{head}{BEGIN}\n\n{results_}\n\n{END}{tail}"


def results(how: Mapping[str, Any], figures: Sequence[Figure], charts: Sequence[Chart]) -> str:
    """Return the generated part: the parameters of the run, the targets, then each section with its charts."""
    parts = [describe_run(how), targets(figures)]
    drawn = {chart.name: chart for chart in charts}
    for section, rows in groupby(figures, key=lambda figure: figure.section):
        each = list(rows)
        parts.append(f"### {HEADINGS.get(section, section)}")
        names = dict.fromkeys(file_name(figure.chart) for figure in each if figure.chart)
        parts += [f"![{drawn[name].text}]({name}.svg)" for name in names]
        parts.append(markdown_table(each))
    return "\n\n".join(parts)


def targets(figures: Sequence[Figure]) -> str:
    """Return how many targets were met, and a table of the figures with a target."""
    with_target = [figure for figure in figures if figure.target]
    met = sum(bool(figure.met) for figure in with_target)
    if not with_target:
        return "No figure of this run has a target."
    return f"### Targets\n\n{met} of {len(with_target)} targets are met.\n\n{markdown_table(with_target)}"


def describe_run(how: Mapping[str, Any]) -> str:
    """Describe the machine and the parameters of the run in sentences (Markdown)."""
    cores, rounds = (f"{how[name]} {name[:-1]}{'s' if how[name] > 1 else ''}" for name in ("cores", "rounds"))
    load = f"{how['driver']}, {how['connections']} connections, {how['seconds']:g} s per measurement"
    sentences = [
        f"Measured on {how['when']} with {how['processor']}, {cores}, Python {how['python']}.",
        f"Load: {load}; each value is the median of {rounds}, interleaved.",
        "Servers and load share one core." if how["shared"] else "All servers run on one core, the load on the others.",
    ]
    if not how.get("metadata", True):
        sentences.append("Requests carry no causal metadata.")
    if how.get("peers"):
        sentences.append(f"Peers: {'; '.join(how['peers'])}.")
    if how.get("core_share") is not None:
        share = f"{100 * how['core_share']:.0f} %"
        sentences.append(f"Under full load the servers had at least {share} of their core.")
        if how["core_share"] < BUSY:
            sentences.append(
                "**The machine was busy with other work**: rates and latencies are worse than on an idle machine; "
                "CPU times and ratios are less affected."
            )
    if how.get("stolen") is not None:
        sentences.append(f"The host of this virtual machine took {100 * how['stolen']:.1f} % of its CPU time (steal).")
    if how.get("quick"):
        sentences.append("**A quick run**: short measurements of small sizes. It shows that the benchmark works.")
    return " ".join(sentences)


BUSY: Final = 0.9
"""Servers under full load use all of their core. A smaller share means that other processes took the rest."""
