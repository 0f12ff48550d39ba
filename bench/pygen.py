"""The load generator in pure Python: the stand-in where there is no C compiler, behind the same commands and answers.

Rule 1: it does what ``gen/generator.c`` does, token check included, at a tenth of its speed; the harness marks a run as
        generator-bound when this was too slow.
Rule 2: one thread, one selector, no framework: readings at the pace of the group, timestamps at the read.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import resource
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.pygen_response import Histogram, Response
from bench.pygen_state import Connection, Group


class Generator:
    """All connections of one run."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.groups: dict[str, Group] = {}
        self.expected: list[str] = []
        self.timers: list[tuple[int, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.run_at = 0
        self.said_connected = self.said_streaming = False
        self.commands = b""

    def later(self, due: int, do: Callable[[], None]) -> None:
        heapq.heappush(self.timers, (due, next(self.numbers), do))

    # --- commands

    def take_commands(self) -> None:
        data = os.read(0, 65536)
        if not data:
            raise SystemExit
        self.commands += data
        while b"\n" in self.commands:
            line, _, self.commands = self.commands.partition(b"\n")
            command = json.loads(line)
            getattr(self, f"do_{command.pop('cmd')}")(**command)

    def do_expect(self, path: str) -> None:
        with open(path, "rb") as file:
            data = file.read()
        self.expected, at = [], 0
        while at < len(data):
            (length,) = struct.unpack_from("=I", data, at)
            self.expected.append(data[at + 4 : at + 4 + length].decode())
            at += 4 + length

    def do_group(self, name: str, **settings: Any) -> None:
        group = self.groups[name] = Group(settings, self.expected)
        group.connections = [Connection(group, index) for index in range(group.count)]
        if self.run_at:
            self.said_connected = self.said_streaming = False
            self.begin(group)

    def do_run(self) -> None:
        self.run_at = time.monotonic_ns()
        for group in self.groups.values():
            self.begin(group)

    def begin(self, group: Group) -> None:
        now = time.monotonic_ns()
        for c in group.connections[: 1 if group.sequential else None]:
            delay = group.start_ms + group.ramp_ms * c.index / group.count
            self.later(now + int(delay * 1e6), lambda c=c: self.connect(c))  # type: ignore[misc]  # a lambda's default

    def do_snap(self, whole: bool = False) -> None:
        self.report("snap", whole)

    def do_reset(self) -> None:
        for group in self.groups.values():
            group.gap, group.late, group.answer, group.first = Histogram(), Histogram(), Histogram(), Histogram()
            for c in group.connections:
                c.arrivals.clear()

    def do_leave(self, group: str, every_ms: float = 0, rst: int = 0) -> None:
        now = time.monotonic_ns()
        for c in self.groups[group].connections:
            self.later(now + int(every_ms * c.index * 1e6), lambda c=c: self.leave(c, bool(rst)))  # type: ignore[misc]  # as above

    def do_stop(self) -> None:
        self.report("result", True)
        raise SystemExit

    # --- connections

    def connect(self, c: Connection) -> None:
        group = c.group
        link = c.link = socket.socket()
        link.setblocking(False)
        if group.rcvbuf:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, group.rcvbuf)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        c.life, c.started = "connecting", time.monotonic_ns()
        c.response = Response(group.expected, group.dialect, group.tokens)
        link.connect_ex((group.host or "127.0.0.1", group.port))
        self.selector.register(link, selectors.EVENT_WRITE, c)

    def send(self, c: Connection) -> None:
        c.request = c.group.request.replace("@@@@@@", f"{c.index % 1000000:06d}").encode()
        self.send_on(c)

    def send_on(self, c: Connection) -> None:
        group, link = c.group, c.link
        assert link is not None
        try:
            c.request = c.request[link.send(c.request) :]
        except BlockingIOError:
            pass
        except OSError as error:
            group.counts["failed"] += 1
            self.note(c, str(error))
            self.hang_up(c, "failed")
            return
        if c.request:
            self.watch(c, selectors.EVENT_WRITE)
        elif group.mode == "stalled":
            self.watch(c, 0)
            self.settle(c)
        elif group.mode == "paced":
            self.watch(c, 0)
            first = group.every_ms * (1 + c.index / group.count)
            self.later(time.monotonic_ns() + int(first * 1e6), lambda: self.paced_read(c))
        else:
            self.watch(c, selectors.EVENT_READ)

    def watch(self, c: Connection, events: int) -> None:
        assert c.link is not None
        known = c.link in self.selector.get_map()
        if not events:
            if known:
                self.selector.unregister(c.link)
        elif known:
            self.selector.modify(c.link, events, c)
        else:
            self.selector.register(c.link, events, c)

    def ready(self, c: Connection, events: int) -> None:
        if c.link is None:
            return
        if c.life == "connecting":
            error = c.link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                c.group.counts["failed"] += 1
                self.note(c, os.strerror(error))
                self.hang_up(c, "failed")
                return
            c.life = "open"
            c.group.counts["connected"] += 1
            self.send(c)
        elif events & selectors.EVENT_WRITE:
            self.send_on(c)
        else:
            self.read(c, 262144)

    def paced_read(self, c: Connection) -> None:
        if c.life == "open":
            self.read(c, c.group.read_bytes or 4096)
        if c.life == "open":
            self.later(time.monotonic_ns() + int(c.group.every_ms * 1e6), lambda: self.paced_read(c))

    def read(self, c: Connection, most: int) -> None:
        group, r = c.group, c.response
        assert c.link is not None
        assert r is not None
        try:
            data = c.link.recv(most)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = time.monotonic_ns()
        if not data:
            group.counts["closed_by_server"] += 1
            self.ended(c, clean=r.until_close)
            return
        before, headless = r.tokens, not r.status
        group.counts["reads"] += 1
        group.counts["bytes"] += len(data)
        try:
            r.feed(data)
        except ValueError as error:
            r.wrong = r.wrong or f"token {r.tokens}: {error}"
        group.counts["answered"] += headless and bool(r.status)
        if r.tokens > before:
            self.arrived(c, r.tokens - before, now)
        if r.ended and r.held:
            r.wrong = r.wrong or "bytes after the end of the answer"
        if r.ended:
            self.ended(c, clean=True)
        elif r.wrong or (r.status and r.status != 200):
            self.ended(c, clean=False)
        elif group.leave_after and r.tokens >= group.leave_after:
            self.leave(c, bool(group.rst))
        elif group.stall_after and r.tokens >= group.stall_after:
            self.watch(c, 0)

    def arrived(self, c: Connection, tokens: int, now: int) -> None:
        group = c.group
        group.counts["tokens"] += tokens
        if not c.first:
            c.first = now
            us = (now - c.started) // 1000
            group.first.values.append(us)
            if c.first_us < 0:
                c.first_us = us
                group.counts["begun"] += 1
                group.last_first_token_us = max(group.last_first_token_us, (now - self.run_at) // 1000)
            self.settle(c)
        elif c.last:
            group.gap.values.append((now - c.last) // 1000)
        c.last = now
        if group.rate:
            c.arrivals.extend([(now - c.first) // 1000] * tokens)

    def judge_pace(self, c: Connection) -> None:
        if c.arrivals:
            step = 1e6 / c.group.rate
            offsets = [at - i * step for i, at in enumerate(c.arrivals)]
            least = min(offsets)
            c.group.late.values.extend(int(offset - least) for offset in offsets)
            c.arrivals.clear()

    def ended(self, c: Connection, *, clean: bool) -> None:
        group, r = c.group, c.response
        assert r is not None
        if r.status and r.status != 200:
            group.counts["bad_status"] += 1
            self.note(c, f"status {r.status}")
        elif r.wrong:
            group.counts["wrong"] += 1
            self.note(c, r.wrong)
        elif not clean or not r.status or (group.dialect != "plain" and not r.done):
            group.counts["cut"] += 1
            self.note(c, f"cut after {r.tokens} tokens" if r.status else "closed without an answer")
        elif group.tokens and r.tokens != group.tokens:
            group.counts["wrong"] += 1
            self.note(c, f"complete with {r.tokens} tokens of {group.tokens}")
        else:
            group.counts["completed"] += 1
            group.answer.values.append((time.monotonic_ns() - c.started) // 1000)
        if group.rate:
            self.judge_pace(c)
        c.answers += 1
        if group.mode != "short" or (group.requests and c.answers >= group.requests):
            self.hang_up(c, "finished")
            return
        c.first = c.last = 0
        if r.close or not clean:
            assert c.link is not None
            self.watch(c, 0)
            c.link.close()
            group.counts["reconnects"] += 1
            self.connect(c)
        else:
            c.response = Response(group.expected, group.dialect, group.tokens)
            c.started = time.monotonic_ns()
            self.send(c)

    def leave(self, c: Connection, rst: bool) -> None:
        if c.link is None:
            return
        if rst:
            c.link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        c.left_at = time.monotonic_ns()
        c.group.counts["left"] += 1
        self.hang_up(c, "left")

    def hang_up(self, c: Connection, life: str) -> None:
        if c.link is not None:
            self.watch(c, 0)
            c.link.close()
            c.link = None
        c.life = life
        self.settle(c)

    def note(self, c: Connection, why: str) -> None:
        c.group.first_wrong = c.group.first_wrong or f"connection {c.index}: {why}"

    def settle(self, c: Connection) -> None:
        if c.settled:
            return
        c.settled = True
        c.group.settled += 1
        if c.group.sequential and c.index + 1 < c.group.count:
            following = c.group.connections[c.index + 1]
            self.later(time.monotonic_ns(), lambda: self.connect(following))

    # --- answers

    def report(self, event: str, whole: bool) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        now = time.monotonic_ns()
        late = Histogram()
        groups = {}
        for name, group in self.groups.items():
            shown: dict[str, Any] = {
                "connections": group.count,
                **group.counts,
                "open": sum(c.life == "open" for c in group.connections),
                "last_first_token_us": group.last_first_token_us,
                "first_wrong": group.first_wrong,
            }
            if whole:
                for c in group.connections:
                    self.judge_pace(c)
                late.values.extend(group.late.values)
                shown |= {
                    "gap_us": group.gap.summary(),
                    "late_us": group.late.summary(),
                    "answer_us": group.answer.summary(),
                    "first_us": group.first.summary(),
                    "first_token_us": [c.first_us for c in group.connections],
                    "stream_tokens": [c.response.tokens if c.response else 0 for c in group.connections],
                    "left_at_ns": [c.left_at for c in group.connections],
                }
            groups[name] = shown
        answer = {
            "event": event,
            "ns": now,
            "seconds": (now - self.run_at) / 1e9 if self.run_at else 0.0,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "groups": groups,
            "late_us": late.summary(),
        }
        print(json.dumps(answer), flush=True)

    def say_how_far(self) -> None:
        everyone = sum(group.count for group in self.groups.values())
        counts = [group.counts for group in self.groups.values()]
        connected = sum(count["connected"] - count["reconnects"] + count["failed"] for count in counts)
        if not self.said_connected and connected >= everyone:
            self.said_connected = True
            self.report("connected", False)
        if not self.said_streaming and sum(group.settled for group in self.groups.values()) >= everyone:
            self.said_streaming = True
            self.report("streaming", False)

    def serve(self) -> None:
        self.selector.register(0, selectors.EVENT_READ, None)
        while True:
            wait = max(0.0, (self.timers[0][0] - time.monotonic_ns()) / 1e9) if self.timers else None
            for key, events in self.selector.select(wait):
                if key.data is None:
                    self.take_commands()
                else:
                    self.ready(key.data, events)
            while self.timers and self.timers[0][0] <= time.monotonic_ns():
                heapq.heappop(self.timers)[2]()
            if self.run_at and not (self.said_connected and self.said_streaming):
                self.say_how_far()


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        Generator().serve()
    except (SystemExit, KeyboardInterrupt):
        sys.exit(0)
