"""One line per test, `N passed, N failed` at the end, for every runner here."""

import shutil
import sys
import threading
import time
import traceback

DEBIAN_PACKAGE = {
    "ip": "iproute2", "nft": "nftables", "cc": "gcc", "unshare": "util-linux", "node": "nodejs", "openssl": "openssl",
    "certutil": "libnss3-tools", "chromium": "chromium", "firefox-esr": "firefox-esr",
    "turnutils_uclient": "coturn", "turnutils_peer": "coturn", "turnutils_stunclient": "coturn", "turnserver": "coturn", "turnadmin": "coturn",
    "faketime": "faketime", "psql": "postgresql",
    "php": "php-cli", "ruby": "ruby", "go": "golang-go", "java": "default-jdk-headless", "javac": "default-jdk-headless",
    "mcs": "mono-mcs", "mono": "mono-runtime", "elixir": "elixir",
    "buildah": "buildah", "crun": "crun", "curl": "curl",
}


def need(*tools):
    """Ends the run, naming the Debian package, if a tool is missing: a skipped test proves nothing."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        packages = " ".join(sorted({DEBIAN_PACKAGE[tool] for tool in missing}))
        print(f"missing {', '.join(missing)}: apt-get install {packages}")
        print("0 passed, 1 failed")
        sys.exit(1)


class Report:
    """Counts and prints; tests may run side by side."""

    def __init__(self):
        self.passed = self.failed = 0
        self.lock = threading.Lock()

    def run(self, name, test, *arguments, explain=lambda: ""):
        began = time.monotonic()
        try:
            test(*arguments)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)
            place = next((f"{f.filename.rsplit('/', 1)[-1]}:{f.lineno}" for f in reversed(where)
                          if "/tests/" in f.filename), "?")
            self._say(False, f"FAIL {name} ({time.monotonic() - began:.1f} s) at {place}: "
                      f"{type(error).__name__}: {error}", explain())
        else:
            self._say(True, f"ok   {name} ({time.monotonic() - began:.1f} s)", "")

    def _say(self, passed, line, detail):
        with self.lock:
            if passed:
                self.passed += 1
            else:
                self.failed += 1
            print(line, *filter(None, [detail]), sep="\n", flush=True)

    def finish(self):
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        return 0 if self.failed == 0 and self.passed > 0 else 1
