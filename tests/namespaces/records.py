"""A server whose sessions leave usage records, and what is asked of these records."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import cases
import report
import servers
import topology
import turnclient
from cases import check, equal
from topology import SERVER, TURN_PORT

SECRET = "a-secret-of-this-run"
INTERVAL = 1                     # seconds between two records of a live session


class Stage(cases.Stage):
    """As in cases.py, with usage records of its own for each case."""

    def __init__(self, network, binary, case, directory):
        super().__init__(network, binary, 2, os.path.join(directory, case))
        os.mkdir(self.directory)
        self.usage = os.path.join(self.directory, "usage.jsonl")

    def setup(self, limits="", keys="", tcp=True):
        everywhere = [f"0.0.0.0:{TURN_PORT}"]
        return servers.Setup(
            udp=everywhere, tcp=everywhere if tcp else [], relay=[SERVER], workers=self.workers, users={}, secret=SECRET,
            tables=f'{keys}[accounting]\nfile = "{self.usage}"\ninterval = "{INTERVAL}s"\n'
                 f"[limits]\n{limits}\n")

    def again(self, attempt):
        """The same stage with nothing on it."""
        self.directory = os.path.join(self.directory, attempt)
        os.mkdir(self.directory)
        self.usage = os.path.join(self.directory, "usage.jsonl")
        return self

    def serving(self, setup):
        return self._serving("srv", setup)

    def login(self, user, transport="udp"):
        name, password = turnclient.time_limited(SECRET, user)
        with self.topology.inside("homea"):
            return turnclient.TurnClient((SERVER, TURN_PORT), name, password, transport, 4.0)

    def report(self, *files):
        """`usage report` over these files; it must find nothing to complain about."""
        done = subprocess.run([self.binary, "usage", "report", "--json", "--by", "user", *files],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20,
                              check=False)
        equal(done.returncode, 0, f"exit code of usage report, which says {done.stderr!r}")
        found = json.loads(done.stdout)
        equal((found["problems"], found["duplicates"]), ([], 0), "problems, records that came twice")
        return found


def lines(path):
    """Each line of a usage file; one that is no JSON, or has no end, is an error."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    check(text.endswith("\n"), f"{path} ends within a line: {text[-80:]!r}")
    return [json.loads(line) for line in text.splitlines()]


def check_sum(line):
    """What a record says was received is what it says was sent or dropped."""
    for unit in ("packets", "bytes"):
        dropped = sum(count[unit] for count in line["dropped"].values())
        equal(line[f"{unit}_from_client"] + line[f"{unit}_from_peers"],
              line[f"{unit}_to_peers"] + line[f"{unit}_to_client"] + dropped, f"the sum of {unit} in {line}")


def row(found, user):
    rows = [row for row in found["rows"] if row["user"] == user]
    equal(len(rows), 1, f"rows for {user} in {found['rows']}")
    return rows[0]


def four_ways(entry):
    return tuple(entry[name] for name in ("bytes_from_client", "bytes_to_peers", "bytes_from_peers",
                                          "bytes_to_client"))


def until_no_allocation_is_left(server):
    end = time.monotonic() + 5
    while any(value for name, value in server.metrics().items() if name.startswith("throughway_allocations{")):
        check(time.monotonic() < end, "the browser left allocations behind")
        time.sleep(0.05)


def twice(case):
    """For what drives a browser: a second attempt, with both shown."""
    def attempts(stage):
        try:
            case(stage, "first")
        except AssertionError as error:
            print(f"     first attempt of {case.__name__}: {error}\n{stage.server.log() if stage.server else ''}")
            case(stage, "second")
    attempts.__name__ = case.__name__
    return attempts


def main(document, every, *tools):
    """Runs these cases, each on a stage of its own; returns the exit status."""
    options = argparse.ArgumentParser(description=document.splitlines()[0])
    options.add_argument("binary", help="path of throughway")
    options.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains TEXT")
    options = options.parse_args()
    binary = os.path.abspath(options.binary)
    report.need("ip", "nft", "unshare", *tools)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = report.Report()
    with tempfile.TemporaryDirectory(prefix="throughway-records-") as directory, \
            topology.Topology() as network:
        for case in every:
            if options.only in case.__name__:
                stage = Stage(network, binary, case.__name__, directory)
                results.run(case.__name__, case, stage,
                            explain=lambda s=stage: s.server.log() if s.server else "")
    return results.finish()
