"""A server whose program is replaced while it runs, and the processes that follow each other."""

import contextlib
import ctypes
import datetime
import os
import shutil
import signal
import subprocess
import time

import servers
from cases import check, equal

ENDS_WITHIN = 10.0


def adopt_orphans():
    """What a child of this process leaves behind becomes a child of this process: a successor outlives who started it."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


class Adopted:
    """A process that another one started, which has ended: what `servers.Server` needs of it."""

    def __init__(self, pid):
        self.pid, self.returncode = pid, None

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=ENDS_WITHIN):
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("the adopted server", timeout)
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class Upgradable(servers.Server):
    """A server whose program can be replaced."""

    def __init__(self, binary, setup, directory, inside=contextlib.nullcontext, log_directory=None):
        adopt_orphans()
        self.original, self.program = binary, os.path.join(directory, "throughway")
        self.replace()
        super().__init__(self.program, setup, directory, inside, log_directory=log_directory)

    def replace(self):
        shutil.copy(self.original, f"{self.program}.new")
        os.rename(f"{self.program}.new", self.program)

    def upgrade(self):
        """Replaces the program, and waits until the new process serves; gives from when to when no packet was read, in Unix milliseconds."""
        known = len(self.events("ready"))
        self.replace()
        self.process.send_signal(signal.SIGHUP)
        until = time.monotonic() + ENDS_WITHIN
        while len(self.events("ready")) == known:
            check(time.monotonic() < until, f"no upgrade within {ENDS_WITHIN} s; {self.log()}")
            time.sleep(0.05)
        equal(self.process.wait(ENDS_WITHIN), 0, "exit code of the old process")
        self.process = Adopted(self.events("confirmed")[-1]["pid"])
        taken_over = self.events("taken over")[-1]
        until = datetime.datetime.fromisoformat(taken_over["timestamp"]).timestamp() * 1000
        return until - taken_over["gap_ms"], until
