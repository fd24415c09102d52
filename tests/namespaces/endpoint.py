"""aiortc reads what the credential endpoint answers, and gets relayed addresses with it; and so does examples/ice_servers.py
with a credential that it mints.

    target/test-venv/bin/python tests/namespaces/endpoint.py BINARY

On loopback, without namespaces. The last line is `N passed, M failed`.
"""

import asyncio
import hashlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import urllib.request

from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection

EXAMPLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "examples", "ice_servers.py")
KEY = secrets.token_hex(24)
SECRET = "north-of-everything"
CONFIG = f"""
listen.udp = ["127.0.0.1:0"]
listen.tcp = ["127.0.0.1:0"]
relay.addresses = ["127.0.0.1"]
peers.allow = ["127.0.0.0/8"]
log.format = "json"
http.listen = "127.0.0.1:0"
[[http.keys]]
name = "aiortc"
sha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"
[[auth.secrets]]
id = "main"
value = "{SECRET}"
"""


def start(binary, directory):
    """The server and the URL of its endpoint."""
    path = os.path.join(directory, "config.toml")
    with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(CONFIG)
    server = subprocess.Popen([binary, "serve", "--config", path], stderr=subprocess.PIPE, text=True, env={})
    url = None
    for line in server.stderr:
        event = json.loads(line) if line.startswith("{") else {}
        url = event["address"] if event.get("message") == "metrics and health" else url
        if event.get("message") == "ready":
            return server, url
    raise RuntimeError(f"the server ended with {server.wait()}")


def fetch(url, path, method="GET"):
    request = urllib.request.Request(url + path, method=method, headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)


def entries(url):
    """What a reader of each shape would make of it."""
    draft = fetch(url, "/?service=turn&username=alice")
    yield "draft", [{"urls": draft["uris"], "username": draft["username"], "credential": draft["password"]}]
    yield "superset", fetch(url, "/v1/credentials")["iceServers"]
    yield "ice", fetch(url, "/ice")["iceServers"]
    yield "cloudflare", fetch(url, "/v1/turn/keys/x/credentials/generate-ice-servers", "POST")["iceServers"]
    yield "metered", fetch(url, "/api/v1/turn/credentials")


async def call(servers):
    """A message from one connection to another; both must have been given a relayed address."""
    configuration = RTCConfiguration([RTCIceServer(**entry) for entry in servers])
    caller, callee = RTCPeerConnection(configuration), RTCPeerConnection(configuration)
    received = asyncio.get_running_loop().create_future()

    @callee.on("datachannel")
    def on_datachannel(channel):
        channel.on("message", received.set_result)

    channel = caller.createDataChannel("check")
    channel.on("open", lambda: channel.send("hello"))
    try:
        await caller.setLocalDescription(await caller.createOffer())
        await callee.setRemoteDescription(caller.localDescription)
        await callee.setLocalDescription(await callee.createAnswer())
        await caller.setRemoteDescription(callee.localDescription)
        assert await asyncio.wait_for(received, 20) == "hello"
        for connection in (caller, callee):
            relayed = [line for line in connection.localDescription.sdp.splitlines() if " typ relay" in line]
            assert relayed, "no relayed address in\n" + connection.localDescription.sdp
    finally:
        await caller.close()
        await callee.close()


def example(url):
    """The example calls itself, and shows the relayed addresses that it was given."""
    done = subprocess.run([sys.executable, "-B", EXAMPLE, url, SECRET], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "received: hello" in done.stdout and " typ relay" in done.stdout, done.stdout


def main(binary):
    passed = failed = 0
    with tempfile.TemporaryDirectory() as directory:
        server, url = start(binary, directory)
        try:
            cases = [(f"aiortc calls with the shape {name}", lambda servers=servers: asyncio.run(call(servers)))
                     for name, servers in entries(url)]
            turn = fetch(url, "/.well-known/turn")["uris"][0]
            for name, case in [*cases, ("examples/ice_servers.py calls itself", lambda: example(turn))]:
                try:
                    case()
                    passed += 1
                    print(f"ok    {name}")
                except Exception as error:  # each case says what was wrong with it
                    failed += 1
                    print(f"FAIL  {name}: {error!r}")
        finally:
            server.terminate()
            server.wait(10)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


sys.exit(main(sys.argv[1]))
