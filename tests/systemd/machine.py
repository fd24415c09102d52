"""A systemd of the test's own, that can't touch the machine it runs on.

It is the first process of namespaces of its own: processes, mounts, network, host name, control groups. Its root is a
layer of memory over this machine's, put in place by pivot_root; /proc/sys is read-only, /dev has six harmless nodes,
and the privileges to set the clock, load modules and touch hardware are gone.
systemd empties /tmp, writes settings and mounts disks at boot, so before it is started the mounts are looked at from
outside: if a single one of them leads to a disk of this machine, it is not started.
"""

import contextlib
import json
import os
import re
import subprocess
import time

PATIENCE = 15.0

# File systems that are memory, or views of the kernel that belong to the namespaces.
HARMLESS = {"overlay", "tmpfs", "proc", "sysfs", "cgroup2", "devpts", "mqueue"}

BOOT = r"""
set -euo pipefail
mount -t tmpfs tmpfs "$STAGE"
mkdir "$STAGE/upper" "$STAGE/work" "$STAGE/root"
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$STAGE/upper,workdir=$STAGE/work" "$STAGE/root"
cd "$STAGE/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
if [ -e proc/sysrq-trigger ]; then
  mount --bind proc/sysrq-trigger proc/sysrq-trigger
  mount -o remount,bind,ro proc/sysrq-trigger
fi
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755 tmpfs dev
mknod -m 0666 dev/null c 1 3
mknod -m 0666 dev/zero c 1 5
mknod -m 0666 dev/full c 1 7
mknod -m 0666 dev/random c 1 8
mknod -m 0666 dev/urandom c 1 9
mknod -m 0666 dev/tty c 5 0
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p run/lock run/systemd/system .old
[ -z "$BINARY" ] || install -m 0755 "$BINARY" usr/local/bin/throughway
: > etc/fstab
# A target that wants nobody, and services of a boot that are of no use here.
printf '[Unit]\nDescription=nothing but what the test asks for\nDefaultDependencies=no\n' > run/systemd/system/alone.target
for name in systemd-tmpfiles-setup systemd-tmpfiles-setup-dev systemd-tmpfiles-clean systemd-sysctl systemd-modules-load \
  systemd-random-seed systemd-timesyncd systemd-udevd systemd-udev-trigger systemd-networkd systemd-networkd-wait-online \
  systemd-resolved networking NetworkManager NetworkManager-wait-online ifupdown-wait-online systemd-remount-fs; do
  ln -sf /dev/null run/systemd/system/$name.service
done
ip link set lo up
pivot_root . .old
umount -l /.old
# Among themselves only, as every systemd expects: credentials are mounted in one namespace and seen in another.
mount --make-rshared /
echo "own root is ready"
read -r answer
[ "$answer" = go ]
exec setpriv --bounding-set -sys_time,-sys_module,-sys_rawio \
  env -i container=throughway-test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system \
  --unit=alone.target --log-target=journal --log-level=info --show-status=no < /dev/null
"""


class Failed(Exception):
    pass


def check(holds, what):
    if not holds:
        raise Failed(what)


def wait_for(what, ask, patience=PATIENCE):
    until = time.monotonic() + patience
    while True:
        found = ask()
        if found:
            return found
        if time.monotonic() > until:
            raise Failed(f"in vain waited for {what}")
        time.sleep(0.05)


def unified_hierarchy():
    """Where control groups of version 2 are mounted."""
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        found = [line.split()[1] for line in mounts if line.split()[2] == "cgroup2"]
    check(found, "no control groups of version 2 are mounted")
    return found[0]


class Machine:
    """The namespaces, and systemd in them once `boot` was called."""

    def __init__(self, binary, directory, lower="/"):
        """`binary` is installed, if there is one; what lies in `lower` is the machine's system."""
        self.directory = directory
        self.init = None
        self.stage = os.path.join(directory, "stage")
        os.mkdir(self.stage)
        self.group = os.path.join(unified_hierarchy(), f"throughway-test-{os.getpid()}")
        os.mkdir(self.group)
        self.console = open(os.path.join(directory, "console"), "w+", encoding="utf-8")

        def enter_group():
            with open(os.path.join(self.group, "cgroup.procs"), "w", encoding="utf-8") as processes:
                processes.write("0")

        self.unshare = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--mount", "--uts", "--ipc", "--net", "--cgroup", "--propagation", "private",
             "--kill-child=KILL", "bash", "-c", BOOT],
            env={"PATH": os.environ["PATH"], "BINARY": os.path.abspath(binary) if binary else "", "STAGE": self.stage,
                 "LOWER": os.path.abspath(lower)},
            stdin=subprocess.PIPE, stdout=self.console, stderr=self.console, text=True, preexec_fn=enter_group)
        try:
            wait_for("a root of its own", lambda: "own root is ready" in self.said())
            with open(f"/proc/{self.unshare.pid}/task/{self.unshare.pid}/children", encoding="utf-8") as children:
                self.init = int(children.read().split()[0])
        except BaseException:
            self.close()
            raise

    def journal(self):
        """What systemd says."""
        return self.run("journalctl", "--no-pager", "-o", "cat", "_PID=1").stdout

    def said(self):
        """What was written before systemd; a first process that ended is an error."""
        with open(self.console.name, encoding="utf-8") as console:
            text = console.read()
        check(self.unshare.poll() is None, f"the first process ended:\n{text}")
        return text

    def check_isolation(self):
        """No mount in there leads to a disk of this machine: whatever is deleted in there is whole out here."""
        with open(f"/proc/{self.init}/mountinfo", encoding="utf-8") as mounts:
            lines = mounts.read().splitlines()
        kinds = {}
        for line in lines:
            before, after = line.split(" - ")
            kinds[before.split()[4]] = (after.split()[0], before.split()[5])
        for place, (kind, _) in kinds.items():
            check(kind in HARMLESS, f"{place} is a {kind} of this machine")
        for place, kind in (("/", "overlay"), ("/tmp", "tmpfs"), ("/run", "tmpfs"), ("/dev", "tmpfs"), ("/proc/sys", "proc")):
            check(kinds.get(place, ("nothing",))[0] == kind, f"{place} must be a {kind} of its own")
        check("ro" in kinds["/proc/sys"][1].split(","), "the kernel's settings could be changed")
        for place in ("/", "/tmp", "/etc", "/var", "/root", "/home", "/usr", "/run", "/dev"):
            inside, outside = os.stat(f"/proc/{self.init}/root{place}"), os.stat(place)
            check((inside.st_dev, inside.st_ino) != (outside.st_dev, outside.st_ino), f"{place} is this machine's own")
            check(inside.st_dev != outside.st_dev, f"{place} lies on a file system of this machine")

    def boot(self):
        self.check_isolation()
        self.unshare.stdin.write("go\n")
        self.unshare.stdin.flush()
        wait_for("systemd to be up", lambda: self.run("systemctl", "is-system-running", fine=None).stdout.strip() in
                 ("running", "degraded"))

    def enter(self, *command):
        return ["nsenter", "-t", str(self.init), "-m", "-p", "-n", "-u", "-i", "-C", "--", *command]

    def run(self, *command, fine=True, **options):
        """Runs a command in there; `fine` says whether it must succeed, must fail, or may do either."""
        done = subprocess.run(self.enter(*command), capture_output=True, text=True, timeout=60, check=False, **options)
        if fine is not None and (done.returncode == 0) != fine:
            raise Failed(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def write(self, path, text, mode=0o644):
        self.run("sh", "-c", 'mkdir -p "$(dirname "$1")" && cat > "$1" && chmod "$2" "$1"', "sh", path, f"{mode:o}", input=text)

    def show(self, key, unit="throughway.service"):
        return self.run("systemctl", "show", "--value", "-p", key, unit).stdout.strip()

    def main_pid(self):
        """The server's number out here."""
        inside = self.show("MainPID")
        for task in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{task}/ns/pid") != os.readlink(f"/proc/{self.init}/ns/pid"):
                    continue
                with open(f"/proc/{task}/status", encoding="utf-8") as status:
                    if re.search(r"^NSpid:\s+(.*)$", status.read(), re.M).group(1).split()[-1] == inside:
                        return int(task)
        raise Failed(f"no process {inside}; the service is {self.show('ActiveState')}")

    def log(self):
        return self.run("sh", "-c", "cat /run/throughway.log 2>/dev/null; true").stdout

    def events(self, message):
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("message") == message]

    def close(self):
        """Ends the first process, and with it everything in there."""
        self.unshare.kill()
        self.unshare.wait()
        self.unshare.stdin.close()
        self.console.close()

        def is_gone():
            with contextlib.suppress(OSError):
                for path, _, _ in os.walk(self.group, topdown=False):
                    os.rmdir(path)
            return not os.path.exists(self.group)

        wait_for("the control group to be empty", is_gone)
