"""A cluster of one broker, that librdkafka carries for its own tests: the real protocol.

It prints its address and does what stdin says. Its data is gone with the process; while it is
"down" nobody can connect, and what it has stays.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import confluent_kafka

LEAVE_GROUP = 13
DELAY = 50  # ms until a new group gets its partitions


def load() -> ctypes.CDLL:
    """The library that confluent_kafka itself has loaded."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "librdkafka" in line:
            return ctypes.CDLL(line.split()[-1])
    raise RuntimeError(f"confluent_kafka {confluent_kafka.version()} has no librdkafka of its own")


def count(library: ctypes.CDLL, cluster: ctypes.c_void_p, kind: int) -> int:
    """How many requests of that kind there were."""
    number = ctypes.c_size_t()
    library.rd_kafka_mock_get_requests.restype = ctypes.POINTER(ctypes.c_void_p)
    requests = library.rd_kafka_mock_get_requests(cluster, ctypes.byref(number))
    kinds = [
        library.rd_kafka_mock_request_api_key(ctypes.c_void_p(requests[one]))
        for one in range(number.value)
    ]
    library.rd_kafka_mock_request_destroy_array(requests, number)
    return kinds.count(kind)


def main() -> None:
    library = load()
    pointer = ctypes.c_void_p
    for function in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
        getattr(library, function).restype = pointer
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    error = ctypes.create_string_buffer(512)
    config = pointer(library.rd_kafka_conf_new())
    library.rd_kafka_conf_set(config, b"log_level", b"0", error, ctypes.c_size_t(512))
    handle = library.rd_kafka_new(0, config, error, ctypes.c_size_t(512))
    assert handle, error.value
    cluster = pointer(library.rd_kafka_mock_cluster_new(pointer(handle), 1))
    library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, ctypes.c_int32(DELAY))
    library.rd_kafka_mock_start_request_tracking(cluster)
    print(library.rd_kafka_mock_cluster_bootstraps(cluster).decode(), flush=True)
    for line in sys.stdin:
        match line.split():
            case ["topic", name, partitions]:
                done = library.rd_kafka_mock_topic_create(
                    cluster, name.encode(), int(partitions), 1
                )
            case ["delete", name]:
                done = library.rd_kafka_mock_topic_delete(cluster, name.encode())
            case ["down"]:
                done = library.rd_kafka_mock_broker_set_down(cluster, 1)
            case ["up"]:
                done = library.rd_kafka_mock_broker_set_up(cluster, 1)
            case ["fail", number, *codes]:  # the next requests of that kind
                values = (ctypes.c_int * len(codes))(*map(int, codes))
                library.rd_kafka_mock_push_request_errors_array(
                    cluster, ctypes.c_int16(int(number)), ctypes.c_size_t(len(codes)), values
                )
                done = 0
            case ["late", number, *milliseconds]:  # the answers to the next requests of that kind
                pairs = [ctypes.c_int(one) for late in milliseconds for one in (0, int(late))]
                done = library.rd_kafka_mock_broker_push_request_error_rtts(
                    *(cluster, ctypes.c_int32(1), ctypes.c_int16(int(number))),
                    *(ctypes.c_size_t(len(milliseconds)), *pairs),
                )
            case ["left"]:  # how many members have said good bye
                done = count(library, cluster, LEAVE_GROUP)
            case _:
                done = f"what is {line!r}"
        print(done, flush=True)


if __name__ == "__main__":
    main()
