"""The two networks a cell is measured in, fresh for every cell.

loopback: one network namespace with nothing but its loopback device.

veth: three namespaces and two pairs of virtual network devices,

    clients c ── rc  relay  rp ── p peers
    10.1.0.0/16      10.0.1.1 | 10.0.2.1      10.2.0.0/16

driven like network cards: every end receives through NAPI, in a kernel thread of its own. A device receives through
NAPI only with GRO on, and only what a sending end with TCP segmentation offload off hands it; else the packet takes
the plain backlog, in the sender's context and without coalescing. UDP segmentation offload stays on: a segmented send
crosses the device whole, as to a network card that segments. The relay's two threads run on the relay's CPU and are
charged to it, those of the other ends on the generator's. They run ahead of everything else there, as interrupts do:
a thread that waits for its turn would deliver late and in large batches, and nobody would be measured at the rate asked.

A namespace goes away with the last process and descriptor in it, so nothing is left behind, however the run ends.
"""

import ctypes
import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
PORT = 3478
TOOLS = {"ip": "iproute2", "ethtool": "ethtool"}


class Failed(Exception):
    """A cell of the table that could not be measured; the text says why."""


def unshare_network():
    """This process moves to a new network namespace with loopback up; its children follow."""
    if libc.unshare(CLONE_NEWNET) != 0:
        raise SystemExit(f"compare: no network namespace: {os.strerror(ctypes.get_errno())}; run as root or under `unshare -Urn`")
    silence = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")  # else devices ask for routers in between
    if silence.exists() and os.access(silence, os.W_OK):
        silence.write_text("1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: UP, RUNNING


def enter(fd):
    if libc.setns(fd, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Loopback:
    name = "loopback"
    text = "one network namespace, loopback only"
    listen = relay = "127.0.0.1"
    allow = "127.0.0.0/8"
    first_client, first_peer = "127.1.0.1", "127.2.0.1"
    softirq = ()

    @staticmethod
    def missing():
        return None

    def __init__(self, options):
        unshare_network()

    def generator_flags(self, port):
        return ["--server", f"{self.listen}:{port}"]

    def devices(self):
        return {}

    def close(self):
        pass


class Veth:
    name = "veth"
    text = "three network namespaces, two veth pairs, GRO, threaded NAPI"
    listen, relay = "10.0.1.1", "10.0.2.1"
    allow = "10.0.0.0/8"
    first_client, first_peer = "10.1.0.1", "10.2.0.1"
    serial = 0

    @staticmethod
    def missing():
        """Why this set-up can't be made here, or None."""
        for tool, package in TOOLS.items():
            if shutil.which(tool) is None:
                return f"`{tool}` is missing; install Debian's {package}, or leave the set-up out with --setup loopback"
        if os.geteuid() != 0:
            return "kernel threads are pinned, which only root may; run as root, or leave the set-up out with --setup loopback"
        if not names_of_threads():
            return "the kernel's threads are not visible here; run outside the container, or with --setup loopback"
        return None

    def __init__(self, options):
        Veth.serial += 1
        mark = f"{os.getpid():x}{Veth.serial:x}"
        client, relay_c, relay_p, peer = (f"{end}{mark}" for end in ("c", "rc", "rp", "p"))
        self.fds = []
        for _ in range(2):
            unshare_network()
            self.fds.append(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        unshare_network()
        own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.fds.append(own)
        clients, peers = (f"/proc/{os.getpid()}/fd/{fd}" for fd in self.fds[:2])
        self.client_path, self.peer_path = clients, peers
        queues = "numrxqueues 1 numtxqueues 1"
        ip(own, f"link add {relay_c} {queues} type veth peer name {client} {queues} netns {clients}",
           f"link add {relay_p} {queues} type veth peer name {peer} {queues} netns {peers}")
        ends = [(own, relay_c, "10.0.1.1", "10.0.1.2", "10.1.0.0/16"), (own, relay_p, "10.0.2.1", "10.0.2.2", "10.2.0.0/16"),
                (self.fds[0], client, "10.0.1.2", "10.0.1.1", None), (self.fds[1], peer, "10.0.2.2", "10.0.2.1", None)]
        for fd, device, *_ in ends:
            tool(fd, "ethtool", "-K", device, "tso", "off", "gro", "on", "rx-udp-gro-forwarding", "off", "rx-gro-list", "off")
        for n, (fd, device, address, other, beyond) in enumerate(ends):
            mac = lambda end: f"02:00:00:00:00:{end:02x}"  # noqa: E731
            far = {0: 2, 2: 0, 1: 3, 3: 1}[n]
            local = {2: "10.1.0.0/16", 3: "10.2.0.0/16"}.get(n)
            ip(fd, f"link set {device} address {mac(n)} up", f"address add {address}/24 dev {device}",
               f"neighbour add {other} lladdr {mac(far)} dev {device} nud permanent",
               f"route add {beyond or 'default'} via {other} dev {device}",
               *([f"route add local {local} dev lo"] if local else []))
        for fd in self.fds:
            thread_napi(fd, [device for at, device, *_ in ends if at == fd])
        threads = names_of_threads()
        found = {device: pid for _, device, *_ in ends for pid, name in threads.items() if name.startswith(f"napi/{device}-")}
        if len(found) != 4:
            self.close()
            raise Failed(f"only {len(found)} of 4 devices have a NAPI thread; is the kernel older than 5.12?")
        self.softirq = (found[relay_c], found[relay_p])
        self.ends = {"rc": (own, relay_c), "rp": (own, relay_p), "c": (self.fds[0], client), "p": (self.fds[1], peer)}
        for device, pid in found.items():
            os.sched_setaffinity(pid, {options.server_cpu if pid in self.softirq else options.load_cpu})
            os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(2))

    def generator_flags(self, port):
        return ["--server", f"{self.listen}:{port}", "--client-ns", self.client_path, "--peer-ns", self.peer_path,
                "--first-client", self.first_client, "--first-peer", self.first_peer, "--bare-relay", self.relay,
                "--softirq", ",".join(map(str, self.softirq))]

    def devices(self):
        """What each end has received through NAPI, in frames (a coalesced or unsegmented one counts once), and dropped."""
        found = {}
        for end, (fd, device) in self.ends.items():
            counters = dict(re.findall(r"(\w+): (\d+)", tool(fd, "ethtool", "-S", device)))
            found[end] = {"frames": int(counters.get("rx_queue_0_xdp_packets", 0)),
                          "drops": int(counters.get("rx_queue_0_drops", 0)) + int(counters.get("rx_queue_0_xdp_drops", 0))}
        return found

    def close(self):
        for fd in self.fds:
            os.close(fd)
        self.fds = []


SETUPS = {network.name: network for network in (Loopback, Veth)}


def tool(fd, *words, stdin=None):
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, preexec_fn=lambda: enter(fd))
    if done.returncode != 0:
        raise Failed(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def ip(fd, *lines):
    tool(fd, "ip", "-batch", "-", stdin="\n".join(lines) + "\n")


def thread_napi(fd, devices):
    """/sys shows the devices of the namespace it was mounted in, so it is mounted anew, for this child alone."""
    def prepare():
        enter(fd)
        if libc.unshare(CLONE_NEWNS) != 0 or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0:
            raise OSError(ctypes.get_errno(), "mount namespace")
    with tempfile.TemporaryDirectory(prefix="compare-sys-") as directory:
        lines = [f"mount -t sysfs none {directory}"] + [f"echo 1 > {directory}/class/net/{d}/threaded" for d in devices]
        done = subprocess.run(["sh", "-ec", "\n".join(lines)], capture_output=True, text=True, preexec_fn=prepare)
        if done.returncode != 0:
            raise Failed(f"threaded NAPI: {done.stderr.strip()}")


def names_of_threads():
    """Kernel threads by process id."""
    names = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if not os.readlink(f"/proc/{entry}/exe"):
                    continue
            except FileNotFoundError:  # a kernel thread has no executable
                try:
                    names[int(entry)] = Path(f"/proc/{entry}/comm").read_text().strip()
                except OSError:
                    pass
            except OSError:
                pass
    return names
