"""Counts TURN payload on the wire, apart from either end's word: UDP datagrams on one interface."""

import socket
import struct
import threading
import time

import turnclient

ETH_P_ALL, SO_RCVBUFFORCE = 0x0003, 33
BUFFER = 8 << 20
QUIET = 0.3


class Capture:
    """Payload in ChannelData, Send and Data, exchanged with `port`: `from_client` and `to_client`
    have all bytes, `checks` what of them was STUN between the peers (ICE's checks and keepalives)."""

    def __init__(self, topology, place, interface, port):
        with topology.inside(place):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self.socket.bind((interface, ETH_P_ALL))
        self.socket.settimeout(0.1)
        self.port = port
        self.bytes = {"from_client": 0, "to_client": 0}
        self.checks = {"from_client": 0, "to_client": 0}
        self.problem, self.last = None, time.monotonic()
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.thread.join()
        self.socket.close()

    def _run(self):
        while not self.ending.is_set():
            try:
                self._look(self.socket.recv(65536))
            except TimeoutError:
                pass
            except (ValueError, struct.error) as error:
                self.problem = self.problem or error

    def _look(self, packet):
        if packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_UDP:
            return
        if struct.unpack("!H", packet[6:8])[0] & 0x3FFF:
            raise ValueError("a fragment, which this does not put together")
        datagram = packet[(packet[0] & 15) * 4:]
        source, destination, length = struct.unpack("!HHH", datagram[:6])
        if self.port not in (source, destination):
            return
        way = "from_client" if destination == self.port else "to_client"
        for message in self._messages(datagram[8:length]):
            payload = self._payload(message)
            if payload is not None:
                self.bytes[way] += len(payload)
                if len(payload) >= 20 and payload[0] < 4 and payload[4:8] == struct.pack("!I", turnclient.MAGIC):
                    self.checks[way] += len(payload)
                else:
                    self.last = time.monotonic()

    @staticmethod
    def _messages(piece):
        """Datagrams that leave together are seen here before the device cuts them. Each is one message, whose length
        says where the next one begins; ChannelData over UDP needs no padding, and no client here sends any."""
        while piece:
            if len(piece) < 4:
                raise ValueError(f"not a message: {piece.hex()}")
            first, length = struct.unpack("!HH", piece[:4])
            end = length + (4 if first & 0xC000 == 0x4000 else 20)
            if end > len(piece):
                raise ValueError(f"a message of {end} bytes in {len(piece)}")
            yield piece[:end]
            piece = piece[end:]

    @staticmethod
    def _payload(message):
        first, length = struct.unpack("!HH", message[:4])
        if first & 0xC000 == 0x4000:
            return message[4:4 + length]
        message = turnclient.Message(message)
        if (message.method, message.kind) in ((turnclient.SEND, turnclient.INDICATION),
                                              (turnclient.DATA, turnclient.INDICATION)):
            return message.get(turnclient.DATA_ATTRIBUTE)
        return None

    def quiet(self, within=10.0):
        """Waits until nothing but ICE's checks has passed for a while."""
        end = time.monotonic() + within
        while time.monotonic() - self.last < QUIET:
            if time.monotonic() > end:
                raise AssertionError(f"the wire is not quiet within {within} s")
            time.sleep(0.05)
        if self.problem:
            raise AssertionError(f"the capture is not complete: {self.problem}")

    def data(self):
        """What applications sent, without ICE's checks."""
        return {way: self.bytes[way] - self.checks[way] for way in self.bytes}
