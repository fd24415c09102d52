"""One cell of the table, and the count of system calls beside it."""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from network import PORT, Failed
from server import in_child

TLS_PORT = 5349
CALLS = ["sendto", "sendmsg", "sendmmsg", "recvfrom", "recvmsg", "recvmmsg", "read", "readv", "write", "writev",
         "epoll_wait", "epoll_pwait", "epoll_pwait2", "epoll_ctl", "io_uring_enter", "futex", "getsockopt", "setsockopt"]


class Running:
    """A server in a fresh network, and the words that send the generator to it."""

    def __init__(self, server, scenario, setup, options, seconds):
        self.server, self.scenario, self.options = server, scenario, options
        self.seconds = seconds
        self.network = setup(options)

    def __enter__(self):
        self.directory = tempfile.TemporaryDirectory(prefix="compare-")
        try:
            for name in ("cert.pem", "key.pem"):
                shutil.copy(Path(self.options.certificates) / name, self.directory.name)
            self.server.start(self.directory.name, self.network, self.scenario, int(self.seconds) + 60,
                              self.options.server_cpu, self.options.nice)
            if self.options.fifo:
                os.sched_setscheduler(self.server.process.pid, os.SCHED_FIFO, os.sched_param(1))
            time.sleep(0.1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.server.stop()
        self.network.close()
        self.directory.cleanup()

    def generator(self, words, warm_up, seconds, *more, stdin=subprocess.DEVNULL):
        scenario, options, spec = self.scenario, self.options, self.server.spec
        command = [options.load, scenario.mode, *map(str, words)]
        if scenario.clients:
            command += ["--transport", scenario.transport, "--protocol", spec.get("protocol", "turn")]
        command += ["--user", spec.get("user", "load"), "--password", spec.get("password", "load"),
                    "--warm-up", str(warm_up), "--measure", str(seconds), "--pid", str(self.server.process.pid),
                    "--cpu", str(options.load_cpu), *more,
                    *self.network.generator_flags(TLS_PORT if scenario.transport == "tls" else PORT)]
        return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                preexec_fn=in_child(options.load_cpu, options.nice))


def finish(generator, timeout):
    """The generator's JSON; it is ended when it takes too long."""
    try:
        out, error = generator.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failed(f"the generator took longer than {timeout:.0f} s") from None
    finally:
        if generator.poll() is None:
            generator.kill()
    if generator.returncode == 2:
        raise Failed(f"throughway-load has no mode {generator.args[1]}; build it anew")
    if generator.returncode != 0:
        raise Failed(error.strip() or f"the generator ended with {generator.returncode}")
    return json.loads(out)


def measure(server, scenario, setup, options):
    """One cell of one round: a fresh network, a fresh server, one run of the generator."""
    measured = scenario.measure or options.measure
    seconds = options.warm_up + measured + scenario.seconds
    with Running(server, scenario, setup, options, seconds) as running:
        more = ["--fifo"] if options.fifo else []
        cell = finish(running.generator(scenario.words, options.warm_up, measured, *more), seconds + 90)
        devices = running.network.devices()
    if devices:
        cell["devices"] = devices
        cell["device_drops"] = sum(end["drops"] for end in devices.values())
    if scenario.key not in cell:
        raise Failed(f"the report of `throughway-load {scenario.mode}` has no {scenario.key}")
    if cell[scenario.key] is None:  # a division by nothing
        raise Failed("nothing came through within the window")
    return cell


class Counter:
    """Counts system calls: with `perf stat` at full speed, else with `strace -c` at a twentieth of the rate."""

    def __init__(self):
        self.events = ["raw_syscalls:sys_enter"] + [f"syscalls:sys_enter_{name}" for name in CALLS]
        self.how = "perf" if self.perf_works() else "strace" if shutil.which("strace") else None

    def perf_works(self):
        if shutil.which("perf") is None:
            return False
        done = subprocess.run(["perf", "stat", "-x,", *self.flags(), "true"], capture_output=True, text=True)
        return done.returncode == 0 and "raw_syscalls" in done.stderr and "<not" not in done.stderr

    def flags(self):
        return [word for event in self.events for word in ("-e", event)]

    @property
    def slower(self):
        return 20 if self.how == "strace" else 1

    def start(self, pid, output, cpu):
        if self.how == "perf":
            words = ["perf", "stat", "-x,", *self.flags(), "-o", output, "-p", str(pid)]
        else:
            words = ["strace", "-f", "-c", "-o", output, "-p", str(pid)]
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, preexec_fn=in_child(cpu, 0))
        time.sleep(0.4)
        if self.process.poll() is not None:
            raise Failed(f"{words[0]} ended with {self.process.returncode}")

    def stop(self, output):
        """Calls by name, all of them under `all`."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(10)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        text = Path(output).read_text()
        if self.how == "perf":
            found = {name.rsplit("sys_enter", 1)[1].lstrip("_") or "all": int(count)
                     for count, name in re.findall(r"^(\d+),,([^,]+),", text, re.M)}
        else:
            found = {name: int(count) for count, name in
                     re.findall(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", text, re.M)}
            found["all"] = found.pop("total", 0)
        return {name: count for name, count in found.items() if count}


def slowed(words, factor):
    words = list(words)
    if "--rate" in words:
        at = words.index("--rate") + 1
        words[at] = max(1, words[at] // factor)
    return words


def count_calls(server, scenario, setup, options, counter):
    """System calls per relayed packet, from a run of its own; nothing of opening and closing sessions is in it."""
    warm_up, seconds = 0.1, 0.5 if options.quick else 1.0 if counter.how == "perf" else 3.0
    with Running(server, scenario, setup, options, seconds + 30) as running:
        output = str(Path(running.directory.name) / "calls")
        generator = running.generator(slowed(scenario.words, counter.slower), warm_up, seconds, "--steps",
                                      stdin=subprocess.PIPE)
        guard = threading.Timer(seconds + 60 + scenario.seconds, generator.kill)  # the waits below are for its words
        guard.start()
        try:
            await_word(generator, "open")
            counter.start(running.server.process.pid, output, options.load_cpu)
            go_on(generator)
            await_word(generator, "drained")
            calls = counter.stop(output)
            go_on(generator)
            packets = finish(generator, 30)["relayed_in_all"]
        finally:
            guard.cancel()
            if generator.poll() is None:
                generator.kill()
                generator.wait()
    if not packets or "all" not in calls:
        raise Failed("nothing was counted")
    return {"per_packet": calls["all"] / packets, "packets": packets, "calls": calls, "with": counter.how}


def await_word(generator, word):
    line = generator.stderr.readline()
    if line.strip() != word:
        raise Failed((line + generator.stderr.read()).strip() or "the generator ended early")


def go_on(generator):
    generator.stdin.write("\n")
    generator.stdin.flush()
