"""Watches a process from outside, in the same way for every trainer: its memory and its CPU time."""

import os
import threading
from pathlib import Path

LOOK_EVERY = 0.02
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid):
    """CPU time that a process has used so far, of all its threads, in user and kernel mode."""
    # The name of the program, in brackets, may hold spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Watch:
    """The CPU seconds that a process uses between `begin` and `end`, and the most bytes that it has resident meanwhile."""

    def __init__(self, pid):
        self.pid, self.peak, self.cpu, self.over = pid, 0, 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def watch(self):
        while not self.over.is_set():
            try:
                status = Path(f"/proc/{self.pid}/status").read_text()
            except OSError:
                return
            resident = [line for line in status.splitlines() if line.startswith("VmRSS:")]
            self.peak = max([self.peak, *(int(line.split()[1]) << 10 for line in resident)])
            self.over.wait(LOOK_EVERY)

    def begin(self):
        self.cpu = -cpu_seconds(self.pid)
        self.thread.start()
        return self

    def end(self):
        self.cpu += cpu_seconds(self.pid)
        self.over.set()
        self.thread.join()
        return self
