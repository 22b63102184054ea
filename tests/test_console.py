"""What stands on a terminal, watched from the terminal's other end."""

import os
import pty
import select
import signal
import subprocess
import sys
import time

HIDDEN, SHOWN = b"\x1b[?25l", b"\x1b[?25h"

TRAIN = """
import time
from medvisionllama.console import Teller
from medvisionllama.recorders import Recording
{body}
"""
FOLDS = """
teller = Teller()
for last in ({"step": 30}, {"step": 20, "stopped_early": True}, {"step": 10}):  # whole, out of patience, broken off
    recording = Recording(teller, [])
    try:
        for step in range(1, last["step"]):
            recording.training({"step": step, "loss": 1.0, "seconds": step}, 30)
        recording.training(last | {"loss": 1.0, "seconds": 30}, 30)
        if "stopped_early" in last or last["step"] == 30:
            list(recording.track([1, 2], "Scoring"))
    finally:
        recording.close()
"""
INTERRUPTED = """
recording = Recording(Teller(), [])
try:
    for step in range(1, 1000):
        recording.training({"step": step, "loss": 1.0, "seconds": step}, 1000)
        time.sleep(0.02)
except KeyboardInterrupt:
    pass
finally:
    recording.close()
print("after the bar", flush=True)
time.sleep(0.5)
"""
NEVER_CLOSED = """
counted = Teller().counted("Scoring")
counted(1, 2)
raise SystemExit(3)
"""


def seen_on_a_terminal(body: str, *, interrupt: bool = False) -> bytes:
    """All bytes that a terminal receives from this program; Ctrl-C is pressed once there is a bar."""
    ours, theirs = pty.openpty()
    code = TRAIN.format(body=body)
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    seen, deadline = b"", time.monotonic() + 60
    try:
        while time.monotonic() < deadline and select.select([ours], [], [], deadline - time.monotonic())[0]:
            try:
                received = os.read(ours, 65_536)
            except OSError:  # Linux says so where the other end is closed
                break
            if not received:
                break
            seen += received
            if interrupt and b"1000" in seen:
                process.send_signal(signal.SIGINT)
                interrupt = False
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert HIDDEN in seen, f"the control: a live bar hides the cursor\n{seen.decode()}"
    return seen


def test_after_an_interruption_the_terminal_has_its_cursor_before_anything_is_said() -> None:
    seen = seen_on_a_terminal(INTERRUPTED, interrupt=True)
    assert seen.rindex(HIDDEN) < seen.rindex(SHOWN) < seen.index(b"after the bar")


def test_several_folds_with_one_teller_each_have_a_bar_that_ends() -> None:
    seen = seen_on_a_terminal(FOLDS)
    assert b"Traceback" not in seen
    assert seen.count(HIDDEN) == seen.count(SHOWN) == 2 + 2 + 1, "two folds are scored, the third is broken off"
    assert seen.rindex(HIDDEN) < seen.rindex(SHOWN)


def test_a_bar_that_nobody_closes_gives_the_cursor_back_at_the_end() -> None:
    seen = seen_on_a_terminal(NEVER_CLOSED)
    assert seen.rindex(HIDDEN) < seen.rindex(SHOWN)
