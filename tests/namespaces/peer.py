"""One WebRTC peer (aiortc) in its own process, so that it lives in one namespace.

The runner speaks with it in lines of JSON. First line in: what to do. The
offerer writes its offer and reads the answer, the answerer the other way
round. The offerer then sends random blocks over a data channel, the answerer
sends them back, and both write a last line: connected or not, over which pair
of candidates, how many bytes, and their SHA-256.
"""

import asyncio
import hashlib
import json
import logging
import os
import sys

from aiortc import (RTCConfiguration, RTCIceServer, RTCIceTransportPolicy, RTCPeerConnection,
                    RTCSessionDescription)

BLOCK = 4096


def say(**what):
    print(json.dumps(what), flush=True)


async def hear():
    line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    if not line:
        raise SystemExit("the runner is gone")
    return json.loads(line)


def selected_pair(connection):
    """Types and addresses of the candidate pair in use: aiortc has no public
    call for it, so this looks where aioice keeps the nominated pair."""
    pair = connection.sctp.transport.transport._connection._nominated.get(1)
    if pair is None:
        return None
    return {"local": pair.local_candidate.type, "remote": pair.remote_candidate.type,
            "local_address": pair.local_addr, "remote_address": pair.remote_addr}


async def main():
    task = await hear()
    blocks, seconds = task["blocks"], task["seconds"]
    offers = task["role"] == "offer"
    servers = [RTCIceServer(**server) for server in task["ice_servers"]]
    connection = RTCPeerConnection(RTCConfiguration(
        iceServers=servers, iceTransportPolicy=RTCIceTransportPolicy(task["policy"])))
    received = hashlib.sha256()
    done = asyncio.Event()
    count = 0

    def listen(channel):
        @channel.on("message")
        def on_message(block):
            nonlocal count
            received.update(block)
            count += len(block)
            if not offers:
                channel.send(block)
            if count >= blocks * BLOCK:
                done.set()

    if offers:
        channel = connection.createDataChannel("echo")
        listen(channel)
        opened = asyncio.Event()
        channel.on("open", opened.set)
        await connection.setLocalDescription(await connection.createOffer())
    else:
        connection.on("datachannel", listen)
        await connection.setRemoteDescription(RTCSessionDescription((await hear())["sdp"], "offer"))
        await connection.setLocalDescription(await connection.createAnswer())
    candidates = [line.split(" ", 1)[0][2:] + " " + line.split(" ", 1)[1]
                  for line in connection.localDescription.sdp.splitlines()
                  if line.startswith("a=candidate")]
    say(sdp=connection.localDescription.sdp, candidates=candidates)

    sent = hashlib.sha256()
    problem = ""
    try:
        async with asyncio.timeout(seconds):
            if offers:
                answer = await hear()
                await connection.setRemoteDescription(
                    RTCSessionDescription(answer["sdp"], "answer"))
                await opened.wait()
                for _ in range(blocks):
                    block = os.urandom(BLOCK)
                    sent.update(block)
                    channel.send(block)
            await done.wait()
            # The last echo must still leave: wait for the runner before closing.
    except TimeoutError:
        problem = (f"after {seconds} s: ICE {connection.iceConnectionState}, "
                   f"connection {connection.connectionState}")
    say(connected=done.is_set(), problem=problem, bytes=count, sha256=received.hexdigest(),
        sent_sha256=sent.hexdigest(), pair=selected_pair(connection))
    await hear()
    # Deletes the allocation; a peer without a path must not wait for it for long.
    try:
        await asyncio.wait_for(connection.close(), 4)
    except TimeoutError:
        pass


if os.environ.get("PEER_DEBUG"):
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
asyncio.run(main())
os._exit(0)
