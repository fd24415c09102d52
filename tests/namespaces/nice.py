"""One end of a call with libnice, the counterpart of numbered.py: the same lines of JSON and the same numbered messages.

libnice is ICE alone, so the messages are datagrams of their own, without DTLS and SCTP, and the other end is libnice too.
It knows servers by address: `turn:` with `transport=tcp` becomes NICE_RELAY_TYPE_TURN_TCP, `turns:` becomes
NICE_RELAY_TYPE_TURN_TLS, which is plain TURN over TCP too in its mode for RFC 5245 (0.1.21). Debian's library is called by ctypes, since its introspection lacks nice_agent_attach_recv.
"""

import ctypes
import json
import re
import socket
import sys
import threading
import time

POLL, CLOSES_WITHIN = 0.05, 5.0
COMPONENT = 1
RFC5245, READY, TRUE, FALSE = 0, 4, 1, 0
UDP, TCP, TLS = 0, 1, 2          # NiceRelayType

glib = ctypes.CDLL("libglib-2.0.so.0")
gobject = ctypes.CDLL("libgobject-2.0.so.0")
libnice = ctypes.CDLL("libnice.so.10")

Gathered = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p)
StateChanged = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)
Received = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint,
                            ctypes.POINTER(ctypes.c_char), ctypes.c_void_p)
Closed = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
pointer, unsigned, text = ctypes.c_void_p, ctypes.c_uint, ctypes.c_char_p
for function, answer, arguments in (
        (glib.g_main_loop_new, pointer, [pointer, ctypes.c_int]), (glib.g_main_loop_run, None, [pointer]),
        (glib.g_free, None, [pointer]), (gobject.g_object_unref, None, [pointer]),
        (gobject.g_object_set, None, None),
        (gobject.g_signal_connect_data, ctypes.c_ulong, [pointer, text, pointer, pointer, pointer, ctypes.c_int]),
        (libnice.nice_agent_new, pointer, [pointer, ctypes.c_int]),
        (libnice.nice_agent_add_stream, unsigned, [pointer, unsigned]),
        (libnice.nice_agent_set_stream_name, ctypes.c_int, [pointer, unsigned, text]),
        (libnice.nice_agent_set_relay_info, ctypes.c_int,
         [pointer, unsigned, unsigned, text, unsigned, text, text, ctypes.c_int]),
        (libnice.nice_agent_attach_recv, ctypes.c_int, [pointer, unsigned, unsigned, pointer, pointer, pointer]),
        (libnice.nice_agent_gather_candidates, ctypes.c_int, [pointer, unsigned]),
        (libnice.nice_agent_generate_local_sdp, pointer, [pointer]),
        (libnice.nice_agent_parse_remote_sdp, ctypes.c_int, [pointer, text]),
        (libnice.nice_agent_close_async, None, [pointer, pointer, pointer]),
        (libnice.nice_agent_send, ctypes.c_int, [pointer, unsigned, unsigned, unsigned, text])):
    function.restype, function.argtypes = answer, arguments


def say(**what):
    print(json.dumps(what), flush=True)


def hear():
    line = sys.stdin.readline()
    if not line:
        raise SystemExit("the runner is gone")
    return json.loads(line)


def check(holds, what):
    if not holds:
        raise SystemExit(f"libnice: {what}")


def message(number, size):
    return number.to_bytes(4, "big") + bytes(number * 31 + at * 7 & 255 for at in range(4, size))


def relay_of(url):
    """Address, port and NiceRelayType."""
    scheme, host, port, transport = re.fullmatch(r"(turns?):([^:?]+):(\d+)(?:\?transport=(\w+))?", url).groups()
    kind = TLS if scheme == "turns" else TCP if transport == "tcp" else UDP
    return socket.gethostbyname(host).encode(), int(port), kind


class End:
    def __init__(self, task):
        self.task = task
        self.gathered, self.opened = threading.Event(), threading.Event()
        self.early = []
        self.seen, self.received, self.repeated, self.wrong, self.sent, self.state = set(), 0, 0, 0, 0, 0
        self.agent = pointer(libnice.nice_agent_new(None, RFC5245))
        for name, value in ((b"force-relay", TRUE), (b"upnp", FALSE), (b"controlling-mode", task["role"] == "offer")):
            gobject.g_object_set(self.agent, text(name), ctypes.c_int(value), pointer(None))
        # Python must keep what C calls.
        self.called = (Gathered(lambda *_: self.gathered.set()), StateChanged(self.on_state), Received(self.take))
        for signal, function in zip((b"candidate-gathering-done", b"component-state-changed"), self.called):
            gobject.g_signal_connect_data(self.agent, signal, ctypes.cast(function, pointer), None, None, 0)
        self.stream = libnice.nice_agent_add_stream(self.agent, COMPONENT)
        check(self.stream, "no stream")
        check(libnice.nice_agent_set_stream_name(self.agent, self.stream, b"application"), "no name for the stream")
        for server in task["iceServers"]:
            host, port, kind = relay_of(server["urls"])
            check(libnice.nice_agent_set_relay_info(
                self.agent, self.stream, COMPONENT, host, port, server["username"].encode(),
                server["credential"].encode(), kind), f"the server {server['urls']} is not taken")
        check(libnice.nice_agent_attach_recv(
            self.agent, self.stream, COMPONENT, None, ctypes.cast(self.called[2], pointer), None), "nothing is received")

    def on_state(self, _agent, _stream, _component, state, _data):
        self.state = state
        if state == READY:
            self.opened.set()
            for early in self.early:
                self.transmit(early)
            self.early.clear()

    def take(self, _agent, _stream, _component, length, buffer, _data):
        data = buffer[:length]
        number = int.from_bytes(data[:4], "big")
        expected = message(number, self.task["size"])
        self.received += 1
        self.wrong += data != expected
        self.repeated += number in self.seen
        self.seen.add(number)
        # The other end may be ready first; both this and on_state run in the loop's thread.
        if self.task["role"] == "answer" and not self.opened.is_set():
            self.early.append(expected)
        elif self.task["role"] == "answer":
            self.transmit(expected)

    def transmit(self, data):
        sent = libnice.nice_agent_send(self.agent, self.stream, COMPONENT, len(data), data)
        if sent != len(data):
            print(f"nice_agent_send: {sent} of {len(data)} bytes", file=sys.stderr)

    def describe(self):
        check(libnice.nice_agent_gather_candidates(self.agent, self.stream), "nothing is gathered")
        self.gathered.wait()
        own = pointer(libnice.nice_agent_generate_local_sdp(self.agent))
        sdp = ctypes.cast(own, text).value.decode()
        glib.g_free(own)
        say(sdp=sdp, errors=[], candidates=[line[2:] for line in sdp.splitlines() if line.startswith("a=candidate")])

    def accept(self, sdp):
        check(libnice.nice_agent_parse_remote_sdp(self.agent, sdp.encode()) >= 0, f"not understood: {sdp}")

    def send(self):
        began = time.monotonic()
        for number in range(self.task["count"]):
            time.sleep(max(0, began + number * self.task["everyMs"] / 1000 - time.monotonic()))
            self.transmit(message(number, self.task["size"]))
            self.sent += 1

    def result(self):
        return {"sent": self.sent, "received": self.received, "repeated": self.repeated, "wrong": self.wrong,
                "state": self.state, "missing": [n for n in range(self.task["count"]) if n not in self.seen]}

    def close(self):
        """Gives the allocation back first."""
        closed = threading.Event()
        done = Closed(lambda *_: closed.set())
        libnice.nice_agent_close_async(self.agent, ctypes.cast(done, pointer), None)
        check(closed.wait(CLOSES_WITHIN), "the allocation is not given back")
        gobject.g_object_unref(self.agent)


def call(task):
    end = End(task)
    try:
        if task["role"] == "offer":
            end.describe()
            heard = hear()
            if heard.get("over"):
                return
            end.accept(heard["sdp"])
        else:
            heard = hear()
            end.describe()
            end.accept(heard["sdp"])
        end.opened.wait()
        say(opened=True)
        if task["role"] == "offer":
            end.send()
        until = time.monotonic() + task["seconds"]
        while end.result()["missing"] and time.monotonic() < until:
            time.sleep(POLL)
        say(**end.result())
        hear()
    finally:
        end.close()


def main():
    loop = glib.g_main_loop_new(None, FALSE)
    threading.Thread(target=glib.g_main_loop_run, args=(loop,), daemon=True).start()
    say(ready="libnice")
    while True:
        call(hear())
        say(closed=True)


main()
