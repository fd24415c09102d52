"""Connects to itself with aiortc and a credential minted here, and shows the relayed addresses that it was given.

    pip install aiortc
    python ice_servers.py turn:203.0.113.7:3478?transport=udp SECRET
"""

import asyncio
import sys

from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection
from clients.turn_credentials import mint


async def main(url: str, secret: str) -> None:
    username, password = mint(secret, "example")
    servers = [RTCIceServer(urls=url, username=username, credential=password)]
    caller, callee = (RTCPeerConnection(RTCConfiguration(iceServers=servers)) for _ in range(2))
    received = asyncio.get_running_loop().create_future()

    @callee.on("datachannel")
    def on_datachannel(channel):
        channel.on("message", received.set_result)

    channel = caller.createDataChannel("check")
    channel.on("open", lambda: channel.send("hello"))
    await caller.setLocalDescription(await caller.createOffer())
    await callee.setRemoteDescription(caller.localDescription)
    await callee.setLocalDescription(await callee.createAnswer())
    await caller.setRemoteDescription(callee.localDescription)
    try:
        print("received:", await asyncio.wait_for(received, 20))
        relayed = [line for line in caller.localDescription.sdp.splitlines() if " typ relay" in line]
        print("\n".join(relayed) or "no relayed address: is the URL right, and the secret the server's?")
        # aiortc takes the best pair there is; on one machine that is a direct one. Two machines behind symmetric NATs use the relay.
    finally:
        await caller.close()
        await callee.close()


asyncio.run(main(*sys.argv[1:3]))
