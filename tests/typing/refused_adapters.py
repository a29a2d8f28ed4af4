"""What servers and consumers do not take."""

import tempfile

from servicegroup import ServiceGroup
from servicegroup.adapters.asgi import AsgiServer
from servicegroup.adapters.queue import Message, RetryPolicy
from servicegroup.adapters.sqlite import SqliteConsumer, SqliteQueue
from servicegroup.observe.admin import AdminServer

group = ServiceGroup()
orders = SqliteQueue(tempfile.gettempdir() + "/shop.db")


def handle(message: Message) -> None:
    message.body = b"other"  # refused
    print(message.boddy)  # refused


def handle_two(message: Message, other: Message) -> None:
    pass


async def app(scope: object, receive: object, send: object) -> None:
    pass


AsgiServer("shop:app")  # refused
AsgiServer(app, port="80")  # refused
AsgiServer(app, reload=True)  # refused
SqliteConsumer(orders, handle_two)  # refused
SqliteConsumer("shop.db", handle)  # refused
SqliteConsumer(orders, handle, retry=3)  # refused
SqliteConsumer(orders, handle, retry=RetryPolicy(attempt=3))  # refused
orders.put(3)  # refused
AdminServer()  # refused
group.add(AdminServer(group, token=b"secret"))  # refused
