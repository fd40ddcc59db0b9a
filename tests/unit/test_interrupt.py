"""An interrupt while records are under way is remembered, and raised again as usual afterwards."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from generator.interrupt import SIGNALS, asked_to_stop


@pytest.mark.parametrize("sign", SIGNALS)
def test_an_interrupt_is_remembered_and_not_raised(sign: signal.Signals) -> None:
    before = signal.getsignal(sign)
    with asked_to_stop() as stop:
        assert not stop()
        os.kill(os.getpid(), sign)
        os.kill(os.getpid(), sign)
        assert stop()
    assert signal.getsignal(sign) is before


def test_beside_the_main_thread_nobody_asks() -> None:
    answers: list[bool] = []

    def work() -> None:
        with asked_to_stop() as stop:
            answers.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]
