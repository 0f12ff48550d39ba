"""Hypercorn with the same Starlette application as uvicorn's."""

from __future__ import annotations

from bench.peers.contract import BACKLOG, SERVER_PATHS, Peer, PeerContext, python_packages

_version, _missing = python_packages("hypercorn", "starlette", "h11", "uvloop")


def _command(ctx: PeerContext) -> list[str]:
    return [
        ctx.python, "-m", "hypercorn", "asgi:bench.peers.uvicorn_starlette:create_app()",
        "--bind", f"{ctx.host}:{ctx.port}", "--worker-class", "uvloop", "--workers", "1",
        "--log-level", "WARNING", "--backlog", str(BACKLOG),
    ]  # fmt: skip


PEERS = (
    Peer(
        name="hypercorn-starlette",
        kind="server",
        command=_command,
        paths=SERVER_PATHS,
        version=_version,
        missing=_missing,
        notes=(
            "hypercorn --worker-class uvloop --workers 1 (a parent and one worker process); StreamingResponse. HTTP/2 "
            "with its defaults (h2_max_concurrent_streams 100)."
        ),
        http2=True,
    ),
)
