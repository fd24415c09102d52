"""Ends of calls with different WebRTC stacks, and a call between two of them.

An end is a process in one place (tests/browser/end.mjs, numbered.py, nice.py,
pion/main.go) that is spoken with in lines of JSON. It says `ready`; a task makes it one end of a
call; it says its description, hears the other's, says `opened`; the offerer
sends `count` messages, one every `everyMs`, the answerer sends each back; both
say what arrived, at the latest `seconds` after the last one was sent; on
`over`, which may also come instead of the other's description, they close and
say `closed`, and the next task may come. When its input ends, an end goes.
"""

import contextlib
import os
import subprocess
import sys

import calls

HERE = os.path.dirname(os.path.abspath(__file__))
BROWSER_TESTS = os.path.join(os.path.dirname(HERE), "browser")
# What scripts/test builds of pion/main.go.
PION = os.path.join(HERE, "..", "..", "target", "pion", "end")
STARTS_WITHIN = 45.0
ANSWERS_WITHIN = 20.0
OPENS_WITHIN = 25.0
CLOSES_WITHIN = 10.0
SIZE = 1000


def with_hosts(hosts, command):
    """The command where `hosts` is /etc/hosts. No name server is reached from these places: it
    asks none, rather than waiting for one."""
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c",
            'mount --bind "$0" /etc/hosts && mount --bind /dev/null /etc/resolv.conf && exec "$@"',
            hosts, *command]


class End(calls.PeerProcess):
    """`name` is chromium, firefox, werift, aiortc, pion or libnice, with a number behind a hyphen if there are several;
    `hosts` is what it finds in /etc/hosts, `authority` the certificate authority that it is made to trust."""

    def __init__(self, topology, place, name, directory, hosts, authority):
        self.name = name
        stack = name.split("-")[0]
        command = {"aiortc": [sys.executable, os.path.join(HERE, "numbered.py")],
                   "libnice": [sys.executable, os.path.join(HERE, "nice.py")],
                   "pion": [PION]}.get(stack, ["node", os.path.join(BROWSER_TESTS, "end.mjs"), stack])
        environment = {key: value for key, value in os.environ.items()
                       if not key.startswith("THROUGHWAY_")}
        if authority:
            # The browsers, which have a list of their own; OpenSSL and Go, for aiortc and pion; Node, for werift.
            environment |= {"TEST_CA": authority, "SSL_CERT_FILE": authority,
                            "NODE_EXTRA_CA_CERTS": authority}
        super().__init__(topology, place, os.path.join(directory, f"{name}.log"),
                         with_hosts(hosts, command), environment)

    def ready(self):
        self.hear(STARTS_WITHIN)

    def leave(self):
        """Asks it to close whatever it has open, a browser above all, and to go."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def finish(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(CLOSES_WITHIN)
        self.end()


class Call:
    """From the offer to the open channel; then the messages run by themselves. `of_answerer` are its servers, if it has
    others; `page` is what browsers load first, and call from."""

    def __init__(self, offerer, answerer, servers, count, every_ms, seconds=15, of_answerer=None, page=None):
        self.both = {"offer": offerer, "answer": answerer}
        self.count = count
        for role, end in self.both.items():
            end.say({"role": role, "iceServers": of_answerer if of_answerer and role == "answer" else servers, "count": count, "everyMs": every_ms,
                     "size": SIZE, "page": page, "seconds": seconds + (count * every_ms / 1000 if role == "answer" else 0)})
        self.candidates = {}
        offer = offerer.hear(ANSWERS_WITHIN)
        self._only_relayed(offerer, offer)
        answerer.say({"sdp": offer["sdp"]})
        answer = answerer.hear(ANSWERS_WITHIN)
        self._only_relayed(answerer, answer)
        offerer.say({"sdp": answer["sdp"]})
        for end in (offerer, answerer):
            if not end.hear(OPENS_WITHIN).get("opened"):
                raise AssertionError(f"{end.name} has no open channel")
        self.within = seconds + count * every_ms / 1000 + 10

    def _only_relayed(self, end, told):
        self.candidates[end.name] = told["candidates"]
        if not told["candidates"] or not all(" typ relay" in line for line in told["candidates"]):
            raise AssertionError(f"{end.name} has other than relayed candidates, or none:"
                                 f" {told['candidates']}, errors {told['errors']}")

    def check_nothing_lost(self):
        """Gives what each end counted."""
        results = {}
        for role, end in self.both.items():
            results[role] = result = end.hear(self.within)
            if (result["received"], result["repeated"], result["wrong"], result["missing"]) != (
                    self.count, 0, 0, []) or role == "offer" and result["sent"] != self.count:
                raise AssertionError(f"{end.name} ({role}), of {self.count} messages: {result}")
        return results

    def over(self):
        for end in self.both.values():
            end.say({"over": True})
        for end in self.both.values():
            end.hear(CLOSES_WITHIN)
