"""A container engine for one test: an image as `scripts/package image` makes it, started by the OCI runtime crun.

It starts a container as Docker and Podman do: what the image says (user, environment, command, volumes), namespaces of its own,
no capabilities, no new privileges, the usual filter of system calls, and a network behind a bridge whose ports are published
by address translation. Needs root; all mounts and networks are in namespaces of the process that calls `enter`.
"""

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time

FILTER = "/usr/share/containers/seccomp.json"
OUTSIDE, PEER, PUBLIC = "45.0.0.9", "45.0.0.10", "45.0.0.7"
GATEWAY, INSIDE = "172.17.0.1", "172.17.0.2"
# A busy machine takes long for everything.
READY_WITHIN = 60.0
ENDED_WITHIN = 60.0

# A bridge network as Docker makes one: the ports of the image, published under their own numbers.
RULES = f"""
table ip engine {{
  chain publish {{
    type nat hook prerouting priority dstnat
    ip daddr {PUBLIC} udp dport {{ 3478, 49152-49251 }} dnat to {INSIDE}
    ip daddr {PUBLIC} tcp dport 3478 dnat to {INSIDE}
  }}
  chain leave {{
    type nat hook postrouting priority srcnat
    ip saddr {INSIDE} oifname "eth" masquerade
  }}
}}
"""


def run(*command, **more):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **more)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def enter():
    """Goes on in mounts and a network of its own."""
    if "THROUGHWAY_TEST_ENTERED" not in os.environ:
        os.environ["THROUGHWAY_TEST_ENTERED"] = "yes"
        os.execvp("unshare", ["unshare", "--mount", "--net", "--propagation", "private", sys.executable, *sys.argv])
    del os.environ["THROUGHWAY_TEST_ENTERED"]
    # The runtime wants control groups of one kind, of which it makes none here.
    subprocess.run(["umount", "--recursive", "/sys/fs/cgroup"], check=False, stderr=subprocess.DEVNULL)
    run("mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup")
    run("mount", "-t", "tmpfs", "tmpfs", "/run")


def make_network():
    """We are on the internet, with the peer; the host of the engine is a router in front of the container."""
    for name in ("host", "box"):
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "wan", "type", "veth", "peer", "name", "eth", "netns", "host")
    run("ip", "-n", "host", "link", "add", "docker0", "type", "veth", "peer", "name", "eth0", "netns", "box")
    for where, link, addresses in (((), "wan", (f"{OUTSIDE}/24", f"{PEER}/24")), (("-n", "host"), "eth", (f"{PUBLIC}/24",)),
                                   (("-n", "host"), "docker0", (f"{GATEWAY}/16",)), (("-n", "box"), "eth0", (f"{INSIDE}/16",))):
        for address in addresses:
            run("ip", *where, "address", "add", address, "dev", link)
        run("ip", *where, "link", "set", link, "up")
    run("ip", "-n", "box", "route", "add", "default", "via", GATEWAY)
    run("ip", "netns", "exec", "host", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    run("ip", "netns", "exec", "host", "nft", "-f", "-", input=RULES)


class Image:
    """What `docker load` would read: the configuration, and the files in a directory."""

    def __init__(self, path, directory):
        with gzip.open(path) as file:
            archive = tarfile.open(fileobj=io.BytesIO(file.read()))
        manifest = json.load(archive.extractfile("manifest.json"))[0]
        self.tags = manifest["RepoTags"]
        self.described = json.load(archive.extractfile(manifest["Config"]))
        self.config = self.described["config"]
        self.root = os.path.join(directory, "root")
        self.files = {}
        for layer in manifest["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(layer)) as files:
                self.files.update({entry.name.rstrip("/"): entry for entry in files})
                files.extractall(self.root, numeric_owner=True)
        # A runtime makes these before the root becomes read-only.
        for name in ("dev", "proc", "sys"):
            os.makedirs(os.path.join(self.root, name), exist_ok=True)
        with open(FILTER, encoding="utf-8") as file:
            self.filter = as_runtime_filter(json.load(file))


def as_runtime_filter(profile):
    """The engines' profile for x86-64 or aarch64 and a container without capabilities, in the words of the runtime."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]

    def applies(rule):
        more, less = rule.get("includes") or {}, rule.get("excludes") or {}
        return (not more.get("caps") and machine in (more.get("arches") or [machine])
                and machine not in (less.get("arches") or []))

    keys = ("names", "action", "args", "errnoRet")
    return {"defaultAction": profile["defaultAction"], "defaultErrnoRet": profile.get("defaultErrnoRet", 1),
            "architectures": [f"SCMP_ARCH_{os.uname().machine.upper()}"],
            "syscalls": [{key: rule[key] for key in keys if rule.get(key) is not None} for rule in profile["syscalls"] if applies(rule)]}


class Container:
    """`docker run` in the foreground, and what can be asked about it then."""

    number = 0

    def __init__(self, image, directory, *, environment=None, user=None, command=None, mounts=None, volumes=None):
        """`mounts`: path in the container to file here. `volumes`: path to directory here; those that the image names and
        that are not among them are new and empty, as the engine makes them. An empty dictionary makes none at all."""
        Container.number += 1
        self.image, self.name = image, f"throughway-{Container.number}"
        self.bundle = os.path.join(directory, self.name)
        os.mkdir(self.bundle)
        if volumes is None:
            volumes = {path: new_volume(image, path, self.bundle) for path in image.config["Volumes"]}
        self.user = user or image.config["User"]
        binds = [(path, source, ["rbind", "ro"]) for path, source in (mounts or {}).items()]
        binds += [(path, source, ["rbind", "rw"]) for path, source in volumes.items()]
        self._describe(environment or {}, command or image.config["Cmd"], binds)
        self.log_path = os.path.join(self.bundle, "log")
        self.state = ("--cgroup-manager=disabled", "--root", os.path.join(directory, "state"))
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(["crun", *self.state, "run", "--bundle", self.bundle, self.name],
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _describe(self, environment, command, binds):
        variables = dict(entry.split("=", 1) for entry in self.image.config["Env"]) | environment
        uid, gid = (int(number) for number in self.user.split(":"))
        nothing = {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")}
        mounts = [{"destination": "/proc", "type": "proc", "source": "proc"},
                  {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
                  {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}]
        for path, source, options in binds:
            target = self.image.root + path
            if not os.path.exists(target):
                os.makedirs(os.path.dirname(target), exist_ok=True)
                with open(target, "xb"):
                    pass
            mounts.append({"destination": path, "type": "bind", "source": source, "options": options})
        described = {
            "ociVersion": "1.0.0", "hostname": self.name, "root": {"path": self.image.root, "readonly": True}, "mounts": mounts,
            "process": {"terminal": False, "user": {"uid": uid, "gid": gid}, "cwd": self.image.config.get("WorkingDir") or "/",
                        "args": [*self.image.config["Entrypoint"], *command],
                        "env": [f"{name}={value}" for name, value in variables.items()], "capabilities": nothing,
                        "noNewPrivileges": True},
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
                      + [{"type": "network", "path": "/run/netns/box"}],
                      "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
                      "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
                      "seccomp": self.image.filter}}
        with open(os.path.join(self.bundle, "config.json"), "w", encoding="utf-8") as file:
            json.dump(described, file)

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def events(self, message=None):
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if message in (None, line["message"])]

    def wait_for(self, message, within=READY_WITHIN):
        end = time.monotonic() + within
        while not (found := [line for line in self.events() if line["message"].startswith(message)]):
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"no line {message!r}; the container's status is {self.process.poll()}, its log:\n{self.log()}")
            time.sleep(0.02)
        return found[0]

    def execute(self, *command):
        """`docker exec`: exit code and output."""
        done = subprocess.run(["crun", *self.state, "exec", "--user", self.user, self.name, *command],
                              capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr

    def kill(self, signal):
        run("crun", *self.state, "kill", self.name, signal)

    def ended(self, within=ENDED_WITHIN):
        return self.process.wait(within)

    def metrics(self):
        body = run("ip", "netns", "exec", "box", "curl", "-sS", "--max-time", "5", "http://127.0.0.1:8080/metrics")
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in body.splitlines() if line and line[0] != "#")}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["crun", *self.state, "delete", "--force", self.name], capture_output=True, check=False)
        self.process.wait()


def new_volume(image, path, directory):
    """A volume that an engine makes: it begins as a copy of what the image has there."""
    volume = os.path.join(directory, "volume" + path.replace("/", "-"))
    shutil.copytree(image.root + path, volume)
    was = os.stat(image.root + path)
    os.chown(volume, was.st_uid, was.st_gid)
    os.chmod(volume, was.st_mode & 0o7777)
    return volume
