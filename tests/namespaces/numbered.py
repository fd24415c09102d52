"""One end of a call with aiortc, the counterpart of tests/browser/end.mjs: the same lines of JSON,
the same numbered messages over a data channel that repeats nothing and keeps no order."""

import asyncio
import json
import sys
import time

from aiortc import (RTCConfiguration, RTCIceServer, RTCIceTransportPolicy, RTCPeerConnection,
                    RTCSessionDescription)

POLL = 0.05


def say(**what):
    print(json.dumps(what), flush=True)


async def hear():
    line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    if not line:
        raise SystemExit("the runner is gone")
    return json.loads(line)


def message(number, size):
    return number.to_bytes(4) + bytes(number * 31 + at * 7 & 255 for at in range(4, size))


class End:
    def __init__(self, task):
        self.task = task
        self.connection = RTCPeerConnection(RTCConfiguration(
            iceServers=[RTCIceServer(**server) for server in task["iceServers"]],
            iceTransportPolicy=RTCIceTransportPolicy.RELAY))
        self.channel, self.opened = None, asyncio.Event()
        self.seen, self.received, self.repeated, self.wrong, self.sent = set(), 0, 0, 0, 0

    def use(self, channel):
        self.channel = channel
        channel.on("message", self.take)
        if channel.readyState == "open":
            self.opened.set()
        channel.on("open", self.opened.set)

    def take(self, data):
        number = int.from_bytes(data[:4])
        expected = message(number, self.task["size"])
        self.received += 1
        self.wrong += data != expected
        self.repeated += number in self.seen
        self.seen.add(number)
        if self.task["role"] == "answer":
            self.channel.send(expected)

    async def offer(self):
        self.use(self.connection.createDataChannel("numbered", ordered=False, maxRetransmits=0))
        await self.connection.setLocalDescription(await self.connection.createOffer())

    async def answer(self, sdp):
        self.connection.on("datachannel", self.use)
        await self.connection.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
        await self.connection.setLocalDescription(await self.connection.createAnswer())

    def told(self):
        sdp = self.connection.localDescription.sdp
        return {"sdp": sdp, "errors": [], "candidates": [
            line[2:] for line in sdp.splitlines() if line.startswith("a=candidate")]}

    async def send(self):
        began = time.monotonic()
        for number in range(self.task["count"]):
            await asyncio.sleep(began + number * self.task["everyMs"] / 1000 - time.monotonic())
            self.channel.send(message(number, self.task["size"]))
            self.sent += 1

    def result(self):
        return {"sent": self.sent, "received": self.received, "repeated": self.repeated,
                "wrong": self.wrong, "state": self.connection.connectionState,
                "missing": [n for n in range(self.task["count"]) if n not in self.seen]}


async def call(task):
    end = End(task)
    try:
        if task["role"] == "offer":
            await end.offer()
            say(**end.told())
            heard = await hear()
            if heard.get("over"):
                return
            await end.connection.setRemoteDescription(
                RTCSessionDescription(heard["sdp"], "answer"))
        else:
            await end.answer((await hear())["sdp"])
            say(**end.told())
        await end.opened.wait()
        say(opened=True)
        if task["role"] == "offer":
            await end.send()
        until = time.monotonic() + task["seconds"]
        while end.result()["missing"] and time.monotonic() < until:
            await asyncio.sleep(POLL)
        say(**end.result())
        await hear()
    finally:
        await end.connection.close()


async def main():
    say(ready="aiortc")
    while True:
        await call(await hear())
        say(closed=True)


asyncio.run(main())
