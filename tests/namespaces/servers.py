"""The server under test as a variable.

`start` takes a binary and a `Setup` and gives back a running server. A binary
called `turnserver` is coturn, anything else is started as `throughway serve`;
so the same cases can be run against both, which shows that a failing case
speaks of the server and not of the case.
"""

import contextlib
import ctypes
import dataclasses
import http.client
import json
import os
import signal
import subprocess
import time

import turnclient

REALM = "throughway"
READY_WITHIN = 15.0
STOPPED_WITHIN = 8.0


@dataclasses.dataclass
class Setup:
    """What a case asks of the server, in no server's own words."""
    udp: list
    tcp: list
    relay: list
    external: str = ""
    workers: int = 1
    ports: str = "49152-65535"
    users: dict = dataclasses.field(default_factory=lambda: {"alice": "wonderland"})
    secret: str = ""
    allow: list = dataclasses.field(default_factory=list)
    http: str = "127.0.0.1:8080"
    tls: list = dataclasses.field(default_factory=list)
    certificate: str = ""
    private_key: str = ""
    mobility: bool = False
    tcp_relay: bool = False
    # Of throughway alone: further lines of [auth] and [http], further tables, the log's level.
    auth: str = ""
    http_more: str = ""
    tables: str = ""
    level: str = "info"

# Labels of the payload metrics, and the name the same flow has in a session record.
BOOKS = {("received", "clients"): "from_client", ("sent", "peers"): "to_peers",
         ("received", "peers"): "from_peers", ("sent", "clients"): "to_client"}
LOG_LINE_MAX = 400


class CannotStart(Exception):
    pass


def _quoted(items):
    return "[" + ", ".join(f'"{item}"' for item in items) + "]"


def throughway_config(setup):
    users = ", ".join(f'"{name}" = "{word}"' for name, word in setup.users.items())
    external = f'external = "{setup.external}"\n' if setup.external else ""
    tls = ""
    if setup.tls:
        tls = (f'tls = {_quoted(setup.tls)}\n'
               f'[tls]\ncertificate = "{setup.certificate}"\nprivate_key = "{setup.private_key}"\n')
    secret = f'[[auth.secrets]]\nid = "test"\nvalue = "{setup.secret}"\n' if setup.secret else ""
    return f"""realm = "{REALM}"
workers = {setup.workers}
[listen]
udp = {_quoted(setup.udp)}
tcp = {_quoted(setup.tcp)}
{tls}[relay]
addresses = {_quoted(setup.relay)}
{external}ports = "{setup.ports}"
mobility = {"true" if setup.mobility else "false"}
tcp = {"true" if setup.tcp_relay else "false"}
[auth]
users = {{ {users} }}
{setup.auth}{secret}[peers]
allow = {_quoted(setup.allow)}
[http]
listen = "{setup.http}"
{setup.http_more}[log]
level = "{setup.level}"
session_lines_per_user = 0
{setup.tables}"""


def split(address):
    """`host:port` or `[host]:port` in two."""
    host, port = address.rsplit(":", 1)
    return host.strip("[]"), int(port)


def coturn_arguments(setup, directory):
    hosts = {split(a)[0] for a in setup.udp + setup.tcp}
    ports = {split(a)[1] for a in setup.udp + setup.tcp}
    if len(ports) != 1:
        raise CannotStart("coturn listens on one port for all its addresses")
    low, high = setup.ports.split("-")
    arguments = ["-n", "--no-cli", "--no-dtls", "--no-rfc5780", "--log-file", "stdout",
                 "--simple-log", "--pidfile", os.path.join(directory, "coturn.pid"),
                 "-b", os.path.join(directory, "turndb"), "-r", REALM, "-p", str(ports.pop()),
                 "-m", str(setup.workers), "--min-port", low, "--max-port", high,
                 "--allocation-default-address-family=ipv4"]
    if setup.mobility:
        arguments += ["--mobility"]
    if setup.tls:
        arguments += ["--tls-listening-port", str(split(setup.tls[0])[1]),
                      "--cert", setup.certificate, "--pkey", setup.private_key]
    else:
        arguments += ["--no-tls"]
    for host in sorted(hosts):
        # coturn has no wildcard of its own: without -L it takes every address it finds.
        if host not in ("0.0.0.0", "::"):
            arguments += ["-L", host]
    for host in setup.relay:
        arguments += ["-E", host]
    if setup.external:
        arguments += ["-X", f"{setup.external}/{setup.relay[0]}"]
    if setup.secret:
        arguments += ["--use-auth-secret", f"--static-auth-secret={setup.secret}"]
    else:
        arguments += ["-a"]
        for name, word in setup.users.items():
            arguments += ["-u", f"{name}:{word}"]
    if any(a.startswith(("127.", "::1")) for a in setup.allow):
        arguments += ["--allow-loopback-peers"]
    return arguments


def die_with_parent():
    """In a child before exec: end when the runner ends, however it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Server:
    """A running server; `stop` always ends it."""

    def __init__(self, binary, setup, directory, inside=contextlib.nullcontext, child=die_with_parent, log_directory=None):
        self.setup, self.inside, self.directory = setup, inside, directory
        self.is_coturn = os.path.basename(binary) == "turnserver"
        self.log_path = os.path.join(log_directory or directory, f"server-{time.monotonic_ns()}.log")
        if self.is_coturn:
            command = [binary, *coturn_arguments(setup, directory)]
        else:
            command = [binary, "serve", "--config", self._write(throughway_config(setup))]
        with open(self.log_path, "wb") as log, inside():
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, preexec_fn=child, cwd=directory)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _write(self, text):
        config = os.path.join(self.directory, "config.toml")
        with open(config, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(text)
        return config

    def reload(self, setup=None, text=None, within=5.0):
        """SIGHUP, with another configuration if there is one; returns the log line that answers it."""
        if setup or text is not None:
            self._write(text if text is not None else throughway_config(setup))
        known = len(self._reloads())
        self.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + within
        while len(lines := self._reloads()) == known:
            if time.monotonic() > end:
                raise AssertionError(f"no answer to SIGHUP within {within} s; {self.log()}")
            time.sleep(0.02)
        return lines[-1]

    def _reloads(self):
        return [line["message"] for line in self.events() if line["message"].startswith("reload:")]

    def events(self, message=None):
        """The log's lines, or those with this message."""
        with open(self.log_path, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file if line.startswith("{") and line.endswith("\n")]
        return [line for line in lines if message in (None, line["message"])]

    def kill(self):
        """kill -9: no line, no record, no file is finished."""
        self.process.kill()
        self.process.wait()

    def _wait(self):
        end = time.monotonic() + READY_WITHIN
        problem = "nothing was tried"
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise CannotStart(f"the server ended with {self.process.returncode}: {self.log()}")
            try:
                if self.is_coturn:
                    self._probe()
                    return
                status, body = self.get("/readyz")
                if status == 200:
                    return
                problem = f"/readyz answers {status} {body[:200]!r}"
            except (OSError, http.client.HTTPException, turnclient.NoAnswer) as error:
                problem = str(error)
            time.sleep(0.05)
        raise CannotStart(f"the server is not ready within {READY_WITHIN} s: {problem}; {self.log()}")

    def _probe(self):
        host, port = split((self.setup.udp or self.setup.tcp)[0])
        with self.inside():
            with turnclient.TurnClient((self.setup.relay[0] if host == "0.0.0.0" else host, port),
                                       transport="udp" if self.setup.udp else "tcp",
                                       timeout=0.5) as client:
                client.binding()

    def get(self, path):
        host, port = split(self.setup.http)
        with self.inside():
            connection = http.client.HTTPConnection(host, port, timeout=3)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode("utf-8", "replace")
            finally:
                connection.close()

    def metrics(self):
        """Every sample of /metrics, labels included in the name; {} for coturn."""
        if self.is_coturn:
            return {}
        status, body = self.get("/metrics")
        if status != 200:
            raise AssertionError(f"/metrics answers {status} {body[:200]!r}")
        samples = {}
        for line in body.splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                samples[name] = float(value)
        return samples

    def stop_and_check_books(self):
        """Ends a quiet server; its session records and its metrics must then tell
        the same: every allocation one record, and the four sums equal to the packet."""
        if self.is_coturn:
            self.stop()
            return
        before, end = None, time.monotonic() + 3
        while (now := self._payload()) != before and time.monotonic() < end:
            before = now
            time.sleep(0.05)
        created = self.metrics()["throughway_allocations_created_total"]
        status = self.stop()
        if status != 0:
            raise AssertionError(f"SIGTERM ended the server with {status}")
        records = self.events("session ended")
        if len(records) != created:
            raise AssertionError(f"{created:.0f} allocations made, {len(records)} sessions recorded")
        for (way, side), name in BOOKS.items():
            for unit in ("packets", "bytes"):
                recorded = sum(record[f"{unit}_{name}"] for record in records)
                if recorded != now[way, side, unit]:
                    raise AssertionError(f"{unit} {way} {side}: {now[way, side, unit]:.0f} by the"
                                         f" metrics, {recorded} by the session records")

    def _payload(self):
        samples = self.metrics()
        return {(way, side, unit):
                samples[f'throughway_payload_{unit}_total{{way="{way}",side="{side}"}}']
                for way, side in BOOKS for unit in ("packets", "bytes")}

    def alive(self):
        return self.process.poll() is None

    def log(self, lines=12):
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return "server log:\n" + "\n".join(
                "    | " + line.rstrip()[:LOG_LINE_MAX] for line in file.readlines()[-lines:])

    def stop(self):
        """Ends the server by its own process id; returns its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOPPED_WITHIN)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
