"""The cases: what must hold between clients and the server across real routers.

Each function is one test, named for what it shows; it takes a `Stage` and
raises on failure. `CASES` at the end says which run once per number of workers.
"""

import contextlib
import os
import socket
import threading

import calls
import servers
import turnclient
from topology import (BLACK_HOLE, CLOUD_PRIVATE, CLOUD_PUBLIC, FILTERED_AT_SERVER, HOME_A6,
                      HOPS_HOME_TO_SERVER, NAT_A, NAT_B, NO_ROUTE_AT_SERVER, PEER, PEER6,
                      PEER_MTU, SERVER, SERVER6, SERVER6_SECOND, SERVER_SECOND, TURN_PORT, UNROUTABLE,
                      UNROUTABLE6, WALL)
from turnclient import IP_RECVTOS, IPV4, IPV6, NoAnswer, TurnClient

USER, PASSWORD = "alice", "wonderland"
CALL_BYTES = calls.BLOCKS * 4096
DEFAULT_TTL = 64


class Stage:
    """What a case works with: the network, the server under test, helpers."""

    def __init__(self, topology, binary, workers, directory):
        self.topology, self.binary = topology, binary
        self.workers, self.directory = workers, directory
        self.server = None

    @contextlib.contextmanager
    def _serving(self, place, setup):
        self.server = servers.Server(self.binary, setup, self.directory,
                                     lambda: self.topology.inside(place))
        try:
            yield self.server
            check(self.server.alive(), "the server ended by itself during the case")
            self.server.stop_and_check_books()
        finally:
            self.server.stop()

    def public_server(self):
        """Two addresses per family, listening on the wildcards."""
        both = [f"0.0.0.0:{TURN_PORT}", f"[::]:{TURN_PORT}"]
        return self._serving("srv", servers.Setup(
            udp=both, tcp=both, relay=[SERVER, SERVER6], workers=self.workers))

    def cloud_server(self):
        """One private address behind 1:1 NAT."""
        everywhere = [f"0.0.0.0:{TURN_PORT}"]
        return self._serving("cloud", servers.Setup(
            udp=everywhere, tcp=everywhere, relay=[CLOUD_PRIVATE], external=CLOUD_PUBLIC,
            workers=self.workers))

    def client(self, place, host=SERVER, transport="udp", timeout=4.0):
        with self.topology.inside(place):
            return TurnClient((host, TURN_PORT), USER, PASSWORD, transport, timeout)

    @contextlib.contextmanager
    def echo(self, host=PEER, place="peer"):
        """A UDP peer that sends everything back; yields its address and who wrote to it."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with self.topology.inside(place):
            sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.bind((host, 0))
        sock.settimeout(0.1)
        stop, sources = threading.Event(), []

        def answer():
            while not stop.is_set():
                try:
                    payload, source = sock.recvfrom(65536)
                    sources.append(source[:2])
                    sock.sendto(payload, source)
                except TimeoutError:
                    pass

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield (host, sock.getsockname()[1]), sources
        finally:
            stop.set()
            thread.join()
            sock.close()


def check(holds, text):
    if not holds:
        raise AssertionError(text)


def equal(found, wanted, what):
    check(found == wanted, f"{what}: expected {wanted!r}, found {found!r}")


def echoes(client, peer, payloads, channel=None):
    """Every payload comes back whole, from that peer, in that framing. Three
    tries each: over UDP one lost datagram on a busy machine is no fault."""
    for payload in payloads:
        for _ in range(3):
            if channel is None:
                client.send(peer, payload)
            else:
                client.send_channel(channel, payload)
            got = client.receive(1.5)
            while got is not None and got.payload != payload:
                got = client.receive(1.5)
            if got is not None:
                break
        check(got is not None, f"no echo of {len(payload)} bytes from {peer}"
              f" ({'Send' if channel is None else 'ChannelData'})")
        equal(got.peer, peer, "peer of the echo")
        equal(got.channel, channel, "channel of the echo")
    equal(client.strangers, [], "datagrams from an address other than the one asked")


def ice(host, transport="udp"):
    return {"urls": f"turn:{host}:{TURN_PORT}?transport={transport}",
            "username": USER, "credential": PASSWORD}


def stun(host):
    return {"urls": f"stun:{host}:{TURN_PORT}"}


def check_call(outcome):
    check(outcome.connected, f"no call: offerer {outcome.offerer['problem'] or 'fine'};"
          f" answerer {outcome.answerer['problem'] or 'fine'}; candidates {outcome.candidates}")
    for side in (outcome.offerer, outcome.answerer):
        equal(side["bytes"], CALL_BYTES, "bytes over the data channel")
        equal(side["sha256"], outcome.offerer["sent_sha256"], "SHA-256 of the data")
        check("relay" in (side["pair"]["local"], side["pair"]["remote"]),
              f"pair in use is not relayed: {side['pair']}")


class Traffic:
    """Who moved the bytes of a call, by the packet filters and not by either end's word."""

    def __init__(self, stage):
        self.stage = stage
        self.before = self._now()

    def _now(self):
        return {(place, name): value for place in ("srv", "nata", "natb")
                for name, value in self.stage.topology.counters(place).items()}

    def server_bytes(self, way):
        now = self._now()
        return now["srv", way][1] - self.before["srv", way][1]

    def check_relayed(self, *ways):
        """The call's bytes went through the server's TURN port, and none went directly."""
        for way in ways:
            moved = self.server_bytes(way)
            check(moved >= CALL_BYTES, f"the server moved only {moved} bytes {way} for a call of"
                  f" {CALL_BYTES}")
        self.check_nothing_direct()

    def check_nothing_direct(self):
        now = self._now()
        for nat in ("nata", "natb"):
            equal(now[nat, "direct"], self.before[nat, "direct"], f"direct packets through {nat}")


# --- STUN -----------------------------------------------------------------

def binding_through_nat_shows_the_public_address(stage):
    with stage.public_server():
        for place, public in (("homea", NAT_A), ("homeb", NAT_B)):
            with stage.client(place) as client:
                first = client.binding()
                client.server = (SERVER_SECOND, TURN_PORT)
                second = client.binding()
            equal(first[0], public, f"mapped address of {place}")
            equal(second[0], public, f"mapped address of {place}, second server address")
            check(first[1] != second[1], f"{place} is not behind a symmetric NAT:"
                  f" port {first[1]} for both server addresses; the other cases prove nothing")
            with stage.client(place, transport="tcp") as client:
                equal(client.binding()[0], public, f"mapped address of {place} over TCP")
        for host in (SERVER6, SERVER6_SECOND):
            with stage.client("homea", host) as client:
                equal(client.binding(), (HOME_A6, client.socket.getsockname()[1]),
                      f"mapped address seen by {host}")


def replies_leave_from_the_address_that_was_asked(stage):
    with stage.public_server(), stage.echo() as (peer, _):
        for place in ("homea", "peer"):     # behind a NAT, and where a wrong source is seen
            for host in (SERVER, SERVER_SECOND, SERVER6, SERVER6_SECOND):
                with stage.client(place, host) as client:
                    client.binding()
                    client.allocate()
                    client.permit(peer)
                    echoes(client, peer, [os.urandom(100)])
                    client.bind_channel(0x4000, peer)
                    echoes(client, peer, [os.urandom(100)], 0x4000)
                    client.refresh(0)
                    equal(client.strangers, [], f"replies from elsewhere than {host}")


# --- calls ----------------------------------------------------------------

def call_between_symmetric_nats(stage):
    with stage.public_server():
        traffic = Traffic(stage)
        servers_for_all = [stun(SERVER), ice(SERVER)]
        check_call(calls.call(stage.topology, stage.directory,
                              ("homea", servers_for_all, "all"),
                              ("homeb", servers_for_all, "all")))
        traffic.check_nothing_direct()
        # ICE may choose the relay of either home, or one of each; either way both
        # directions pass the TURN port once.
        for sender, receiver in (("from_a", "to_b"), ("from_b", "to_a")):
            moved = {way: traffic.server_bytes(way) for way in (sender, receiver)}
            check(max(moved.values()) >= CALL_BYTES,
                  f"the call's {CALL_BYTES} bytes did not pass the server's TURN port: {moved}")


def call_between_symmetric_nats_relay_to_relay(stage):
    with stage.public_server():
        traffic = Traffic(stage)
        check_call(calls.call(stage.topology, stage.directory,
                              ("homea", [ice(SERVER)], "relay"),
                              ("homeb", [ice(SERVER)], "relay")))
        traffic.check_relayed("from_a", "to_a", "from_b", "to_b")


def call_from_office_over_tcp(stage):
    with stage.public_server():
        refused = stage.topology.counters("wall")["refused_udp"][0]
        with stage.client("office", timeout=1.2) as client:
            try:
                client.binding()
            except NoAnswer:
                pass
            else:
                raise AssertionError("UDP leaves the office: the case proves nothing")
        check(stage.topology.counters("wall")["refused_udp"][0] > refused,
              "the office wall counted no refused UDP")
        traffic = Traffic(stage)
        check_call(calls.call(stage.topology, stage.directory,
                              ("office", [ice(SERVER, "tcp")], "all"),
                              ("homea", [stun(SERVER), ice(SERVER)], "all")))
        traffic.check_relayed("from_office", "to_office")


def no_call_between_symmetric_nats_without_the_relay(stage):
    with stage.public_server():         # STUN still answers; only TURN is not configured
        outcome = calls.call(stage.topology, stage.directory, ("homea", [stun(SERVER)], "all"),
                             ("homeb", [stun(SERVER)], "all"), seconds=10)
    for side in outcome.candidates:
        check(any("typ srflx" in c for c in side), f"STUN gave no candidate: {side}")
    check(not outcome.connected and outcome.offerer["pair"] is None,
          f"a call without a relay: {outcome.offerer}; the network is too open")


def no_call_from_office_without_the_relay(stage):
    # The peers are told of the relay, but nothing listens there.
    outcome = calls.call(stage.topology, stage.directory, ("office", [ice(SERVER, "tcp")], "all"),
                         ("homea", [ice(SERVER)], "all"), seconds=10)
    check(not any("typ relay" in c for side in outcome.candidates for c in side),
          f"relayed candidates without a server: {outcome.candidates}")
    check(not outcome.connected and outcome.offerer["pair"] is None,
          f"a call without a relay: {outcome.offerer}; the network is too open")


# --- 1:1 NAT --------------------------------------------------------------

def one_to_one_nat_relays_between_own_clients(stage):
    hairpin = stage.topology.counters("onat")["hairpin"]
    with stage.cloud_server(), stage.echo() as (peer, sources):
        with stage.client("homea", CLOUD_PUBLIC) as a, stage.client("homeb", CLOUD_PUBLIC) as b:
            for client, public in ((a, NAT_A), (b, NAT_B)):
                equal(client.allocate()[0], CLOUD_PUBLIC, "XOR-RELAYED-ADDRESS")
                equal(client.mapped[0], public, "XOR-MAPPED-ADDRESS")
            # To the world outside the relayed address is the public one.
            a.permit(peer)
            echoes(a, peer, [os.urandom(200)])
            equal(sources[-1], a.relayed, "source that an outside peer sees")
            between_own_clients(a, b)
        with stage.client("homea", CLOUD_PUBLIC) as a, \
                stage.client("office", CLOUD_PUBLIC, "tcp") as b:
            a.allocate()
            b.allocate()
            equal((b.relayed[0], b.mapped[0]), (CLOUD_PUBLIC, WALL), "addresses over TCP")
            between_own_clients(a, b)
    equal(stage.topology.counters("onat")["hairpin"], hairpin,
          "packets the server sent to its own public address")


def between_own_clients(a, b):
    """Relay to relay both ways, each in the form that clients know."""
    a.permit(b.relayed)
    b.permit(a.relayed)
    for number in range(20):
        text = b"%d " % number + os.urandom(300)
        a.send(b.relayed, text)
        got = b.receive()
        check(got is not None, f"datagram {number} from relay to relay is lost")
        equal((got.peer, got.payload), (a.relayed, text), "what the other client received")
    a.bind_channel(0x4001, b.relayed)
    b.bind_channel(0x4002, a.relayed)
    for number in range(20):
        text = b"%d " % number + os.urandom(300)
        b.send_channel(0x4002, text)
        got = a.receive()
        check(got is not None, f"ChannelData {number} from relay to relay is lost")
        equal((got.channel, got.peer, got.payload), (0x4001, b.relayed, text),
              "what the other client received")


def call_behind_one_to_one_nat(stage):
    with stage.cloud_server():
        traffic = Traffic(stage)
        outcome = calls.call(stage.topology, stage.directory,
                             ("homea", [ice(CLOUD_PUBLIC)], "relay"),
                             ("homeb", [ice(CLOUD_PUBLIC)], "relay"))
        for side in outcome.candidates:
            check(side and all(f" {CLOUD_PUBLIC} " in c and "typ relay" in c for c in side),
                  f"candidates not in the public form: {side}")
        check_call(outcome)
        for side in (outcome.offerer, outcome.answerer):
            for end in ("local_address", "remote_address"):
                equal(side["pair"][end][0], CLOUD_PUBLIC, f"{end} of the pair in use")
        traffic.check_nothing_direct()


# --- IPv6 -----------------------------------------------------------------

def every_client_family_with_every_relay_family(stage):
    relays = {IPV4: (SERVER, PEER), IPV6: (SERVER6, PEER6)}
    with stage.public_server(), stage.echo() as (peer4, seen4), stage.echo(PEER6) as (peer6, seen6):
        for transport in ("udp", "tcp"):
            for host in (SERVER, SERVER6):
                for family, peer, seen, other in ((IPV4, peer4, seen4, peer6),
                                                  (IPV6, peer6, seen6, peer4)):
                    what = f"{transport} client of {host}, relayed {relays[family][0]}"
                    with stage.client("homea", host, transport) as client:
                        equal(client.allocate(family)[0], relays[family][0], f"{what}: relayed address")
                        mapped = HOME_A6 if ":" in host else NAT_A
                        equal(client.mapped[0], mapped, f"{what}: mapped address")
                        client.permit(peer)
                        echoes(client, peer, [b"", os.urandom(1), os.urandom(1000)])
                        equal(seen[-1], client.relayed, f"{what}: source seen by the peer")
                        client.bind_channel(0x4123, peer)
                        echoes(client, peer, [os.urandom(3), os.urandom(1000)], 0x4123)
                        for request in (lambda: client.permit(other),
                                        lambda: client.bind_channel(0x4124, other)):
                            try:
                                request()
                            except turnclient.Refused as refused:
                                equal(refused.code, 443, f"{what}: peer of the other family")
                            else:
                                raise AssertionError(f"{what}: a peer of the other family is granted")
                        equal(client.refresh(0), 0, f"{what}: lifetime after Refresh 0")


def without_the_attribute_the_relay_is_ipv4(stage):
    # RFC 8656 section 7.2: no REQUESTED-ADDRESS-FAMILY means IPv4, whatever the client's family.
    with stage.public_server():
        for host in (SERVER, SERVER6):
            with stage.client("homea", host) as client:
                equal(client.allocate()[0], SERVER, f"relayed address for a client of {host}")


def every_client_reaches_every_other_over_the_relay(stage):
    # Enough clients that pairs fall on the same worker and on different ones,
    # and over both transports: each of these ways is another path in a server.
    places = ([("homea", "udp")] * 3 + [("homeb", "udp")] * 2 + [("homea", "tcp"), ("office", "tcp")])
    with stage.public_server(), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(stage.client(place, transport=transport))
                   for place, transport in places]
        for client in clients:
            client.allocate()
        for number, client in enumerate(clients):
            others = [other.relayed for other in clients if other is not client]
            client.permit(*others)
            # Every second client binds channels, so that each framing meets each other.
            if number % 2:
                for channel, peer in enumerate(others, 0x4000):
                    client.bind_channel(channel, peer)
        for a in clients:
            channels = {peer: channel for channel, peer in a.channels.items()}
            for b in clients:
                if a is b:
                    continue
                for round_ in range(3):
                    text = b"%d " % round_ + os.urandom(200)
                    if b.relayed in channels:
                        a.send_channel(channels[b.relayed], text)
                    else:
                        a.send(b.relayed, text)
                    got = b.receive()
                    check(got is not None, f"datagram {round_} from {a.relayed} to {b.relayed}"
                          f" ({a.transport} to {b.transport}) is lost")
                    equal(got[:2], (a.relayed, text), f"what arrived from {a.relayed}")
        for client in clients:
            check(client.receive(0.05) is None, f"{client.relayed} received something twice")


# --- who may be reached -----------------------------------------------------

def own_ports_are_no_peers_unless_they_are_relayed(stage):
    """product.md, "Own addresses": a relayed port of ours is a peer, a listener never is."""
    def refused(request, what):
        try:
            request()
        except turnclient.Refused as error:
            equal(error.code, 403, what)
        else:
            raise AssertionError(f"{what} is granted")

    with stage.public_server(), stage.client("homea") as a, stage.client("homeb") as b:
        a.allocate()
        b.allocate()
        unheld = next(port for port in range(50000, 50003) if port not in (a.relayed[1], b.relayed[1]))
        for number, (peer, what) in enumerate((
                ((SERVER, TURN_PORT), "our listener"),
                ((SERVER, unheld), "a port of the relay address that is not held"),
                ((SERVER_SECOND, 5000), "a local address that is no relay address"),
                (("127.0.0.1", 8080), "loopback"), (("10.0.0.5", 9), "a private address"))):
            refused(lambda p=peer, n=number: a.bind_channel(0x4100 + n, p),
                    f"ChannelBind to {what}, {peer}")
        for host in (SERVER_SECOND, "127.0.0.1", "10.0.0.5", "192.168.1.10", "169.254.169.254"):
            refused(lambda h=host: a.permit((h, 9)), f"CreatePermission for {host}")
        a.permit((SERVER, 0))
        a.send((SERVER, TURN_PORT), turnclient.build(turnclient.BINDING, turnclient.REQUEST, [],
                                                    os.urandom(12)))
        check(a.receive(0.7) is None, "our listener answered one of our clients through the relay")
        b.permit(a.relayed)
        a.bind_channel(0x4000, b.relayed)
        a.send_channel(0x4000, b"from a")
        got = b.receive()
        check(got is not None and got[:2] == (a.relayed, b"from a"), f"relay to relay: {got}")


# --- faults that killed calls elsewhere --------------------------------------

def new_clients_are_heard_after_hundreds_of_packets(stage):
    with stage.public_server(), stage.echo() as (peer, _):
        for round_ in ("first", "later"):
            for place in ("homea", "homeb"):
                with stage.client(place) as client:
                    client.binding()
                    equal(client.hop_limit, DEFAULT_TTL - HOPS_HOME_TO_SERVER,
                          f"hop limit of a Binding reply at the {round_} client of {place}")
                    client.allocate()
                    equal(client.hop_limit, DEFAULT_TTL - HOPS_HOME_TO_SERVER,
                          f"hop limit of an Allocate reply at the {round_} client of {place}")
                    client.permit(peer)
                    echoes(client, peer, [os.urandom(160) for _ in range(200)])
                    equal(client.hop_limit, DEFAULT_TTL - HOPS_HOME_TO_SERVER,
                          f"hop limit of a Data indication at the {round_} client of {place}")
                    client.bind_channel(0x4000, peer)
                    echoes(client, peer, [os.urandom(160) for _ in range(200)], 0x4000)
        with stage.client("homea", SERVER6) as client:
            client.binding()
            equal(client.hop_limit, DEFAULT_TTL - HOPS_HOME_TO_SERVER, "hop limit over IPv6")


def dead_peers_do_not_end_the_allocation(stage):
    with stage.public_server(), stage.echo() as (peer, _), stage.echo(PEER6) as (peer6, _):
        with stage.topology.inside("peer"):
            closed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        closed.bind((PEER, 0))
        closed_port = closed.getsockname()[1]
        closed.close()
        dead4 = [(PEER, closed_port), (UNROUTABLE, 9), (BLACK_HOLE, 9), (NO_ROUTE_AT_SERVER, 9),
                 (FILTERED_AT_SERVER, 9), (PEER, 0)]
        dead6 = [(PEER6, closed_port), (UNROUTABLE6, 9)]
        for transport in ("udp", "tcp"):
            for family, alive, dead in ((IPV4, peer, dead4), (IPV6, peer6, dead6)):
                with stage.client("homea", SERVER, transport) as client:
                    client.allocate(family)
                    client.permit(alive, *[(host, 9) for host, _ in dead])
                    echoes(client, alive, [b"before"])
                    for number, gone in enumerate(dead):
                        for _ in range(5):
                            client.send(gone, b"anyone there?")
                        if gone[1] != 0:
                            client.bind_channel(0x4100 + number, gone)
                            for _ in range(5):
                                client.send_channel(0x4100 + number, b"anyone?")
                        echoes(client, alive, [b"after %d" % number, os.urandom(500)])
                    check(client.refresh(600) >= 600, "Refresh after sends to dead peers")
                    client.bind_channel(0x4200, alive)
                    echoes(client, alive, [os.urandom(700) for _ in range(10)], 0x4200)


def a_datagram_too_big_for_the_path_is_only_lost(stage):
    # DONT-FRAGMENT beyond the server's own link is EMSGSIZE at send; beyond the
    # peer's link it is an ICMP from the router. Without DONT-FRAGMENT the same
    # sizes pass, also after the kernel has learnt the smaller path.
    with stage.public_server(), stage.echo() as (peer, sources):
        for transport in ("udp", "tcp"):
            with stage.client("homea", transport=transport) as client:
                client.allocate()
                client.permit(peer)
                echoes(client, peer, [b"before"])
                reached = len(sources)
                for size in (PEER_MTU + 1 - 28, 1500 + 1 - 28, 4000):
                    for _ in range(3):
                        client.send(peer, os.urandom(size), dont_fragment=True)
                check(client.receive(0.5) is None, "a datagram too big for its path came back")
                equal(len(sources), reached, "datagrams with DONT-FRAGMENT that reached the peer")
                echoes(client, peer, [os.urandom(size) for size in (100, PEER_MTU - 27, 1473, 4000)])
                client.send(peer, b"small", dont_fragment=True)
                got = client.receive()
                check(got is not None and got.payload == b"small",
                      "a small datagram with DONT-FRAGMENT is lost")


def icmp_errors_are_told_to_the_client(stage):
    # Unreachable by a router, by the peer's own kernel, and too big with DONT-FRAGMENT: for the peer's link by a
    # router, for the server's own link by its kernel. Each names the peer that it is about.
    with stage.public_server(), stage.echo() as (peer, _), stage.echo(PEER6) as (peer6, _):
        with stage.topology.inside("peer"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind((PEER, 0))
            closed_port = taken.getsockname()[1]
        gone, gone6 = (PEER, closed_port), (PEER6, closed_port)
        for transport in ("udp", "tcp"):
            with stage.client("homea", transport=transport) as client:
                client.allocate()
                client.permit(peer, (UNROUTABLE, 9))
                client.send((UNROUTABLE, 9), b"anybody?")
                told = client.icmp_error()
                check(told is not None and told[:2] == ((UNROUTABLE, 9), 3) and told[2] in (0, 1) and told[3] == 0,
                      f"unreachable by a router: {told}")
                client.send(gone, b"anybody?")
                equal(client.icmp_error(), (gone, 3, 3, 0), "port unreachable")
                client.send(peer, os.urandom(PEER_MTU + 1 - 28), dont_fragment=True)
                equal(client.icmp_error(), (peer, 3, 4, PEER_MTU), "too big for the peer's link")
                client.send(peer, os.urandom(1500 + 1 - 28), dont_fragment=True)
                told = client.icmp_error()
                check(told is not None and told[:3] == (peer, 3, 4) and told[3] in (PEER_MTU, 1500),
                      f"too big for the server's link: {told}")
                # Neither cost another datagram anything, and without DONT-FRAGMENT the same sizes pass.
                echoes(client, peer, [os.urandom(size) for size in (100, PEER_MTU + 1 - 28, 1473, 4000)])
                check(client.icmp_error(0.1) is None, "an error that nothing caused")
            with stage.client("homea", transport=transport) as client:
                client.allocate(IPV6)
                client.permit(peer6, (UNROUTABLE6, 9))
                client.send((UNROUTABLE6, 9), b"anybody?")
                told = client.icmp_error()
                check(told is not None and told[:2] == ((UNROUTABLE6, 9), 1) and told[3] == 0, f"unreachable: {told}")
                client.send(gone6, b"anybody?")
                equal(client.icmp_error(), (gone6, 1, 4, 0), "port unreachable over IPv6")
                echoes(client, peer6, [os.urandom(size) for size in (100, PEER_MTU + 1 - 48, 1473, 4000)])


def dscp_and_ecn_go_through(stage):
    # Expedited forwarding with ECT(0) out, AF41 with CE back; over each family, by channel and by Send indication, and
    # from relayed address to relayed address. What is not marked stays so.
    out, back = 0xB8 | 2, 0x88 | 3
    with stage.public_server():
        for host, family, address in ((SERVER, IPV4, PEER), (SERVER6, IPV6, PEER6), (SERVER, IPV6, PEER6)):
            with stage.client("homea", host) as client, stage.topology.inside("peer"), \
                    socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as peer:
                level, ask, mark = ((socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, socket.IPV6_TCLASS) if ":" in address
                                    else (socket.IPPROTO_IP, IP_RECVTOS, socket.IP_TOS))
                peer.bind((address, 0))
                peer.settimeout(3)
                peer.setsockopt(level, ask, 1)
                at = peer.getsockname()[:2]
                client.allocate(family)
                client.permit(at)
                client.bind_channel(0x4000, at)
                for sent, answered in ((out, back), (0, 0), (out, 0), (0, back)):
                    client.mark(sent)
                    peer.setsockopt(level, mark, answered)
                    for send in (lambda: client.send(at, b"out"), lambda: client.send_channel(0x4000, b"out")):
                        send()
                        payload, notes, _, relayed = peer.recvmsg(100, 100)
                        classes = [value[0] for of, kind, value in notes if (of, kind) == (level, mark)]
                        equal((payload, classes), (b"out", [sent]), f"at the peer {address} of a client of {host}")
                        peer.sendto(b"back", relayed)
                        got = client.receive()
                        equal((got and got.payload, client.traffic_class), (b"back", answered), "at the client")
        with stage.client("homea") as left, stage.client("homeb") as right:
            ends = [(client, client.allocate()) for client in (left, right)]
            left.bind_channel(0x4000, ends[1][1])
            right.bind_channel(0x4000, ends[0][1])
            left.mark(out)
            for number in range(50):
                left.send_channel(0x4000, b"%d" % number)
                got = right.receive()
                equal((got and got.payload, right.traffic_class), (b"%d" % number, out), "from relayed to relayed address")


def a_vanished_client_disturbs_nobody(stage):
    with stage.public_server(), stage.echo() as (peer, _):
        with stage.client("homea") as stays, stage.client("office", transport="tcp") as office:
            for client in (stays, office):
                client.allocate()
                client.permit(peer)
            # Both vanish with data on its way: over UDP the home answers the
            # server's listener with port unreachable, over TCP with a reset.
            for transport in ("udp", "tcp"):
                gone = stage.client("homea", transport=transport)
                gone.allocate()
                gone.permit(peer)
                echoes(gone, peer, [b"hello"])
                for _ in range(20):
                    gone.send(peer, os.urandom(1000))
                gone.socket.close()
                for client in (stays, office):
                    echoes(client, peer, [os.urandom(400) for _ in range(20)])
            with stage.client("homeb") as late:
                late.allocate()
                late.permit(peer)
                echoes(late, peer, [b"late"])


def large_datagrams_pass_whole(stage):
    # Through a NAT and two routers, so the fragments are real ones.
    sizes = [1, 1400, 1472, 1473, 9000, 40000]
    with stage.public_server(), stage.echo() as (peer, _):
        for transport in ("udp", "tcp"):
            with stage.client("homea", transport=transport) as client:
                client.allocate()
                client.permit(peer)
                echoes(client, peer, [os.urandom(size) for size in sizes])
                client.bind_channel(0x4000, peer)
                echoes(client, peer, [os.urandom(size) for size in sizes], 0x4000)


PER_WORKERS = [
    binding_through_nat_shows_the_public_address,
    replies_leave_from_the_address_that_was_asked,
    call_between_symmetric_nats,
    call_between_symmetric_nats_relay_to_relay,
    call_from_office_over_tcp,
    one_to_one_nat_relays_between_own_clients,
    call_behind_one_to_one_nat,
    every_client_family_with_every_relay_family,
    without_the_attribute_the_relay_is_ipv4,
    every_client_reaches_every_other_over_the_relay,
    own_ports_are_no_peers_unless_they_are_relayed,
    new_clients_are_heard_after_hundreds_of_packets,
    icmp_errors_are_told_to_the_client,
    dscp_and_ecn_go_through,
    a_datagram_too_big_for_the_path_is_only_lost,
    dead_peers_do_not_end_the_allocation,
    a_vanished_client_disturbs_nobody,
    large_datagrams_pass_whole,
]
# Without a relay the number of its workers means nothing.
ONCE = [
    no_call_between_symmetric_nats_without_the_relay,
    no_call_from_office_without_the_relay,
]
