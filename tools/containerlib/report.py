"""One line for each check, and the exit status of all."""

import contextlib
import time
import traceback


class Skip(Exception):
    """The check cannot be made here; the message says why."""


class Failure(Exception):
    """The check found a fault; the message says which."""


class Report:
    """Prints the outcome of each check, and counts those that failed."""

    def __init__(self):
        self.failed = 0
        self.skipped = 0
        self.passed = 0
        self.last = None

    @contextlib.contextmanager
    def check(self, what):
        """Runs a check. It may give details for its line by appending to the list that it gets."""
        details, began = [], time.monotonic()
        try:
            yield details
        except Skip as reason:
            self.skipped += 1
            self._line("SKIPPED", what, str(reason), began)
        except Failure as fault:
            self.failed += 1
            self._line("FAILED", what, str(fault), began)
        except Exception as error:
            self.failed += 1
            place = traceback.extract_tb(error.__traceback__)[-1]
            fault = f"{type(error).__name__}: {error} ({place.filename.rsplit('/', 1)[-1]}:{place.lineno})"
            self._line("FAILED", what, fault, began)
        else:
            self.passed += 1
            self._line("ok", what, ", ".join(details), began)

    def _line(self, outcome, what, detail, began):
        self.last = outcome
        detail = f": {detail}" if detail else ""
        print(f"{outcome:<8} {what}{detail} ({time.monotonic() - began:.1f} s)", flush=True)


def expect(holds, message):
    """Fails the check with `message` unless `holds`."""
    if not holds:
        raise Failure(message)


def wait_for(condition, what, within=60, every=0.2):
    """Returns the first true result of `condition`; fails the check after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise Failure(f"{what} did not come within {within} s")
        time.sleep(every)
