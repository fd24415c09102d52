"""A server under test: started from its description file, probed, ended by its process id."""

import ctypes
import os
import signal
import socket
import subprocess
import time
import tomllib
import urllib.request
from pathlib import Path

from network import PORT, Failed

PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None, use_errno=True)


def in_child(cpu, niceness):
    """Runs between fork and exec: own session, pinned, preferred, and gone when compare goes."""
    def prepare():
        os.setsid()
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.sched_setaffinity(0, {cpu})
        if niceness:
            try:
                os.nice(niceness)
                Path("/proc/self/autogroup").write_text(str(niceness))  # else nice counts only within the session
            except OSError:
                pass  # not root: the run is only noisier
    return prepare


def environment():
    """Without the variables that would change a throughway's configuration."""
    return {key: value for key, value in os.environ.items() if not key.startswith("THROUGHWAY_")}


def stun_answers(address):
    request = b"\x00\x01\x00\x00\x21\x12\xa4\x42" + os.urandom(12)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(0.2)
        try:
            s.connect((address, PORT))
            s.send(request)
            return s.recv(2048)[8:20] == request[8:20]
        except OSError:
            return False


def is_bound(address):
    """The bare forwarder binds its relay sockets first, its listener last."""
    local = "".join(f"{int(byte):02X}" for byte in reversed(address.split("."))) + f":{PORT:04X} "
    tables = "".join(Path(f"/proc/self/net/{name}").read_text() for name in ("udp", "tcp"))
    return f" {local}" in tables


class Server:
    def __init__(self, path, paths):
        try:
            self.spec = tomllib.loads(Path(path).read_text())
            self.name = self.spec["name"]
            self.transports = self.spec["transports"]
        except FileNotFoundError:
            raise SystemExit(f"compare: no description file {path}; benches/load/servers has examples") from None
        except (KeyError, tomllib.TOMLDecodeError) as e:
            raise SystemExit(f"compare: {path}: {e!r}; docs/performance.md explains the format") from None
        self.paths = paths
        self.process = None

    @property
    def bare(self):
        return self.spec.get("protocol", "turn") == "bare"

    def can(self, scenario, setup):
        """A description with fixed addresses is one of loopback."""
        placed = setup == "loopback" or "{listen}" in "".join(self.spec["command"]) + self.spec.get("config", "")
        return placed and scenario.transport in self.transports and (not self.bare or (scenario.bare and (not scenario.pairs or "pairs" in self.spec)))

    def fill(self, text, **more):
        for key, value in {**self.paths, **more}.items():
            text = text.replace("{" + key + "}", str(value))
        return text

    def version(self):
        if "version" not in self.spec:
            return ""
        words = [self.fill(word) for word in self.spec["version"]]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=10, env=environment())
        except OSError as e:
            raise SystemExit(f"compare: {self.name}: {words[0]}: {e.strerror}; install it or leave it out with --servers") from None
        return (done.stdout.strip() or done.stderr.strip()).splitlines()[-1]

    def start(self, directory, network, scenario, seconds, cpu, niceness):
        self.ready_values = dict(
            dir=directory, transport=scenario.transport, sessions=scenario.sessions(), seconds=seconds,
            config=Path(directory) / "config", listen=network.listen, relay=network.relay, allow=network.allow, offload=scenario.offload,
            pairs="yes" if scenario.pairs else "no",
            first_client=network.first_client, first_peer=network.first_peer)
        values = self.ready_values
        if "config" in self.spec:
            values["config"].write_text(self.fill(self.spec["config"], **values))
        words = [self.fill(word, **values) for word in self.spec["command"]]
        self.log = Path(directory) / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory,
                                            env=environment(), preexec_fn=in_child(cpu, niceness))
        until = time.monotonic() + 10
        while not self.is_ready(network):
            if self.process.poll() is not None:
                raise Failed(f"ended with {self.process.returncode} at start: {self.last_words()}")
            if time.monotonic() > until:
                raise Failed(f"not ready within 10 s: {self.last_words()}")
            time.sleep(0.02)

    def is_ready(self, network):
        """Asked from the namespace of the server, which this process is in."""
        how = self.fill(self.spec["ready"], **self.ready_values)
        if how == "stun":
            return stun_answers(network.listen)
        if how == "relay":
            return is_bound(network.listen)
        try:
            with urllib.request.urlopen(how, timeout=0.5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def last_words(self):
        return " / ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:])

    def stop(self):
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def make_certificate(directory):
    """What a server that speaks TLS presents; the generator does not check it."""
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "7",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:10.0.1.1",
             "-keyout", str(Path(directory) / "key.pem"), "-out", str(Path(directory) / "cert.pem")]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"compare: openssl: {done.stderr.strip().splitlines()[-1]}")
