"""One HTTP connection with limits, so that clients that send or read slowly do not keep others out.

uvicorn limits neither the time for a request's head nor the number of connections, and an idle connection that has
sent one byte of its next request may stay open for ever.
"""

import asyncio
import itertools
import math
from dataclasses import dataclass

from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass(frozen=True)
class ConnectionLimits:
    """`idle_s` is how long a connection may have no complete head of a request, or not read its response."""

    idle_s: float = 10.0
    max_connections: int = 512


class LimitedConnection(H11Protocol):
    """A connection that is dropped when it takes too long, or when there are too many and it has sent no request.

    A clock runs while no request is being answered: before the first head, between requests, and while the rest of a
    body arrives whose request was already refused.
    """

    limits = ConnectionLimits()
    arrivals = itertools.count()
    arrival = 0  # its place among all connections: the loop's clock is too coarse to order them
    _clock: asyncio.TimerHandle | None = None
    _unsent_bytes = math.inf  # of the response, when the clock last ran out

    @property
    def is_sending(self) -> bool:
        """Whether the client has no complete request here that is still to be answered."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.arrival = next(self.arrivals)
        self._watch()
        if len(self.connections) > self.limits.max_connections:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """At the end of the server: only complete requests are still answered."""
        super().shutdown()
        if self.is_sending:
            self.transport.close()

    def _make_room(self) -> None:
        """Drop the connection that has been sending for the longest time, or this one if all others have jobs."""
        others = [other for other in self.connections if isinstance(other, LimitedConnection) and other is not self]
        sending = [other for other in others if other.is_sending]
        min(sending, key=lambda other: other.arrival, default=self).transport.abort()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_clock()
            self._unsent_bytes = math.inf
        elif self._clock is None:
            self._clock = self.loop.call_later(self.limits.idle_s, self._time_is_up)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _time_is_up(self) -> None:
        self._clock = None
        unsent = self.transport.get_write_buffer_size()
        if 0 < unsent < self._unsent_bytes:  # a large response on its way, and read
            self._unsent_bytes = unsent
            self._watch()
        else:
            self.transport.abort()


def connection_class(limits: ConnectionLimits) -> type[LimitedConnection]:
    """What `uvicorn.Config` takes as `http`."""
    return type("Connection", (LimitedConnection,), {"limits": limits})
