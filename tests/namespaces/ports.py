"""Ports for servers and peers of tests in the machine's own network."""

import contextlib
import socket

GIVEN = set()


def free_port():
    """A port of 127.0.0.1 and ::1 that is free now for UDP and TCP, and was not given before: its server may not listen yet."""
    for _ in range(100):
        with contextlib.ExitStack() as stack:
            probe = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            try:
                for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        if (family, kind) != (socket.AF_INET, socket.SOCK_DGRAM):
                            stack.enter_context(socket.socket(family, kind)).bind((host, port))
            except OSError:
                continue
        if port not in GIVEN:
            GIVEN.add(port)
            return port
    raise RuntimeError("no port is free for UDP and TCP on 127.0.0.1 and ::1")
