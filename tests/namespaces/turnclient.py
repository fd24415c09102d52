"""A small blocking STUN/TURN client, written from RFC 8489 and RFC 8656.

It exists so that a test can say exactly what goes onto the wire and see
exactly what comes back: source address, hop limit, error code. It knows
Binding, Allocate, Refresh, CreatePermission, ChannelBind, Send and Data
indications and ChannelData, over UDP and TCP, IPv4 and IPv6, with the
long-term credential mechanism. Its maker decides in which
network namespace its socket lives (see `topology.Topology.inside`).
"""

import base64
import binascii
import collections
import hashlib
import hmac
import ipaddress
import os
import socket
import struct
import time

MAGIC = 0x2112A442
FINGERPRINT_XOR = 0x5354554E

BINDING, ALLOCATE, REFRESH, SEND, DATA, CREATE_PERMISSION, CHANNEL_BIND = (
    0x001, 0x003, 0x004, 0x006, 0x007, 0x008, 0x009)
REQUEST, INDICATION, SUCCESS, ERROR = 0, 1, 2, 3

USERNAME = 0x0006
MESSAGE_INTEGRITY = 0x0008
ERROR_CODE = 0x0009
CHANNEL_NUMBER = 0x000C
LIFETIME = 0x000D
XOR_PEER_ADDRESS = 0x0012
DATA_ATTRIBUTE = 0x0013
REALM = 0x0014
NONCE = 0x0015
XOR_RELAYED_ADDRESS = 0x0016
REQUESTED_ADDRESS_FAMILY = 0x0017
EVEN_PORT = 0x0018
REQUESTED_TRANSPORT = 0x0019
DONT_FRAGMENT = 0x001A
XOR_MAPPED_ADDRESS = 0x0020
RESERVATION_TOKEN = 0x0022
ICMP = 0x8004
FINGERPRINT = 0x8028

IP_RECVTTL = 12                  # Linux; Python 3.11 has no name for it
IP_RECVTOS = 13

UDP_PROTOCOL = b"\x11\x00\x00\x00"
IPV4, IPV6 = b"\x01\x00\x00\x00", b"\x02\x00\x00\x00"

Received = collections.namedtuple("Received", "peer payload channel")


class NoAnswer(Exception):
    """Every retransmission went unanswered."""


class Refused(Exception):
    """The server answered with an error code."""

    def __init__(self, method, code, reason):
        super().__init__(f"method {method:#05x} refused with {code} {reason}".rstrip())
        self.code = code


def time_limited(secret, user, ttl=3600):
    """Username and password of a time-limited credential (HMAC-SHA1)."""
    username = f"{int(time.time()) + ttl}:{user}"
    mac = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return username, base64.b64encode(mac).decode()


def message_type(method, kind):
    return ((method & 0xF80) << 2 | (method & 0x070) << 1 | method & 0x00F
            | (kind & 2) << 7 | (kind & 1) << 4)


def xor_address(address, transaction):
    host, port = address[0], address[1]
    packed = ipaddress.ip_address(host).packed
    mask = struct.pack("!I", MAGIC) + transaction
    masked = bytes(a ^ b for a, b in zip(packed, mask))
    return struct.pack("!BBH", 0, 1 if len(packed) == 4 else 2, port ^ MAGIC >> 16) + masked


def plain_address(value, transaction):
    _, family, port = struct.unpack("!BBH", value[:4])
    if (family, len(value)) not in ((1, 8), (2, 20)):
        raise ValueError(f"address attribute with family {family} and {len(value)} bytes")
    mask = struct.pack("!I", MAGIC) + transaction
    packed = bytes(a ^ b for a, b in zip(value[4:], mask))
    return str(ipaddress.ip_address(packed)), port ^ MAGIC >> 16


class Message:
    """One STUN message as bytes and as a list of (type, value)."""

    def __init__(self, raw):
        if len(raw) < 20:
            raise ValueError(f"STUN message of {len(raw)} bytes")
        kind, length, cookie = struct.unpack("!HHI", raw[:8])
        if cookie != MAGIC or length != len(raw) - 20 or length % 4 or kind & 0xC000:
            raise ValueError(f"not a STUN message: {raw[:20].hex()} ({len(raw)} bytes)")
        self.raw = raw
        self.method = kind & 0x000F | (kind & 0x00E0) >> 1 | (kind & 0x3E00) >> 2
        self.kind = (kind & 0x0100) >> 7 | (kind & 0x0010) >> 4
        self.transaction = raw[8:20]
        self.attributes = []
        self.integrity_at = None
        at = 20
        while at < len(raw):
            attribute, size = struct.unpack("!HH", raw[at:at + 4])
            if at + 4 + size > len(raw):
                raise ValueError(f"attribute {attribute:#06x} runs past the end of its message")
            if attribute == MESSAGE_INTEGRITY and self.integrity_at is None:
                self.integrity_at = at
            if attribute == FINGERPRINT:
                crc = binascii.crc32(raw[:at]) ^ FINGERPRINT_XOR
                if raw[at + 4:at + 8] != struct.pack("!I", crc):
                    raise ValueError("wrong FINGERPRINT")
            self.attributes.append((attribute, raw[at + 4:at + 4 + size]))
            at += 4 + (size + 3 & ~3)

    def get(self, attribute):
        for known, value in self.attributes:
            if known == attribute:
                return value
        return None

    def address(self, attribute):
        value = self.get(attribute)
        if value is None:
            raise ValueError(f"answer lacks attribute {attribute:#06x}")
        return plain_address(value, self.transaction)

    def error(self):
        value = self.get(ERROR_CODE)
        if value is None or len(value) < 4:
            raise ValueError("error response without ERROR-CODE")
        return value[2] * 100 + value[3], value[4:].decode("utf-8", "replace")

    def signed_by(self, key):
        if self.integrity_at is None:
            return False
        at = self.integrity_at
        head = self.raw[:2] + struct.pack("!H", at + 24 - 20) + self.raw[4:at]
        return hmac.compare_digest(hmac.new(key, head, hashlib.sha1).digest(),
                                   self.raw[at + 4:at + 24])


def build(method, kind, attributes, transaction, key=None, fingerprint=False):
    """The bytes of a message; an attribute given as (host, port) is XORed here."""
    attributes = [(a, xor_address(v, transaction) if isinstance(v, tuple) else v)
                  for a, v in attributes]
    body = b"".join(struct.pack("!HH", a, len(v)) + v + bytes(-len(v) % 4) for a, v in attributes)

    def head(length):
        return struct.pack("!HHI", message_type(method, kind), length, MAGIC) + transaction
    if key is not None:
        mac = hmac.new(key, head(len(body) + 24) + body, hashlib.sha1).digest()
        body += struct.pack("!HH", MESSAGE_INTEGRITY, 20) + mac
    if fingerprint:
        crc = binascii.crc32(head(len(body) + 8) + body) ^ FINGERPRINT_XOR
        body += struct.pack("!HHI", FINGERPRINT, 4, crc)
    return head(len(body)) + body


class TurnClient:
    """One socket, at most one allocation."""

    def __init__(self, server, user=None, password=None, transport="udp", timeout=3.0, bind=None):
        self.server = server
        self.user, self.password = user, password
        self.transport, self.timeout = transport, timeout
        self.realm = self.nonce = self.key = None
        self.buffer = b""
        self.arrived = collections.deque()
        self.hop_limit = None
        self.traffic_class = None    # of the last datagram: DSCP and ECN
        self.icmp_errors = collections.deque()       # (peer, type, code, error data)
        self.strangers = []          # sources of datagrams that are not the server
        self.channels = {}
        family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
        self.socket = socket.socket(family, kind)
        if bind:
            self.socket.bind(bind)
        if transport == "tcp":
            self.socket.settimeout(timeout)
            try:
                self.socket.connect(server)
            except OSError:
                self.socket.close()
                raise
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        elif family == socket.AF_INET:
            self.socket.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
            self.socket.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
        else:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    # --- bytes ---------------------------------------------------------

    def _transmit(self, raw):
        if self.transport == "tcp":
            self.socket.sendall(raw + bytes(-len(raw) % 4))
        else:
            # Never connected: a connected socket would hide a reply that
            # comes from the wrong address.
            self.socket.sendto(raw, self.server)

    def _receive(self, deadline):
        """The next whole message or ChannelData, or None at the deadline."""
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self.socket.settimeout(left)
            try:
                if self.transport == "udp":
                    raw, notes, _, source = self.socket.recvmsg(65536, 256)
                    if (source[0], source[1]) != tuple(self.server[:2]):
                        self.strangers.append(source)
                        continue
                    for level, kind, value in notes:
                        if (level, kind) in ((socket.IPPROTO_IP, socket.IP_TTL),
                                             (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT)):
                            self.hop_limit = struct.unpack("i", value[:4])[0]
                        elif (level, kind) in ((socket.IPPROTO_IP, socket.IP_TOS),
                                               (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)):
                            self.traffic_class = value[0]
                    return raw
                if len(self.buffer) >= 4:
                    first, length = struct.unpack("!HH", self.buffer[:4])
                    channel_data = first & 0xC000 == 0x4000
                    size = 4 + length if channel_data else 20 + length
                    padded = size + 3 & ~3
                    if len(self.buffer) >= padded:
                        raw, self.buffer = self.buffer[:size], self.buffer[padded:]
                        return raw
                more = self.socket.recv(65536)
                if not more:
                    raise ConnectionError("the server closed the TCP connection")
                self.buffer += more
            except TimeoutError:
                return None

    def _take(self, raw):
        """Keeps relayed data for `receive`; returns a message that is an answer."""
        first, length = struct.unpack("!HH", raw[:4])
        if first & 0xC000 == 0x4000:
            if length > len(raw) - 4:
                raise ValueError(f"ChannelData says {length} bytes and has {len(raw) - 4}")
            self.arrived.append(Received(self.channels.get(first), raw[4:4 + length], first))
            return None
        message = Message(raw)
        if (message.method, message.kind) == (DATA, INDICATION) and message.get(ICMP) is not None:
            reserved, type_and_code, data = struct.unpack("!HHI", message.get(ICMP))
            if reserved or message.get(DATA_ATTRIBUTE) is not None:
                raise ValueError(f"an ICMP indication with {message.attributes}")
            self.icmp_errors.append((message.address(XOR_PEER_ADDRESS), type_and_code >> 9, type_and_code & 511, data))
            return None
        if (message.method, message.kind) == (DATA, INDICATION):
            self.arrived.append(Received(message.address(XOR_PEER_ADDRESS),
                                         message.get(DATA_ATTRIBUTE), None))
            return None
        return message

    # --- transactions --------------------------------------------------

    def transact(self, method, attributes, key=None):
        """Sends one request, with retransmissions over UDP; returns its answer."""
        transaction = os.urandom(12)
        raw = build(method, REQUEST, attributes, transaction, key)
        end = time.monotonic() + self.timeout
        wait = 0.5
        while time.monotonic() < end:
            self._transmit(raw)
            until = end if self.transport == "tcp" else min(end, time.monotonic() + wait)
            wait *= 2
            while (received := self._receive(until)) is not None:
                answer = self._take(received)
                if answer is not None and answer.transaction == transaction:
                    return answer
        others = f"; datagrams came from {self.strangers}" if self.strangers else ""
        raise NoAnswer(f"no answer to method {method:#05x} from {self.server[0]} port "
                       f"{self.server[1]} over {self.transport} within {self.timeout} s{others}")

    def request(self, method, attributes):
        """An authenticated request; follows 401 and 438 once each."""
        for _ in range(3):
            extra = []
            if self.key:
                extra = [(USERNAME, self.user.encode()), (REALM, self.realm), (NONCE, self.nonce)]
            answer = self.transact(method, attributes + extra, self.key)
            if answer.kind == SUCCESS:
                if not self.key or not answer.signed_by(self.key):
                    raise ValueError(f"success for method {method:#05x} is not signed with our key")
                return answer
            code, reason = answer.error()
            if not (code == 401 and self.key is None or code == 438):
                raise Refused(method, code, reason)
            self.nonce = answer.get(NONCE)
            self.realm = answer.get(REALM) or self.realm
            if not self.nonce or self.realm is None:
                raise ValueError(f"{code} without NONCE and REALM")
            self.key = hashlib.md5(
                f"{self.user}:{self.realm.decode()}:{self.password}".encode()).digest()
        raise ValueError("the server keeps refusing its own nonces")

    def binding(self):
        """Our address as the server sees it."""
        answer = self.transact(BINDING, [])
        if answer.kind != SUCCESS:
            raise Refused(BINDING, *answer.error())
        return answer.address(XOR_MAPPED_ADDRESS)

    def allocate(self, family=None, lifetime=None, extra=()):
        attributes = [(REQUESTED_TRANSPORT, UDP_PROTOCOL), *extra]
        if family:
            attributes.append((REQUESTED_ADDRESS_FAMILY, family))
        if lifetime is not None:
            attributes.append((LIFETIME, struct.pack("!I", lifetime)))
        answer = self.request(ALLOCATE, attributes)
        self.relayed = answer.address(XOR_RELAYED_ADDRESS)
        self.mapped = answer.address(XOR_MAPPED_ADDRESS)
        self.lifetime = struct.unpack("!I", answer.get(LIFETIME))[0]
        return self.relayed

    def refresh(self, lifetime):
        answer = self.request(REFRESH, [(LIFETIME, struct.pack("!I", lifetime))])
        return struct.unpack("!I", answer.get(LIFETIME))[0]

    def permit(self, *peers):
        self.request(CREATE_PERMISSION, [(XOR_PEER_ADDRESS, peer) for peer in peers])

    def bind_channel(self, number, peer):
        self.request(CHANNEL_BIND, [(CHANNEL_NUMBER, struct.pack("!HH", number, 0)),
                                    (XOR_PEER_ADDRESS, peer)])
        self.channels[number] = peer

    # --- data ----------------------------------------------------------

    def send(self, peer, payload, dont_fragment=False):
        """A Send indication."""
        attributes = [(XOR_PEER_ADDRESS, peer), (DATA_ATTRIBUTE, payload)]
        if dont_fragment:
            attributes.append((DONT_FRAGMENT, b""))
        self._transmit(build(SEND, INDICATION, attributes, os.urandom(12)))

    def send_channel(self, number, payload):
        self._transmit(struct.pack("!HH", number, len(payload)) + payload)

    def mark(self, traffic_class):
        """What is sent from now on has this DSCP and ECN."""
        if self.socket.family == socket.AF_INET:
            self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, traffic_class)
        else:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, traffic_class)

    def icmp_error(self, timeout=3.0):
        """The next ICMP error that the server tells of, or None."""
        deadline = time.monotonic() + timeout
        while not self.icmp_errors:
            raw = self._receive(deadline)
            if raw is None:
                return None
            self._take(raw)
        return self.icmp_errors.popleft()

    def receive(self, timeout=3.0):
        """The next relayed payload, or None."""
        deadline = time.monotonic() + timeout
        while not self.arrived:
            raw = self._receive(deadline)
            if raw is None:
                return None
            self._take(raw)
        return self.arrived.popleft()
