"""A call between two aiortc peers in two namespaces, and what came of it."""

import contextlib
import dataclasses
import json
import os
import selectors
import subprocess
import sys
import time

import servers

BLOCKS = 48                     # of 4 KiB, each way
CONNECT_WITHIN = 25.0           # seconds; a call that works needs about two
ANSWER_WITHIN = 20.0            # gathering with an unreachable server takes aioice 5 s a time
PEER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peer.py")


@dataclasses.dataclass
class Outcome:
    connected: bool
    offerer: dict
    answerer: dict
    candidates: list


class PeerProcess:
    """A process in one place that is spoken with in lines of JSON; `task` is the first of them."""

    def __init__(self, topology, place, log, command=(sys.executable, PEER), environment=None, **task):
        with open(log, "ab") as errors, topology.inside(place):
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
                stderr=errors, preexec_fn=servers.die_with_parent)
        self.place, self.buffer = place, b""
        if task:
            self.say(task)

    def say(self, what):
        self.process.stdin.write(json.dumps(what).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self, within):
        end = time.monotonic() + within
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.buffer:
                left = end - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise AssertionError(f"the peer in {self.place} said nothing for {within} s")
                more = os.read(self.process.stdout.fileno(), 65536)
                if not more:
                    raise AssertionError(f"the peer in {self.place} ended unexpectedly")
                self.buffer += more
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def end(self):
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        try:
            self.process.wait(0.2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def call(topology, directory, caller, callee, between=lambda: None, seconds=CONNECT_WITHIN):
    """`caller` and `callee` are (place, ice_servers, policy). `between` runs
    while the call is still up, after both sides have seen all bytes."""
    log = os.path.join(directory, "peers.log")
    peers = []
    try:
        for (place, ice_servers, policy), role in ((caller, "offer"), (callee, "answer")):
            peers.append(PeerProcess(topology, place, log, role=role, ice_servers=ice_servers,
                                     policy=policy, blocks=BLOCKS, seconds=seconds))
        first, second = peers
        offer = first.hear(ANSWER_WITHIN)
        second.say({"sdp": offer["sdp"]})
        answer = second.hear(ANSWER_WITHIN)
        first.say({"sdp": answer["sdp"]})
        outcome = Outcome(False, first.hear(seconds + 5), second.hear(seconds + 5),
                          [offer["candidates"], answer["candidates"]])
        outcome.connected = outcome.offerer["connected"] and outcome.answerer["connected"]
        between()
        for peer in peers:
            peer.say({"over": True})
        for peer in peers:
            try:
                peer.process.wait(5)
            except subprocess.TimeoutExpired:
                pass
        return outcome
    finally:
        for peer in peers:
            peer.end()
