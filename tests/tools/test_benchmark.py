"""The benchmark without servers: statistics, requests, results, charts. See also test_benchmark_processes.py."""

from __future__ import annotations

import json
import re
import socket
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from tools.benchmark import ablation, acks, charts, loads, report
from tools.benchmark.drivers import ClosedLoopResult, PacedResult, parse_wrk
from tools.benchmark.figures import Figure, at_least, at_most, figure_from_json, markdown_table, text_table
from tools.benchmark.load_generator import Generator, Outcome, RedisConnection, Task
from tools.benchmark.loads import Shape
from tools.benchmark.processes import BenchmarkError, find_program
from tools.benchmark.relay import Relay
from tools.benchmark.sections import SECTIONS
from tools.benchmark.stats import number, percentile, ratios
from tools.paths import REPOSITORY
from tools.simulation.growth import count, exponent, growth_in_words, law

PORT = 25000

# -- statistics --------------------------------------------------------------------------------------------------


def test_a_percentile_is_a_measured_value() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.0, 0.01, 0.5, 0.99, 1.0)] == [1, 1, 50, 99, 100]
    assert percentile([7.0], 0.99) == 7.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_ratios_are_taken_within_each_round() -> None:
    # The machine was half as fast in the second round, for both.
    assert ratios([300.0, 150.0], [100.0, 50.0]) == [3.0, 3.0]
    with pytest.raises(ValueError, match="argument"):
        ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("k", "words"),
    [
        (-1.0, "fall"),
        (0.0, "do not grow"),
        (0.5, "grow slower than linearly"),
        (1, "grow linearly"),
        (1.5, "grow slower than the square"),
        (2, "grow with the square"),
        (3, "grow with the cube"),
        (4, "grow faster than the cube"),
    ],
)
def test_the_exponent_of_a_power_law_is_found_and_described(k: float, words: str) -> None:
    sizes = [1, 3, 5, 50]
    found = exponent(sizes, [7 * size**k for size in sizes])
    assert found == pytest.approx(k, abs=1e-9)
    assert growth_in_words(found) == words


def test_numbers_have_about_three_figures() -> None:
    assert [number(value) for value in (12345.6, 123.4, 12.34, 1.234, 4.0)] == ["12,346", "123", "12.3", "1.23", "4"]


# -- requests ----------------------------------------------------------------------------------------------------


def test_requests_are_complete_and_reproducible(tmp_path: Path) -> None:
    shape = Shape(keys=10, metadata={"a@1": 2})
    for operation in loads.OPERATIONS:
        load = loads.causeway(operation, "127.0.0.1:1", shape, 50)
        assert load.requests == loads.causeway(operation, "127.0.0.1:1", shape, 50).requests
        for request in load.requests:
            head, _, body = request.partition(b"\r\n\r\n")
            declared = re.search(rb"Content-Length: (\d+)", head)
            assert int(declared[1] if declared else 0) == len(body)
            assert b"a@1" in request, "each carries the metadata of the session"
        loads.write_file(tmp_path / "file", load.requests)
        assert loads.read_file(tmp_path / "file") == load.requests


def test_keys_values_and_the_mix_have_the_documented_sizes() -> None:
    assert len(loads.key(0)) == len(loads.key(999_999)) == 16
    body = json.loads(loads.causeway("put", "h:1", Shape(value_bytes=32)).requests[0].partition(b"\r\n\r\n")[2])
    assert len(body["value"]) == 32
    mixed = loads.causeway("mix", "h:1", Shape(), 100).requests
    assert sum(request.startswith(b"PUT") for request in mixed) == 10
    assert sum(request.startswith(b"GET") for request in mixed) == 90
    filled = loads.fill("h:1", Shape(keys=3), first=5).requests
    assert [request.split()[1] for request in filled] == [f"/kvs/{loads.key(n)}".encode() for n in (5, 6, 7)]


def test_a_write_concern_is_part_of_every_put() -> None:
    for operation, puts in (("put", 100), ("mix", 10)):
        load = loads.causeway(operation, "h:1", Shape(concern="majority"), 100)
        assert sum(b'"w":"majority"' in request for request in load.requests) == puts
    assert not any(b'"w"' in request for request in loads.causeway("put", "h:1", Shape()).requests)


def test_a_write_to_redis_is_a_set_and_a_wait() -> None:
    words = loads.redis_wait("h:1", Shape(value_bytes=2), 1).requests[0].split(b"\r\n")
    assert words[::2][:4] == [b"*3", b"SET", loads.key(137).encode(), words[6]]
    assert words[7:] == [b"*3", b"$4", b"WAIT", b"$1", b"1", b"$4", b"5000", b""]


@pytest.mark.parametrize(
    ("pieces", "statuses"),
    [
        ([b"+OK\r\n:1\r\n"], [200]),
        ([b"+OK\r", b"\n", b":1", b"\r\n"], [0, 0, 0, 200]),
        ([b"+OK\r\n:0\r\n"], [500]),
        ([b"-ERR full\r\n:1\r\n"], [500]),
        ([b"+OK\r\n:1\r\n", b"+OK\r\n:12\r\n"], [200, 200]),
    ],
)
def test_a_write_to_redis_counts_once_a_replica_has_it(pieces: list[bytes], statuses: list[int]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = RedisConnection(ours)
        received = []
        for piece in pieces:
            theirs.sendall(piece)
            received.append(connection.receive())
    assert received == statuses


def test_acknowledged_writes_are_compared_with_etcd_by_rate_and_one_at_a_time_by_latency() -> None:
    def done(rate: float, p50_ms: float) -> list[acks.Sample]:
        return [acks.Sample(ClosedLoopResult(round(rate), 1.0, p50_ms, 2 * p50_ms), 1e6 / rate, 1.0)]

    by_system = {"Causeway, 3 replicas": done(3000, 0.5), "etcd, 3 nodes": done(2000, 0.8)}
    one, many = ({figure.name: figure for figure in acks._figures("put", n, by_system)} for n in (1, 16))
    rate = many["PUT, w majority, 16 connections, relative to etcd, 3 nodes"]
    assert (rate.value, rate.met) == (1.5, True)
    p50 = one["PUT, w majority, 1 connection: p50 relative to etcd, 3 nodes"]
    assert (p50.value, p50.met) == (0.625, True)
    assert one["PUT, w majority, 1 connection, relative to etcd, 3 nodes"].target is None


# -- wrk ---------------------------------------------------------------------------------------------------------

WRK = """Running 3s test @ http://127.0.0.1:24000
  1 threads and 16 connections
  26170 requests in 3.00s, 6.19MB read
Requests/sec:   8723.33

causeway {"requests":26170,"duration_us":3000000,"p50_us":1790,"p99_us":4210,"statuses":1,"sockets":2,"timeouts":3}
"""


def test_the_results_of_wrk_are_read() -> None:
    measured = parse_wrk(WRK)
    assert (measured.requests, measured.p50_ms, measured.p99_ms, measured.errors) == (26170, 1.79, 4.21, 6)
    assert measured.rate == pytest.approx(8723.33, abs=0.01)
    with pytest.raises(BenchmarkError, match="unable to connect"):
        parse_wrk("unable to connect to 127.0.0.1:24000 Connection refused\n")


# -- the bundled client ------------------------------------------------------------------------------------------


@contextmanager
def server(stall_at: int = -1, stall_s: float = 0.0, status: int = 200) -> Iterator[str]:
    """A server for one connection; it pauses for ``stall_s`` before response number ``stall_at``."""
    response = f"HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nok".encode()
    listening = socket.create_server(("127.0.0.1", 0))
    ending = threading.Event()

    def serve() -> None:
        sent = 0
        connection, _ = listening.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A client that gives up closes the connection.
        with connection, suppress(ConnectionError):
            while data := connection.recv(65536):
                for _ in range(data.count(b"\r\n\r\n")):
                    if sent == stall_at:
                        ending.wait(stall_s)
                    # In two parts: a response may arrive in parts.
                    connection.sendall(response[:10])
                    connection.sendall(response[10:])
                    sent += 1

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        ending.set()
        thread.join()
        listening.close()


def generate(address: str, **task: Any) -> Outcome:
    request = loads.http("GET", "/", address)
    generator = Generator(Task(address, "", **{"connections": 1, "seconds": 5.0, **task}), [request] * 40)
    return generator.run()


def test_a_pause_of_the_server_delays_all_requests_that_were_due_in_it() -> None:
    with server(stall_at=20, stall_s=0.4) as address:
        outcome = generate(address, rate=200.0, seconds=0.8)
    assert len(outcome.latency_us) == 160, "every due request counts, although the server was slow"
    late = [us for us in outcome.latency_us if us > 100_000]
    # 0.3 s of the pause at 200 requests per second. A closed loop would have sent one request in that time.
    assert len(late) >= 50
    steps = [b - a for a, b in zip(sorted(outcome.due_s), sorted(outcome.due_s)[1:], strict=False)]
    assert all(step == pytest.approx(0.005, abs=1e-6) for step in steps), "due at a fixed rate"


def test_a_closed_loop_sends_the_next_request_after_the_response() -> None:
    with server(stall_at=5, stall_s=0.2) as address:
        outcome = generate(address, once=True)
    assert outcome.statuses == {200: 40}
    assert sum(us > 150_000 for us in outcome.latency_us) == 1
    assert outcome.broken == outcome.unanswered == 0


def test_a_request_without_a_response_counts_with_its_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.benchmark.load_generator.GRACE_S", 0.2)
    with server(stall_at=10, stall_s=60.0) as address:
        outcome = generate(address, rate=100.0, seconds=0.3)
    assert outcome.unanswered == 20
    assert len(outcome.latency_us) == 30
    assert min(sorted(outcome.latency_us)[-20:]) > 190_000


def test_responses_are_counted_by_status() -> None:
    with server(status=503) as address:
        assert generate(address, once=True).statuses == {503: 40}


def test_between_returns_the_latencies_of_requests_due_in_the_interval() -> None:
    paced = PacedResult(due_s=[1.0, 2.0, 3.0], latency_ms=[10.0, 900.0, 30.0], errors=0)
    assert paced.between(1.5, 2.5) == [900.0]


# -- the relay ---------------------------------------------------------------------------------------------------


def test_a_cut_relay_forwards_nothing_until_it_is_healed() -> None:
    def read_response(client: socket.socket) -> bytes:
        received = b""
        while not received.endswith(b"ok"):
            received += client.recv(4096)
        return received

    request = b"GET / HTTP/1.1\r\n\r\n"
    with (
        server() as back,
        Relay(PORT, int(back.rpartition(":")[2])) as relay,
        socket.create_connection(("127.0.0.1", PORT), timeout=5) as client,
    ):
        client.sendall(request)
        assert read_response(client)
        relay.cut()
        client.sendall(request)
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(4096)
        relay.heal()
        client.settimeout(5)
        assert read_response(client)


# -- figures -----------------------------------------------------------------------------------------------------

GOOD = Figure("get", "GET: Causeway", "/s", [900.0, 1000.0, 1200.0], {"p99_ms": 2.5}, at_least(800), chart="get",
              series="Causeway")  # fmt: skip
BAD = Figure(
    "lag", "lag, idle, p50", "ms", [9.0], target=at_most(4), note="a note", chart="lag", series="idle", x="p50"
)
LAW = [
    Figure("growth", f"PUT at {x}", "us", [10.0 * x], chart="growth by keys", series="PUT", x=x) for x in (1, 10, 100)
]


def test_the_value_of_a_figure_is_the_median_and_is_compared_with_the_target() -> None:
    assert (GOOD.value, GOOD.met) == (1000, True)
    assert (BAD.value, BAD.met) == (9, False)
    assert LAW[0].met is None
    assert at_least(5).met(5)
    assert at_most(5).met(5)


def test_the_table_has_every_figure_with_its_target() -> None:
    lines = text_table([GOOD, BAD, *LAW]).splitlines()
    row = next(line for line in lines if "GET: Causeway" in line)
    assert re.search(r"1,000 /s +2.50 +at least 800 /s +met$", row)
    assert any(re.search(r"lag, idle.*9 ms.*at most 4 ms +MISSED$", line) for line in lines)
    assert any("a note" in line for line in lines)
    assert markdown_table([BAD]).splitlines()[-1].endswith("| at most 4 ms | MISSED |")


def test_figures_survive_json(tmp_path: Path) -> None:
    assert figure_from_json(json.loads(json.dumps(GOOD.as_json()))) == GOOD
    report.write_json(tmp_path / "f.json", {"rounds": 3}, [GOOD, BAD, *LAW])
    how, figures = report.read_json(tmp_path / "f.json")
    assert how == {"rounds": 3}
    assert figures == [GOOD, BAD, *LAW]
    encoded = json.loads((tmp_path / "f.json").read_text())["figures"][1]
    assert (encoded["value"], encoded["met"], encoded["target"]) == (9.0, False, {"sense": "at most", "bound": 4})
    (tmp_path / "f.json").write_text('{"how": {}}')
    with pytest.raises(BenchmarkError, match="not a results file"):
        report.read_json(tmp_path / "f.json")


# -- charts ------------------------------------------------------------------------------------------------------


def parsed(figures: list[Figure]) -> ET.Element:
    return ET.fromstring(charts.draw(figures[0].chart, figures).svg)


def of(root: ET.Element, tag: str, kind: str) -> list[ET.Element]:
    found = root.iter(f"{{http://www.w3.org/2000/svg}}{tag}")
    return [element for element in found if kind in (element.get("class") or "").split()]


def test_the_length_of_a_bar_is_proportional_to_the_figure() -> None:
    limit = Figure("get", "baseline", "/s", [2000.0], chart="get", series="baseline: <empty> & app")
    root = parsed([GOOD, limit])
    (ours,), (theirs,) = of(root, "rect", "c0"), of(root, "rect", "other")
    assert float(theirs.get("width", 0)) == pytest.approx(2 * float(ours.get("width", 0)), abs=0.2)
    assert len(of(root, "path", "target")) == 1
    assert "baseline: <empty> & app 2,000" in (root.get("aria-label") or "")
    assert "prefers-color-scheme: dark" in "".join(root.itertext())


def test_a_power_law_is_a_straight_line() -> None:
    root = parsed(LAW)
    places = [(float(dot.get("cx", 0)), float(dot.get("cy", 0))) for dot in of(root, "circle", "c0")]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert y2 < y0, "the line rises"


def test_a_single_number_is_a_bar() -> None:
    assert of(parsed(LAW[:1]), "rect", "c0")


# -- pages and the command ---------------------------------------------------------------------------------------

HOW = {"when": "2026-01-01", "processor": "a <processor>", "cores": 2, "python": "3.11", "driver": "wrk", "rounds": 5,
       "seconds": 3.0, "connections": 16, "shared": False, "quick": False, "core_share": 0.5}  # fmt: skip


def test_the_report_has_the_steal_time_of_a_virtual_machine() -> None:
    wanted, stolen = report.busy_and_stolen_ticks()
    assert wanted > stolen >= 0
    assert "took 12.3 % of its CPU time" in report.describe_run({**HOW, "stolen": 0.1234})
    assert "took" not in report.describe_run(HOW), "results without this measurement do not mention it"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    path = tmp_path / "earlier.json"
    report.write_json(path, HOW, [GOOD, BAD, *LAW])
    return path


def run(*arguments: Any) -> str:
    out = StringIO()
    call_command("benchmark", *(str(argument) for argument in arguments), stdout=out, stderr=out)
    return out.getvalue()


def test_pages_are_regenerated_from_earlier_results(earlier: Path, tmp_path: Path) -> None:
    directory = tmp_path / "pages"
    directory.mkdir()
    readme = directory / "README.md"
    readme.write_text(f"before\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n")
    for _ in range(2):  # A second run changes nothing.
        output = run("--only", "none", "--from", earlier, "--charts", directory)
        text = readme.read_text()
        assert text.startswith("before\n")
        assert text.endswith("\nafter\n")
        assert "old" not in text
        assert text.count("| GET: Causeway |") == 2, "among the targets and in its section"
        assert "1 of 2 targets are met" in text
        assert "The machine was busy" in text
        for name in re.findall(r"\]\((\S+\.svg)\)", text):
            ET.fromstring((directory / name).read_text())
    assert "1 of 2 targets met" in output
    readme.write_text("no place")
    with pytest.raises(CommandError, match="no place for results"):
        run("--only", "none", "--from", earlier, "--charts", directory)


def test_check_fails_only_for_a_missed_target(earlier: Path, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"missed targets: lag, idle, p50$"):
        run("--only", "none", "--from", earlier, "--check")
    report.write_json(tmp_path / "good.json", HOW, [GOOD])
    assert "1 of 1 targets met" in run("--only", "none", "--from", tmp_path / "good.json", "--check")


def test_the_later_of_two_files_wins(earlier: Path, tmp_path: Path) -> None:
    better = Figure("lag", "lag, idle, p50", "ms", [3.0], target=at_most(4))
    report.write_json(tmp_path / "later.json", HOW, [better])
    run("--only", "none", "--from", earlier, "--from", tmp_path / "later.json", "--json", tmp_path / "both.json")
    assert report.read_json(tmp_path / "both.json")[1] == [GOOD, better, *LAW]


def test_impossible_arguments_fail_before_any_measurement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="unknown section 'gte'; choose from get, put"):
        run("--only", "gte")
    with pytest.raises(CommandError, match="unknown peer 'mongo'; choose from etcd, redis"):
        run("--peers", "mongo")
    with pytest.raises(CommandError, match="--only=none needs --from"):
        run("--only", "none")
    monkeypatch.setattr("tools.benchmark.processes.shutil.which", lambda name, path: None)
    with pytest.raises(CommandError, match=r"etcd is not installed \(Debian: sudo apt-get install etcd-server\)"):
        run("--peers", "etcd", "--only", "get")
    with pytest.raises(BenchmarkError, match="apt-get install wrk"):
        find_program("wrk", "wrk")


def test_the_documentation_names_every_section_and_has_a_place_for_results() -> None:
    text = (REPOSITORY / "docs" / "benchmarks" / "README.md").read_text()
    for section in SECTIONS:
        assert f"`{section}`" in text
    assert report.with_results(text, "x")


# -- the ablation ------------------------------------------------------------------------------------------------


def test_the_ablation_replaces_only_what_exists() -> None:
    for owner, name, _ in ablation.substitutions():
        assert name in vars(owner), f"tools/benchmark/ablation.py replaces {owner}.{name}, which does not exist"


def test_nothing_else_leads_to_the_ablation() -> None:
    sources = [
        REPOSITORY / "manage.py",
        *(
            path
            for package in ("kvsite", "replication", "store", "tools")
            for path in (REPOSITORY / package).rglob("*.py")
        ),
    ]
    users = {path.name for path in sources if "benchmark.ablation" in path.read_text(encoding="utf-8")}
    assert users == {"ablation.py", "systems.py"}


# -- growth with the number of replicas, simulated ----------------------------------------------------------------


def test_a_write_alone_costs_one_exchange_with_each_other_replica() -> None:
    counted = [count(replicas, writes=5) for replicas in (3, 5, 9)]
    alone, many = ([pair[i] for pair in counted] for i in (0, 1))
    assert [each.messages for each in alone] == [2 * (each.replicas - 1) for each in alone]
    assert exponent([2, 4, 8], [each.messages for each in alone]) == pytest.approx(1)
    assert "a write's messages grow linearly ((n-1)^1.0)" in law(alone)
    for one, of_many in counted:
        assert of_many.messages < one.messages / 3, "under load exchanges carry many updates"
        assert of_many.bytes < one.bytes
        assert one.idle_messages_s == pytest.approx(2 * one.replicas * (one.replicas - 1), rel=0.1)
    assert count(4, writes=3) == count(4, writes=3), "the same seed counts the same"
    assert many[0].rate == 2000
