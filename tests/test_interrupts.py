"""Ctrl-C is known of, whoever had a handler in place when it came."""

import os
import signal

import pytest

from payments_pipeline.day_runs import noticing_interrupts


@pytest.fixture
def deaf():
    """A handler that forgets, as Dagster's does while a run ends."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_that_a_handler_forgot_is_noticed_once(deaf):
    with noticing_interrupts() as came:
        assert not came()
        os.kill(os.getpid(), signal.SIGINT)
        assert came()
        assert not came()


def test_other_signals_are_none(deaf):
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with noticing_interrupts() as came:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not came()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_who_was_told_of_signals_before_is_told_again_afterwards():
    with noticing_interrupts() as outer, noticing_interrupts():
        pass
    assert signal.set_wakeup_fd(-1) == -1
    assert callable(outer)
