"""Numbered packets at a fixed rate through a relay and back, by a TURN client of our own."""

import threading
import time

CHANNEL = 0x4000
PER_SECOND = 200
LATE_AT_MOST = 0.02
LAST_WITHIN = 2.0                # after the last was sent


def payload(number):
    """Known from the number alone; sizes that no padding hides."""
    return number.to_bytes(4) + bytes(number + at & 255 for at in range(60 + number * 37 % 600))


class Paced:
    """Runs from its making until `stop`; the peer sends everything back."""

    def __init__(self, client, peer):
        self.client = client
        self.sent, self.sent_bytes = 0, 0
        self.seen, self.received_bytes, self.repeated, self.wrong = set(), 0, 0, 0
        self.problem = None
        client.allocate()
        client.bind_channel(CHANNEL, peer)
        self.ending, self.sender_gone = threading.Event(), threading.Event()
        self.threads = [threading.Thread(target=self._guarded, args=(run,), daemon=True)
                        for run in (self._send, self._receive)]
        for thread in self.threads:
            thread.start()

    def _guarded(self, run):
        try:
            run()
        except (OSError, ValueError) as error:
            self.problem = self.problem or error
        finally:
            if run == self._send:
                self.sender_gone.set()

    def _send(self):
        due = time.monotonic()
        while not self.ending.wait(max(0.0, due - time.monotonic())):
            # A sender that was kept from its processor does not make up for it with a flood: no socket holds that.
            due = max(due, time.monotonic() - LATE_AT_MOST) + 1 / PER_SECOND
            data = payload(self.sent)
            self.client.send_channel(CHANNEL, data)
            self.sent += 1
            self.sent_bytes += len(data)

    def _receive(self):
        end = None
        while end is None or len(self.seen) < self.sent and time.monotonic() < end:
            if self.sender_gone.is_set() and end is None:
                end = time.monotonic() + LAST_WITHIN
            got = self.client.receive(0.1)
            if got is None:
                continue
            number = int.from_bytes(got.payload[:4])
            self.received_bytes += len(got.payload)
            self.wrong += got.payload != payload(number)
            self.repeated += number in self.seen
            self.seen.add(number)

    def stop(self):
        self.ending.set()
        for thread in self.threads:
            thread.join()

    def check_nothing_lost(self, what):
        missing = sorted(set(range(self.sent)) - self.seen)
        if self.problem or missing or self.repeated or self.wrong:
            raise AssertionError(f"{what}: of {self.sent} packets {len(missing)} are missing"
                                 f" ({missing[:10]}), {self.repeated} came twice, {self.wrong} are"
                                 f" wrong; {self.problem}")
