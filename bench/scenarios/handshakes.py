"""TLS handshakes: what a new https connection costs, in full and resumed by a ticket."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from bench.peers import Peer
from bench.results import Measurement
from bench.scenarios.base import Bench, Column, Scale, Scenario, check_answers, lasting, ms

CONNECTIONS: Final = 16
SECONDS: Final = {"full": 6.0, "short": 4.0, "toy": 0.6}
SATURATED: Final = 0.9


class Handshakes(Scenario):
    name = "handshakes"
    title = "Handshakes: new https connections"
    about = (
        f"{CONNECTIONS} clients connect, shake hands (TLS 1.3, X25519, ECDSA P-256, a certificate of one), wait for "
        "the server's ticket, say close_notify, close, and connect again. **Full**: each connection anew. **Resumed**: "
        "each with the ticket of the one before (RFC 8446 §2.2). The figure is the CPU time of the server's process "
        "tree per connection, accept and close included, and its inverse, connections per second of a core. A client's "
        "own part (it verifies the signature) costs as much as a fast server's, so that the generator's core can be "
        "full first: then there is no rate, and CPU per handshake stands all the same."
    )
    part_titles = MappingProxyType({"full": "full handshakes", "resumed": "resumed by a ticket"})
    columns = (
        Column("us_per_handshake", "CPU per handshake", "µs", "less", 0, ratio=True),
        Column("per_core", "handshakes per CPU-second", "", "more", 0),
        Column("per_second", "handshakes/s", "", "more", 0),
        Column("p50_ms", "handshake p50", "ms", "less", 2),
        Column("p99_ms", "p99", "ms", "less", 2),
        Column("resumed", "resumed", "of all", None, 3),
        Column("server_cpu", "server's core", "share", None, 2),
        Column("client_cpu", "generator's core", "share", None, 2),
    )
    bars = ("us_per_handshake",)
    us = ("rawstream-tls",)
    wins = (
        "OpenSSL's part is the same for all of them. Around it nginx has compiled code for the connection, uvicorn "
        "uvloop's; rawstream's is Python: a transport, two memory buffers, a protocol and its deadlines for each."
    )

    def parts(self, scale: Scale) -> Sequence[str]:
        return ("full", "resumed")

    def wants(self, peer: Peer, part: str) -> bool:
        return peer.tls and peer.kind != "http2"

    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        return 1.2 * lasting(SECONDS, scale, stretch) + 1.5

    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        resume = int(part == "resumed")
        with bench.server(peer) as server, bench.generator(tls=True) as generator:
            generator.group(
                "clients", count=CONNECTIONS, mode="handshake", port=server.port, request="", tls=1, resume=resume
            )
            generator.run()
            time.sleep(0.2 * bench.lasting(SECONDS))
            generator.reset()
            before, cpu_before = generator.snap(), server.cpu()
            time.sleep(bench.lasting(SECONDS))
            after, cpu_after = generator.snap(), server.cpu()
            result = generator.stop()
        check_answers(found, result)
        seen = {
            key: after["groups"]["clients"][key] - before["groups"]["clients"][key]
            for key in ("connected", "completed", "resumed")
        }
        wall, used = after["seconds"] - before["seconds"], cpu_after - cpu_before
        if not seen["completed"] or not used:
            found.failure = found.failure or "no handshake was completed"
            return
        found.values |= {
            "us_per_handshake": used / seen["completed"] * 1e6,
            "per_core": seen["completed"] / used,
            "resumed": seen["resumed"] / seen["connected"],
            "server_cpu": used / wall,
            "client_cpu": (after["cpu_seconds"] - before["cpu_seconds"]) / wall,
        }
        if used / wall < SATURATED:
            found.marks.append("the server's core was not full: no rate")
        else:
            times = result["groups"]["clients"]["answer_us"]
            found.values |= {
                "per_second": seen["completed"] / wall,
                "p50_ms": ms(times["p50"]),
                "p99_ms": ms(times["p99"]),
            }
        if resume and seen["resumed"] < 0.99 * seen["connected"]:
            found.marks.append("not all were resumed")
