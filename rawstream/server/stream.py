"""One live stream: what it holds, whom it waits for, and when it has waited too long.

Rule 1: what is shown of it (``snapshot``) holds no prompt, no text, and not the id that can resume or stop it.
Rule 2: a figure that the system cannot give is None. Bytes, seconds.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any

from rawstream.errors import (
    ClientStalled,
    StreamDeadline,
)
from rawstream.flow.credit import Credit, CreditSink
from rawstream.flow.interrupt import Interruption
from rawstream.flow.kernel import tcp_info
from rawstream.flow.meter import Meter
from rawstream.flow.pump import Delivery, Sink
from rawstream.flow.signals import Signals
from rawstream.flow.watch import Finding, StreamWatch
from rawstream.model import (
    SourceStatistics,
    TokenStream,
    Trace,
)
from rawstream.server.exchange import Exchange
from rawstream.server.ids import random_id
from rawstream.server.log_stream import Readable
from rawstream.server.spending import Tab
from rawstream.settings import Settings


class Stream:
    """One live stream."""

    __slots__ = (
        "credit",
        "delivery",
        "dialect_name",
        "exchange",
        "generation",
        "held",
        "id",
        "interruption",
        "lab",
        "lane",
        "meter",
        "path",
        "public_id",
        "settings",
        "signals",
        "tab",
        "tokens",
        "trace",
        "watch",
    )

    def __init__(
        self, exchange: Exchange, dialect_name: str, delivery: Delivery, settings: Settings, *, lab: bool
    ) -> None:
        self.id = exchange.stream_id or ""
        """The secret id: who has it may stop the stream."""
        self.public_id = random_id(4)
        """What ``/debug`` shows."""
        self.exchange = exchange
        self.path = exchange.path
        self.dialect_name = dialect_name
        self.delivery = delivery
        self.meter: Meter = delivery.meter
        self.settings = settings
        self.lab = lab
        self.lane: str | None = None
        """The lab's name for how this stream is delivered; None for an ordinary one."""
        self.credit: Credit | None = None
        """What the client has asked for, where it asked for a demand that is exact to the token."""
        self.generation: Readable | None = None
        """What it reads, where that outlives it."""
        self.tab: Tab | None = None
        """What its user pays for it; None: nobody was named."""
        self.interruption = Interruption()
        self.tokens: TokenStream | None = None
        self.signals: weakref.ref[Signals] | None = None
        """Its source's mailbox. Weak: where the source has let go of its request, nobody can read signals."""
        self.trace: Trace | None = None
        """Where it is followed through several systems."""
        self.held: Callable[[], int] | None = None
        """Bytes held elsewhere (the lab's unbounded buffers)."""
        self.watch = StreamWatch(
            self.meter.started_at,
            heartbeat=settings.heartbeat,
            stall_timeout=settings.stall_timeout,
            stream_timeout=settings.stream_timeout,
        )

    def end_signals(self) -> None:
        """Its source is over: nobody reads signals any more. Idempotent."""
        if self.generation is not None:
            return
        mailbox = self.mailbox
        if mailbox is not None:
            mailbox.close()

    @property
    def mailbox(self) -> Signals | None:
        """Where its source reads signals; None: it has let go of it, or never wanted any."""
        if self.generation is not None:
            return self.generation.mailbox
        return None if self.signals is None else self.signals()

    def sink(self) -> Sink:
        """Where its frames go."""
        return self.delivery if self.credit is None else CreditSink(self.delivery, self.credit, self.meter)

    @property
    def user(self) -> str | None:
        """Who asked; None: nobody was named."""
        if self.generation is not None:
            return self.generation.user
        return None if self.tab is None else self.tab.user.name

    @property
    def leased(self) -> bool:
        """Does a budget hold it?"""
        return self.tab is not None and self.tab.lease is not None

    def look(self) -> None:
        """The deadline's callback: heartbeat, stall, end of life."""
        now = monotonic()
        connection = self.exchange.connection
        taken, waiting = connection.unwritten()
        if self.credit is not None:
            # Credit that is waited for is a wait like that for room: what is consumed is progress, none is a stall.
            taken += self.credit.consumed
            waiting += self.credit.owed
        self.watch.last_write = self.delivery.last_write
        finding = self.watch.look(now, taken=taken, waiting=waiting)
        if finding is Finding.STALLED:
            timeout = self.settings.stall_timeout
            connection.lose(ClientStalled(f"the client took nothing for {timeout:g} s while data waited"))
            return
        if finding is Finding.TOO_LONG:
            self.interruption.interrupt(StreamDeadline(f"the stream ran for {self.settings.stream_timeout:g} s"))
            return
        if finding is Finding.SILENT and self.delivery.heartbeat():
            self.watch.last_write = self.delivery.last_write
        connection.set_deadline(self.watch.next_look(now), self.look)

    def buffered(self) -> dict[str, int | None]:
        """Bytes by place. None: the system cannot tell."""
        connection = self.exchange.connection
        queue = connection.kernel_queue()
        return {
            "source": self.source_buffered() + self.held_elsewhere(),
            "transport": connection.transport.get_write_buffer_size(),
            "kernel_unsent": None if queue is None else queue.unsent,
            "kernel_unacked": None if queue is None else queue.unacked,
        }

    def source_buffered(self) -> int:
        # Not isinstance(…, MeasuredTokenStream): a protocol's check takes 12 µs, and this is asked often.
        statistics: Callable[[], SourceStatistics] | None = getattr(self.tokens, "statistics", None)
        return 0 if statistics is None else statistics().buffered

    def process_buffered(self) -> int:
        """Bytes that this process holds for the stream. What it reads from a log is held there, for all readers."""
        source = self.source_buffered() if self.generation is None else 0
        return self.exchange.connection.transport.get_write_buffer_size() + source + self.held_elsewhere()

    def held_elsewhere(self) -> int:
        """Bytes that a wrong discipline keeps in the program: an answer that is collected before it is sent."""
        return 0 if self.held is None else self.held()

    def delivered(self, waiting: int | None = None) -> int:
        """Tokens that the client's kernel has taken, as of the stream's end.

        ``waiting``: bytes that it has not taken yet, to know it of a stream that runs.

        Where the connection is there, what was written is on its way and counts. Where it was lost, the kernel knew
        how many bytes had not been taken: as many tokens as these bytes hold on average were not delivered.
        """
        meter = self.meter
        written = meter.tokens if self.lab else meter.tokens_written
        undelivered = self.exchange.connection.undelivered
        if undelivered is None:
            undelivered = waiting
        if not undelivered or not meter.bytes:
            return written
        return max(0, written - math.ceil(undelivered * written / meter.bytes))

    def cut_for_memory(self) -> None:
        """The last step of relief: this stream holds most, and its client does not take it."""
        self.exchange.connection.lose(ClientStalled("too much was buffered in all, and this client held most of it"))

    def split_wait(self, client_seconds: float, *, final: bool = False) -> tuple[float, float]:
        """Split the wait for room into (client, network).

        The kernel knows how long it was busy with what the peer had not acknowledged, and for how much of that the
        peer's window was shut. The rest of the busy time was the network's. Where the kernel was not busy the client
        had all there was, and had not asked for more (credit).
        """
        connection = self.exchange.connection
        if client_seconds < 0.001:
            return client_seconds, 0.0
        sock = connection.sock
        info = tcp_info(sock) if sock is not None else None
        if info is None:
            return client_seconds, 0.0
        shut = max(0.0, info.rwnd_limited - connection.rwnd_seen)
        busy = max(0.0, info.busy - connection.busy_seen)
        if final:
            connection.rwnd_seen, connection.busy_seen = info.rwnd_limited, info.busy
        by_network = max(0.0, min(client_seconds - shut, busy - shut))
        return client_seconds - by_network, by_network

    def waiting_for(self) -> str | None:
        """'source', 'client', 'network' or None (running)."""
        waiting = self.meter.waiting_for
        if waiting != "client":
            return waiting
        if self.credit is not None and self.credit.owed:
            return "client"
        levels = self.exchange.connection.levels()
        if levels is not None and levels.shut:
            return "client"
        sock = self.exchange.connection.peer_sock
        info = tcp_info(sock) if sock is not None else None
        # A shut window is the client's; an open one with bytes in flight is the network's.
        if info is None or info.snd_wnd is None or info.snd_wnd < 4096:
            return "client"
        return "network"

    def snapshot(self, now: float) -> dict[str, Any]:
        """What ``/debug/streams`` shows."""
        meter = self.meter
        source, client = meter.seconds(now)
        by_client, by_network = self.split_wait(client)
        return {
            "id": self.public_id,
            "path": self.path,
            "dialect": self.dialect_name,
            "state": self.exchange.connection.gate.state.value,
            "tokens": meter.tokens,
            "bytes": meter.bytes,
            "waiting_for": self.waiting_for(),
            "seconds": {
                "source": round(source, 3),
                "client": round(by_client, 3),
                "network": round(by_network, 3),
            },
            "age": round(now - meter.started_at, 3),
            "buffered": self.buffered(),
            "http2": None if (levels := self.exchange.connection.levels()) is None else levels._asdict(),
        }
