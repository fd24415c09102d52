"""Does the harness itself work? Nothing here depends on how fast anything is.

`scripts/compare --self-test` makes both set-ups, shows that the veth ends coalesce and take segmented sends whole,
relays checked payloads through every bare forwarder and through throughway, counts system calls, and puts a made-up
measurement through tables and chart.
"""

import os
import socket
import sys
import tempfile
import threading
import xml.dom.minidom
from pathlib import Path

import chart
import report
from measure import Counter, count_calls, measure
from network import SETUPS, Failed, Veth, enter
from scenarios import FAULTS, SCENARIOS
from server import make_certificate

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
FAILURES = []


def check(truth, what):
    print(f"  {'ok' if truth else 'FAILED'}: {what}", flush=True)
    if not truth:
        FAILURES.append(what)


def socket_in(namespace, port, gro=False):
    """A UDP socket belongs to the namespace of the thread that opens it."""
    opened = []

    def open_it():
        enter(namespace)
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.bind(("0.0.0.0", port))
        s.settimeout(1)
        if gro:
            s.setsockopt(SOL_UDP, UDP_GRO, 1)
        opened.append(s)
    thread = threading.Thread(target=open_it)
    thread.start()
    thread.join()
    return opened[0]


def offloads(options):
    print("veth: offloads")
    network = Veth(options)
    clients, _, relay = network.fds
    plain, coalescing = socket_in(clients, 5000), socket_in(clients, 5001, gro=True)
    server, coalescing_server = socket_in(relay, 6000), socket_in(relay, 6001, gro=True)
    server.setsockopt(SOL_UDP, UDP_SEGMENT, 100)
    server.sendto(bytes(1000), ("10.1.0.7", 5000))
    check([len(plain.recv(65535)) for _ in range(10)] == [100] * 10, "a segmented send arrives in its segments at a plain socket")
    server.sendto(bytes(1000), ("10.1.0.7", 5001))
    check(len(coalescing.recvmsg(65535, 64)[0]) == 1000, "a segmented send crosses the device whole")
    longest = 0
    anywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {options.load_cpu})  # on the relay's CPU every send would be received before the next
    for _ in range(200):  # coalescing takes packets that meet in one poll
        for _ in range(50):
            plain.sendto(bytes(100), ("10.0.1.1", 6001))
        received = 0
        while received < 5000:
            length = len(coalescing_server.recvmsg(65535, 64)[0])
            received, longest = received + length, max(longest, length)
        if longest > 100:
            break
    os.sched_setaffinity(0, anywhere)
    check(longest > 100, f"single sends are coalesced on their way to the relay ({longest // 100} in one receive)")
    network.close()


def relaying(options, servers, counter):
    for server in servers:
        for setup in options.setup:
            for name in ("A20k", "Vmax", "T20k"):
                scenario = SCENARIOS[name]
                if not server.can(scenario, setup) or setup not in scenario.setups:
                    continue
                print(f"{setup}: {name} through {server.name}")
                cell = measure(server, scenario, SETUPS[setup], options)
                check(cell["received"] > 0, f"{cell['received']} payloads arrived")
                wrong = {key: cell[key] for key in FAULTS if key != "lost" and cell[key]}
                check(not wrong, f"none of them wrong {wrong or ''}")
                check(cell["process_ns_per_packet"] > 0, "the process is charged")
                if setup != "veth":
                    continue
                check(cell["softirq_ns_per_packet"] > 0, "the receive threads are charged")
                ends = {end: counters["frames"] for end, counters in cell["devices"].items()}
                check(all(ends.values()), f"all four ends receive through NAPI: {ends}")
                if server.name == "forwarder-gso" and name == "Vmax":
                    check(ends["c"] + ends["p"] < cell["relayed_in_all"] // 2, "segmented sends: fewer frames than packets")
    if counter:
        for setup in options.setup:
            print(f"{setup}: system calls of the forwarder, with {counter.how}")
            counted = count_calls(servers[0], SCENARIOS["Amax"], SETUPS[setup], options, counter)
            check(1.9 < counted["per_packet"] < 3.5, f"{counted['per_packet']:.2f} for each packet, and it makes two and waits")


def made_up():
    """Two rounds in which everything is known."""
    def cell(cost, p99=50.0):
        return {"cpu_ns_per_packet": cost, "process_ns_per_packet": cost, "softirq_ns_per_packet": 0.0, "pps": 2e4, "p50_us": 20.0,
                "p99_us": p99, "switches_per_packet": 1.0, "sent_of_offered": 1.0, "sent": 100, "received": 100}
    rounds = [{"throughway": cell(100.0), "coturn": cell(200.0), "forwarder": cell(110.0), "forwarder-gso": cell(90.0)},
              {"throughway": cell(100.0), "coturn": {"error": "gone"}, "forwarder": cell(80.0), "forwarder-gso": cell(95.0)}]
    lives = [{"throughway": {"units_per_cpu_second": 500.0, "failures": 0, "p99_us": 1.0}, "coturn": {"units_per_cpu_second": 100.0, "failures": 2}}]
    return {"loopback": {"A20k": rounds, "cycles": lives}}


def figures():
    print("tables and chart")
    summary = report.summarise(made_up(), {"loopback": {"A20k": {"throughway": {"per_packet": 3.25}}}})
    ours = summary["loopback"]["A20k"]["throughway"]
    check(ours["to_reference"] == {"median": 2.0, "min": 2.0, "max": 2.0}, "a ratio needs both in one round")
    check(ours["to_best_bare"]["min"] == 0.8 and ours["to_best_bare"]["max"] == 0.9, "the best bare one is chosen in every round")
    check(summary["loopback"]["cycles"]["throughway"]["to_reference"]["median"] == 5.0, "more lives are better")
    asked = {what: fulfilled for what, *_, fulfilled in report.requirements(summary)}
    check(asked["A20k, loopback: against coturn"] and not asked["A20k, loopback: against the best bare forwarder"], "what is missed is marked")
    text = report.tables(summary, SETUPS)
    check("| A20k | throughway | 100 (100 to 100) | 2.00 (2.00 to 2.00) |" in text and "| 3.25 |" in text, "the table shows it")
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| A20k |")}
    check(len(widths) == 1, "every row has all columns")
    page = (Path(__file__).parents[3] / "docs" / "performance.md").read_text()
    unnamed = [name for name, s in SCENARIOS.items() if f"| {name} | {', '.join(s.setups)} | {s.text} | {s.why}" not in page]
    check(not unnamed, f"docs/performance.md has every scenario as it is {unnamed or ''}")
    drawing = chart.draw(summary)
    check(len(xml.dom.minidom.parseString(drawing).getElementsByTagName("title")) == 4, "the chart has a bar for every figure")


def main(options, servers):
    options.warm_up, options.measure, options.quick, options.fifo = 0.1, 0.3, True, False
    figures()
    with tempfile.TemporaryDirectory(prefix="compare-tls-") as options.certificates:
        make_certificate(options.certificates)
        check(Path(options.certificates, "cert.pem").exists(), "there is a certificate")
        try:
            if "veth" in options.setup:
                offloads(options)
            relaying(options, servers, Counter() if not options.no_calls else None)
        except (Failed, OSError) as error:
            check(False, f"nothing in between fails: {error}")
    print(f"self-test: {len(FAILURES)} failed" if FAILURES else "self-test: passed", file=sys.stderr if FAILURES else sys.stdout)
    return 1 if FAILURES else 0
