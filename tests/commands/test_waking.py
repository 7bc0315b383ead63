"""A signal that does not end the wait for a key by itself is handled all the same."""

from __future__ import annotations

import ctypes
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from gguf_tools.commands.waking import woken


class ArrivedError(Exception):
    """The handler has run."""


@pytest.fixture
def handled() -> Iterator[None]:
    """SIGUSR1 raises `ArrivedError`; a wait of 20 seconds fails."""

    def arrived(*_: object) -> None:
        raise ArrivedError

    def late(*_: object) -> None:
        raise AssertionError("the wait did not end")

    before = [signal.signal(signal.SIGUSR1, arrived), signal.signal(signal.SIGALRM, late)]
    signal.setitimer(signal.ITIMER_REAL, 20.0)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    for number, handler in zip((signal.SIGUSR1, signal.SIGALRM), before, strict=True):
        signal.signal(number, handler)


def test_a_signal_that_another_thread_takes_ends_the_wait(handled: None) -> None:
    """As one that arrives just before the wait, it leaves the main thread waiting, and its handler to be run."""

    def take() -> None:
        time.sleep(0.1)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    thread = threading.Thread(target=take)
    with woken():
        thread.start()
        with pytest.raises(ArrivedError):
            ctypes.CDLL(None).pause()
    thread.join()


def test_nothing_stays(handled: None) -> None:
    def states() -> tuple[object, int, int]:
        descriptor = signal.set_wakeup_fd(-1)
        return signal.getsignal(signal.SIGURG), descriptor, threading.active_count()

    before = states()
    with woken():
        pass
    assert states() == before
