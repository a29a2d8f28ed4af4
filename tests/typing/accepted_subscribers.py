"""A subscriber takes every event, and tells them apart by their types."""

from typing import assert_type

from servicegroup import ServiceGroup, events


def note(event: events.Event) -> None:
    assert_type(event.group, str)
    if isinstance(event, events.ServiceFailed):
        assert_type(event.error, BaseException)
        assert_type(event.phase, str)
    elif isinstance(event, events.ServiceEvent):
        assert_type(event.service, str)
        assert_type(event.seconds, float | None)
    match event:
        case events.GroupStopped(reason=reason, brief=brief):
            assert_type(reason, str | None)
            assert_type(brief, bool)
        case _:
            pass


class Counter:
    count = 0

    def __call__(self, event: object) -> int:
        self.count += 1
        return self.count


seen: list[events.Event] = []

group = ServiceGroup()
group.subscribe(note)
group.subscribe(Counter())
group.subscribe(seen.append)
group.subscribe(lambda event: print(event.monotonic))
