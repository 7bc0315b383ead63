"""Handling a signal that arrives just before a library waits for a key."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

AGAIN = 0.05
"""Seconds after which a signal without effect follows another that may not have ended the wait."""


@contextlib.contextmanager
def woken() -> Iterator[None]:
    """A block of the main thread in which C code may wait for a key, as readline does within `input`.

    Python runs the handler of a signal when the wait ends, which the signal itself ends: but not if it arrived just before the
    wait began. So signals without effect (SIGURG) follow one that arrives, until the block ends.
    """
    if not hasattr(signal, "SIGURG"):
        yield
        return
    arrived, notices = os.pipe()
    os.set_blocking(notices, False)
    over = threading.Event()
    main = threading.get_ident()

    def follow() -> None:
        os.read(arrived, 1)
        while not over.wait(AGAIN):
            signal.pthread_kill(main, signal.SIGURG)

    handler = signal.signal(signal.SIGURG, lambda *_: None)
    before = signal.set_wakeup_fd(notices, warn_on_full_buffer=False)
    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.write(notices, b"\0")
        thread.join()
        signal.signal(signal.SIGURG, handler)
        os.close(notices)
        os.close(arrived)
