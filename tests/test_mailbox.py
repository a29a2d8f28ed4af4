"""The queue that everything goes through: what comes, and when nothing does."""

from __future__ import annotations

import threading

from servicegroup._mailbox import Mailbox


def note(*_args: object) -> None: ...


def test_what_was_put_comes_in_order_and_none_when_there_is_no_more_in_time() -> None:
    mailbox = Mailbox()
    assert mailbox.poll() is None
    assert mailbox.get(mailbox.now() - 1.0) is None
    assert mailbox.get(mailbox.now() + 0.01) is None
    for number in range(3):
        mailbox.put(note, number)
    assert mailbox.get(mailbox.now() - 1.0) == (note, (0,))
    assert mailbox.get(None) == (note, (1,))
    assert mailbox.poll() == (note, (2,))
    assert mailbox.poll() is None


def test_the_last_word_of_a_thread_is_there_when_it_was_joined() -> None:
    mailbox = Mailbox()
    stopping = threading.Event()

    def work() -> None:
        stopping.wait()
        mailbox.put(note)

    thread = threading.Thread(target=work)
    thread.start()
    assert mailbox.join(thread, mailbox.now() + 0.01, None) is None
    assert mailbox.join(thread, None, stopping) == (note, ())
    assert not thread.is_alive()
