"""What is measured. A new scenario is one entry of SCENARIOS; nothing else needs to know of it.

`relay` drives packets through the server (`throughway-load run`) and compares CPU ns per packet. `figure` is anything
else: it compares one key of the mode's JSON and shows others beside it.
`goals` are the ratios to coturn that the project asks of itself, by set-up: (required, aim).
"""

from dataclasses import dataclass, field

REFERENCE = "coturn"
BARE = ("forwarder", "forwarder-batch", "forwarder-gso", "forwarder-uring", "forwarder-uring-epoll")
FAULTS = ("lost", "duplicates", "corrupt", "misdelivered", "unexpected", "broken_connections")
DROPS = ("generator_socket_drops", "listener_socket_drops", "relayed_socket_drops", "device_drops")


@dataclass(frozen=True)
class Column:
    """What stands beside a figure: its title, the key in the mode's JSON and how the median is written."""
    title: str
    key: str
    form: str = "{:,.0f}"


@dataclass(frozen=True)
class Scenario:
    text: str
    why: str
    words: tuple
    relays: bool
    mode: str = "run"
    transport: str = "udp"
    setups: tuple = ("loopback", "veth")
    goals: dict = field(default_factory=dict)
    on_request: bool = False
    bare: bool = False  # the bare forwarders can be driven the same way
    key: str = "cpu_ns_per_packet"
    unit: str = "packet"
    title: str = "CPU ns per packet"
    more_is_better: bool = False
    faults: tuple = FAULTS
    columns: tuple = ()
    measure: float = 0.0  # seconds of measuring, where the mode needs its own
    seconds: float = 0.0  # what a run takes beside warm-up and measuring
    rounds: int = 99  # of these at the most
    offload: str = "true"  # what `{offload}` is in a server's configuration

    @property
    def slow(self):
        return self.seconds > 10

    @property
    def clients(self):
        """What `run` and its relatives are told about the clients."""
        return self.mode in ("run", "overload")

    @property
    def pairs(self):
        return "--pairs" in self.words

    def flag(self, name, default):
        return self.words[self.words.index(name) + 1] if name in self.words else default

    def sessions(self):
        return self.flag("--sessions", 200)

    def ratio(self, other, this):
        """Above 1: this is better than the other."""
        return this / other if self.more_is_better else other / this


def relay(text, why, *words, **more):
    return Scenario(text, why, words, relays=True, **{"bare": True, **more})


def figure(mode, text, why, *words, **more):
    return Scenario(text, why, words, relays=False, mode=mode, **{"setups": ("loopback",), "faults": ("failures",), **more})


def both(loopback, veth):
    return {"loopback": loopback, "veth": veth}


SCENARIOS = {
    "A20k": relay("200 UDP clients x 50 packets/s x 2 directions, 160 B", "a conference server's ordinary hour: audio",
                  "--sessions", 200, "--rate", 50, "--payload", 160, goals=both((1.1, 1.35), (1.1, 1.35))),
    "A100k": relay("2,000 UDP clients x 25 packets/s x 2 directions, 160 B", "where designs with a task per socket collapse",
                   "--sessions", 2000, "--rate", 25, "--payload", 160, goals=both((1.0, 1.2), (None, None)), seconds=2),
    "Amax": relay("200 UDP clients, 160 B, 256 packets under way", "audio, saturated",
                  "--sessions", 200, "--in-flight", 256, "--payload", 160, goals=both((1.3, 1.5), (1.4, 1.65))),
    "V40k": relay("4 UDP clients x 5,000 packets/s x 2 directions, 1,200 B in bursts of 16", "video frames",
                  "--sessions", 4, "--rate", 5000, "--payload", 1200, "--burst", 16, goals=both((1.15, 1.4), (1.0, 1.6))),
    "Vmax": relay("4 UDP clients, 1,200 B in bursts of 16, 256 packets under way", "video, saturated",
                  "--sessions", 4, "--in-flight", 256, "--payload", 1200, "--burst", 16, goals=both((1.25, 1.45), (2.0, 2.6))),
    "T20k": relay("200 TCP clients x 50 packets/s x 2 directions, 160 B", "clients behind a firewall that drops UDP",
                  "--sessions", 200, "--rate", 50, "--payload", 160, transport="tcp", setups=("loopback",),
                  goals={"loopback": (1.1, 1.4)}),
    "TLS20k": relay("200 TLS clients x 50 packets/s x 2 directions, 160 B", "clients behind a firewall that lets HTTPS through",
                    "--sessions", 200, "--rate", 50, "--payload", 160, transport="tls", setups=("loopback",), bare=False,
                    goals={"loopback": (1.1, 1.3)}, seconds=2),
    "Tmax": relay("4 TCP clients, 1,200 B, 256 packets under way", "video and files over TCP, saturated",
                  "--sessions", 4, "--in-flight", 256, "--payload", 1200, transport="tcp", setups=("loopback",),
                  goals={"loopback": (1.15, 1.4)}),
    "TLSmax": relay("4 TLS clients, 1,200 B, 256 packets under way", "video and files over TLS, saturated",
                    "--sessions", 4, "--in-flight", 256, "--payload", 1200, transport="tls", setups=("loopback",), bare=False,
                    goals={"loopback": (1.15, 1.4)}, seconds=2),
    "P20k": relay("200 UDP clients in pairs, each sends 50 packets/s to its partner's relayed address, 160 B",
                  "two clients that both need the relay", "--pairs", "--sessions", 200, "--rate", 50, "--payload", 160,
                  goals=both((1.6, 1.85), (1.6, 1.85))),
    "I20k": relay("as A20k with Send and Data indications", "clients that bind no channel", "--sessions", 200, "--rate", 50,
                  "--payload", 160, "--framing", "indication", bare=False, on_request=True),
    "cycles": figure("cycles", "Allocate, CreatePermission, Refresh 0, one after the other, 32 clients", "calls that come and go",
                     key="units_per_cpu_second", unit="life", title="lives per CPU second", more_is_better=True,
                     goals={"loopback": (4.0, 7.0)},
                     columns=(Column("p99 us", "p99_us"), Column("requests per life", "requests_per_unit", "{:.1f}"))),
    "bindings": figure("bindings", "Binding requests, 64 under way", "clients that only ask for their address",
                       key="units_per_cpu_second", unit="answer", title="answers per CPU second", more_is_better=True,
                       faults=("lost", "wrong"), goals={"loopback": (1.4, 1.7)}, columns=(Column("p99 us", "p99_us"),)),
    "idle": figure("idle", "10,000 allocations that do nothing", "what a waiting call keeps", "--sessions", 10000,
                   key="bytes_per_allocation", unit="allocation", title="process memory per allocation, B",
                   columns=(Column("idle CPU %", "idle_cpu_percent", "{:.2f}"),
                            Column("B kept after release", "bytes_per_allocation_kept")), seconds=25, rounds=3),
    "flood": figure("run", "50 calls x 50 packets/s x 2 directions, 160 B, and 50,000 packets/s of strangers: Allocate, Binding, garbage, ChannelData",
                    "an attack on a server with calls", "--sessions", 50, "--rate", 50, "--payload", 160, "--flood", 50000,
                    key="p99_us", title="added latency of the calls, p99 us", faults=FAULTS, setups=("loopback", "veth"),
                    columns=(Column("p50 us", "p50_us"), Column("CPU share", "cpu_share", "{:.2f}"),
                             Column("strangers' packets/s", "flood_sent_pps"))),
    "overload": figure("overload", "200 UDP clients, 160 B, twice what the server can forward, and 100 clients that send a Refresh every 0.25 s",
                       "everybody talks at once", "--sessions", 200, "--payload", 160, "--burst", 8, "--segment",
                       offload="false",
                       key="units_per_second", unit="packet", title="packets/s forwarded", more_is_better=True,
                       faults=("duplicates", "corrupt", "misdelivered", "unexpected"), measure=12, seconds=11, rounds=3,
                       columns=(Column("of the maximum", "forwarded_of_maximum", "{:.2f}"), Column("p99 us", "p99_us"),
                                Column("Refreshes done within 8 s", "refreshes_within_8s_share", "{:.4f}"),
                                Column("answered within 10 ms", "refresh_answers_within_10ms_share", "{:.4f}"),
                                Column("back to normal after ms", "recovery_ms"))),
}
DEFAULT = [name for name, scenario in SCENARIOS.items() if not scenario.on_request]
