"""The network that the cases run in, made of Linux network namespaces.

    home A ── NAT A ─┐                          ┌─ server (two addresses, two families)
    home B ── NAT B ─┼───────── internet ───────┼─ 1:1 NAT ── server in a cloud
    office ── wall ──┤       (a router)         └─ peer (answers, and refuses)
    branch ── gate ──┘

* A router stands between every client and every server: loopback and a shared
  link both hide faults of routing, of hop limits and of source addresses.
* NAT A and NAT B are symmetric: every destination gets a random port of its own.
  IPv6 (home A only) is not translated, but nothing unasked comes in.
* The wall lets nothing through but TCP to the server's TURN port, the gate nothing but TCP to port 443.
* The 1:1 NAT maps one public address to the cloud server's private one, and
  drops what the server sends to its own public address, as clouds do.

The addresses look globally routable because the server denies all others as
peers; no namespace has a way out, so nothing ever reaches their true owners.
"""

import contextlib
import ctypes
import ctypes.util
import json
import os
import subprocess
import threading

SERVER, SERVER_SECOND, SERVER6, SERVER6_SECOND = (
    "11.1.0.2", "11.1.0.3", "2a00:11:1::2", "2a00:11:1::3")
NAT_A, NAT_B, WALL, GATE = "11.2.0.2", "11.3.0.2", "11.4.0.2", "11.7.0.2"
HOME_A6 = "2a00:11:21::10"           # home B has IPv4 only, so IPv6 is no way between homes
CLOUD_PUBLIC, CLOUD_PRIVATE = "20.5.0.10", "10.0.0.5"
PEER, PEER6 = "11.6.0.2", "2a00:11:6::2"
# The internet router answers for these: "unreachable" (both families), and silence.
UNROUTABLE, UNROUTABLE6, BLACK_HOLE = "20.9.0.1", "2a00:11:9::1", "20.10.0.1"
# The server's own kernel refuses these at send: no route, and a local filter.
NO_ROUTE_AT_SERVER, FILTERED_AT_SERVER = "20.11.0.1", "20.12.0.1"
TURN_PORT = 3478
PEER_MTU = 1400                  # the peer's link; all others have 1500
HOPS_HOME_TO_SERVER = 2          # NAT A and the internet router

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000

# (namespace, interface, other namespace, other interface)
LINKS = [
    ("inet", "srv", "srv", "eth"),
    ("inet", "nata", "nata", "wan"), ("nata", "lan", "homea", "eth"),
    ("inet", "natb", "natb", "wan"), ("natb", "lan", "homeb", "eth"),
    ("inet", "wall", "wall", "wan"), ("wall", "lan", "office", "eth"),
    ("inet", "gate", "gate", "wan"), ("gate", "lan", "branch", "eth"),
    ("inet", "onat", "onat", "wan"), ("onat", "lan", "cloud", "eth"),
    ("inet", "peer", "peer", "eth"),
]
ROUTERS = ("inet", "nata", "natb", "wall", "gate", "onat")

ADDRESSES = {
    "inet": ["srv 11.1.0.1/24 2a00:11:1::1/64", "nata 11.2.0.1/24 2a00:11:2::1/64",
             "natb 11.3.0.1/24", "wall 11.4.0.1/24", "onat 20.5.0.1/24",
             "peer 11.6.0.1/24 2a00:11:6::1/64", "gate 11.7.0.1/24"],
    "srv": [f"eth {SERVER}/24 {SERVER_SECOND}/24 {SERVER6}/64 {SERVER6_SECOND}/64"],
    "nata": [f"wan {NAT_A}/24 2a00:11:2::2/64", "lan 192.168.1.1/24 2a00:11:21::1/64"],
    "homea": [f"eth 192.168.1.10/24 {HOME_A6}/64"],
    "natb": [f"wan {NAT_B}/24", "lan 192.168.2.1/24"],
    "homeb": ["eth 192.168.2.10/24"],
    "wall": [f"wan {WALL}/24", "lan 10.20.0.1/24"],
    "office": ["eth 10.20.0.10/24"],
    "gate": [f"wan {GATE}/24", "lan 10.30.0.1/24"],
    "branch": ["eth 10.30.0.10/24"],
    "onat": [f"wan 20.5.0.2/24 {CLOUD_PUBLIC}/32", "lan 10.0.0.1/24"],
    "cloud": [f"eth {CLOUD_PRIVATE}/24"],
    "peer": [f"eth {PEER}/24 {PEER6}/64"],
}

ROUTES = {
    "srv": ["default via 11.1.0.1", "default via 2a00:11:1::1",
            f"unreachable {NO_ROUTE_AT_SERVER}/32"],
    "nata": ["default via 11.2.0.1", "default via 2a00:11:2::1"],
    "homea": ["default via 192.168.1.1", "default via 2a00:11:21::1"],
    "natb": ["default via 11.3.0.1"],
    "homeb": ["default via 192.168.2.1"],
    "wall": ["default via 11.4.0.1"], "office": ["default via 10.20.0.1"],
    "gate": ["default via 11.7.0.1"], "branch": ["default via 10.30.0.1"],
    "onat": ["default via 20.5.0.1"], "cloud": ["default via 10.0.0.1"],
    "peer": ["default via 11.6.0.1", "default via 2a00:11:6::1"],
    "inet": ["2a00:11:21::/64 via 2a00:11:2::2",
             f"unreachable {UNROUTABLE}/32", f"unreachable {UNROUTABLE6}/128", f"blackhole {BLACK_HOLE}/32"],
}

def _home_rules(other_home):
    # `direct` counts what one home receives straight from the other: with a
    # symmetric NAT on both sides it must stay at zero, relayed or not. What comes
    # unasked is dropped, as homes' routers do: let in, it would leave a conntrack
    # entry that blocks hole punching, and would keep the homes apart by itself.
    return f"""
table inet filter {{
  counter direct {{ }}
  chain arriving {{
    type filter hook input priority filter; policy accept;
    iifname "wan" ct state new drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    meta l4proto udp ip saddr {other_home} counter name direct
    iifname "lan" accept
    ct state established,related accept
  }}
}}
table ip nat {{
  chain leaving {{
    type nat hook postrouting priority srcnat;
    oifname "wan" masquerade random,fully-random
  }}
}}"""


RULES = {
    "nata": _home_rules(NAT_B),
    "natb": _home_rules(NAT_A),
    "wall": f"""
table inet filter {{
  counter refused_udp {{ }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    meta l4proto udp counter name refused_udp drop
    iifname "lan" ip daddr {SERVER} tcp dport {TURN_PORT} accept
    iifname "lan" ip daddr {CLOUD_PUBLIC} tcp dport {TURN_PORT} accept
    iifname "wan" meta l4proto tcp ct state established accept
  }}
}}
table ip nat {{
  chain leaving {{ type nat hook postrouting priority srcnat; oifname "wan" masquerade; }}
}}""",
    "gate": """
table inet filter {
  counter passed { }
  counter refused_udp { }
  counter refused_tcp { }
  counter refused_other { }
  chain forward {
    type filter hook forward priority filter; policy drop;
    iifname "lan" tcp dport 443 counter name passed accept
    iifname "wan" meta l4proto tcp ct state established accept
    meta l4proto udp counter name refused_udp drop
    meta l4proto tcp counter name refused_tcp drop
    counter name refused_other drop
  }
}
table ip nat {
  chain leaving { type nat hook postrouting priority srcnat; oifname "wan" masquerade; }
}""",
    "onat": f"""
table inet filter {{
  counter hairpin {{ }}
  chain early {{
    type filter hook prerouting priority raw;
    iifname "lan" ip daddr {CLOUD_PUBLIC} counter name hairpin drop
  }}
}}
table ip nat {{
  chain arriving {{
    type nat hook prerouting priority dstnat;
    iifname "wan" ip daddr {CLOUD_PUBLIC} dnat to {CLOUD_PRIVATE}
  }}
  chain leaving {{
    type nat hook postrouting priority srcnat;
    oifname "wan" ip saddr {CLOUD_PRIVATE} snat to {CLOUD_PUBLIC}
  }}
}}""",
    # What the server exchanges with each client place on its TURN port.
    "srv": f"""
table inet exchange {{
  counter from_a {{ }}
  counter to_a {{ }}
  counter from_b {{ }}
  counter to_b {{ }}
  counter from_office {{ }}
  counter to_office {{ }}
  chain arriving {{
    type filter hook input priority filter;
    ip saddr {NAT_A} udp dport {TURN_PORT} counter name from_a
    ip saddr {NAT_B} udp dport {TURN_PORT} counter name from_b
    ip saddr {WALL} tcp dport {TURN_PORT} counter name from_office
  }}
  chain leaving {{
    type filter hook output priority filter;
    ip daddr {FILTERED_AT_SERVER} drop
    ip daddr {NAT_A} udp sport {TURN_PORT} counter name to_a
    ip daddr {NAT_B} udp sport {TURN_PORT} counter name to_b
    ip daddr {WALL} tcp sport {TURN_PORT} counter name to_office
  }}
}}""",
}


class Topology:
    """All namespaces of one run; leave the `with` block and they are gone."""

    MARK = "throughway-"

    def __init__(self):
        self.prefix = f"{self.MARK}{os.getpid()}-"
        self.names = sorted({side for a, _, b, _ in LINKS for side in (a, b)})
        self.handles = {}

    def __enter__(self):
        self._sweep()
        try:
            self._build()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_):
        self.remove()

    def _sweep(self):
        """Removes what a killed run left behind; runs that still live are not touched."""
        for entry in os.listdir("/run/netns") if os.path.isdir("/run/netns") else []:
            pid = entry.removeprefix(self.MARK).split("-")[0]
            if entry.startswith(self.MARK) and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
                subprocess.run(["ip", "netns", "del", entry], check=False)

    def _ip(self, name, lines):
        self._command(["ip", "-n", self.prefix + name, "-batch", "-"], "\n".join(lines) + "\n")

    def _command(self, command, text):
        done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}\n{text}")
        return done.stdout

    def _build(self):
        self._command(["ip", "-batch", "-"],
                      "".join(f"netns add {self.prefix}{name}\n" for name in self.names))
        for name in self.names:
            self.handles[name] = os.open(f"/run/netns/{self.prefix}{name}", os.O_RDONLY)
        for name in self.names:
            router = int(name in ROUTERS)
            with self.inside(name):
                # Without duplicate address detection IPv6 works from the first packet; without a limit every ICMP
                # error that is due is sent, where a router of today sends one a second.
                for key, value in (("ipv4/ip_forward", router), ("ipv6/conf/all/forwarding", router),
                                   ("ipv6/conf/default/accept_dad", 0),
                                   ("ipv4/icmp_ratelimit", 0), ("ipv6/icmp/ratelimit", 0)):
                    with open(f"/proc/sys/net/{key}", "w", encoding="ascii") as file:
                        file.write(str(value))
        for a, first, b, second in LINKS:
            self._ip(a, [f"link add {first} type veth peer name {second} netns {self.prefix}{b}"])
        # All links up before the first address: an IPv6 address given to a link
        # without carrier joins no multicast group, and is not found.
        links = {name: [entry.split()[0] for entry in ADDRESSES[name]] for name in self.names}
        for name in self.names:
            self._ip(name, [f"link set dev {link} up" for link in ["lo", *links[name]]])
        for name, link in (("inet", "peer"), ("peer", "eth")):
            self._ip(name, [f"link set dev {link} mtu {PEER_MTU}"])
        for name in self.names:
            self._ip(name, [f"addr add {address} dev {link}" + (" nodad" if ":" in address else "")
                            for entry in ADDRESSES[name]
                            for link, *addresses in [entry.split()] for address in addresses])
        for name, routes in ROUTES.items():
            self._ip(name, [f"route add {route}" for route in routes])
        for name, rules in RULES.items():
            with self.inside(name):
                self._command(["nft", "-f", "-"], rules)

    def remove(self):
        for handle in self.handles.values():
            os.close(handle)
        self.handles = {}
        for name in self.names:
            if os.path.exists(f"/run/netns/{self.prefix}{name}"):
                subprocess.run(["ip", "netns", "del", self.prefix + name], check=False)

    @contextlib.contextmanager
    def inside(self, name):
        """Within the block this thread is in that namespace: its sockets and
        children are born there and stay there."""
        assert threading.current_thread() is threading.main_thread()
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            self._enter(self.handles[name])
            try:
                yield
            finally:
                self._enter(here)
        finally:
            os.close(here)

    @staticmethod
    def _enter(handle):
        if _libc.setns(handle, _CLONE_NEWNET) != 0:
            error = ctypes.get_errno()
            raise OSError(error, f"setns: {os.strerror(error)} (needs root)")

    def counters(self, name):
        """Named nft counters of a namespace, as packets and bytes."""
        with self.inside(name):
            found = json.loads(self._command(["nft", "-j", "list", "counters"], ""))
        return {c["counter"]["name"]: (c["counter"]["packets"], c["counter"]["bytes"])
                for c in found["nftables"] if "counter" in c}
