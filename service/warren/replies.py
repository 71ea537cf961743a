"""Which queues an answer may be sent to. A producer names one in `reply_to`, and Warren publishes to it with
its own rights, so a producer could otherwise write to queues that it has no right to."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final

from warren.refusals import Refusals
from warren.settings import Settings
from warren.topology import Names

# RabbitMQ's direct reply-to: such a name leads to the channel that asked, and nowhere else.
DIRECT: Final = "amq.rabbitmq.reply-to."


class Replies:
    """The rule for `reply_to` in one namespace; `refusals` counts what it refused."""

    def __init__(self, settings: Settings) -> None:
        names = Names(settings.namespace)
        self._ours, self._clients = names.prefix, names.replies
        self._allowed = settings.reply_to_patterns
        self.refusals = Refusals("reply_to.refused")

    def allow(self, queue: str) -> bool:
        """Whether answers may go to this queue. One that is refused is counted, and logged now and then."""
        if queue.startswith((self._clients, DIRECT)):
            return True
        if queue.startswith(self._ours):
            self.refusals.note("reply_to names a queue of Warren's own", reply_to=queue)
            return False
        if not any(fnmatchcase(queue, pattern) for pattern in self._allowed):
            self.refusals.note("WARREN_REPLY_TO_ALLOWED does not have this queue", reply_to=queue)
            return False
        return True
