"""What goes on in the network of a machine of the test's own: calls whose packets are numbered."""

import ctypes
import json
import os
import socket
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "namespaces"))

import turnclient
from machine import check

PORT = 3478


def begin_in_network(machine, act):
    """Begins something in the machine's network; gives what waits for its end and gives what it returned."""
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with open(f"/proc/{machine.init}/ns/net", encoding="utf-8") as network:
                check(ctypes.CDLL(None, use_errno=True).setns(network.fileno(), 0) == 0, "setns")
            answer = {"value": act()}
        except Exception as error:  # pylint: disable=broad-except; the parent tells it
            answer = {"error": repr(error)}
        os.write(sink, json.dumps(answer).encode())
        os._exit(0)
    os.close(sink)

    def end():
        with os.fdopen(source) as pipe:
            answer = json.loads(pipe.read())
        os.waitpid(child, 0)
        check("error" not in answer, answer.get("error"))
        return answer["value"]

    return end


def in_network(machine, act):
    """Does something in the machine's network; gives what it returned."""
    return begin_in_network(machine, act)()


def numbered(transport, goes_on, host="127.0.0.1", login=("alice", "wonderland")):
    """A call of numbered packets from a peer to a client while a file is there: how many were sent, and which did not arrive."""
    sent, arrived = 0, set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer, \
            turnclient.TurnClient((host, PORT), *login, transport) as client:
        peer.bind((host, 0))
        relayed = client.allocate()
        client.bind_channel(0x4001, peer.getsockname())

        def take(timeout):
            if data := client.receive(timeout):
                arrived.add(int.from_bytes(data[1], "big"))
            return data

        while os.path.exists(goes_on):
            peer.sendto(sent.to_bytes(4, "big"), relayed)
            sent += 1
            take(0.01)
            time.sleep(0.005)
        while len(arrived) < sent and take(2.0):
            pass
        client.refresh(0)
    return sent, [number for number in range(sent) if number not in arrived]
