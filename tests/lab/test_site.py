"""The page's files: by exact name, always fresh, loading nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

import rawstream
from rawstream.lab.site import FOLDER, Site
from rawstream.server.app import App
from rawstream.settings import Settings
from rawstream.sources.mock import MockSource
from tests.support.flow import Client, get


class _Only:
    """An extension: one folder's files."""

    def __init__(self, folder: Path) -> None:
        self.site = Site(folder)

    def register(self, app: App) -> None:
        self.site.register(app.router)


async def fetch(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, fields, body."""
    client = Client(rcvbuf=0)
    try:
        await client.connect(port)
        await client.send(request)
        raw = await client.read_all()
    finally:
        client.close()
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split(" ")[1]), dict(line.lower().split(": ", 1) for line in lines), body


def ask(path: str, *fields: str) -> bytes:
    return get(path, "1.1", "Connection: close", *fields).replace(b"Host: test", b"Host: localhost")


async def test_every_file_of_the_page_is_served_with_its_type_and_its_guards(loop_kind: str) -> None:
    types = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".ts": "text/plain"}
    async with rawstream.Server(Settings(port=0)) as server:
        files = Site().files
        assert {"/", "/client.js", "/client.d.ts", "/page.js"} <= files.keys()
        for url, path in files.items():
            status, fields, body = await fetch(server.port, ask(url))
            assert (status, body) == (200, path.read_bytes())
            assert fields["content-type"].startswith(types.get(path.suffix, "image/svg+xml"))
            assert fields["cache-control"] == "no-cache"
            assert fields["x-content-type-options"] == "nosniff"
            assert "default-src 'self'" in fields["content-security-policy"]


async def test_what_is_known_is_not_sent_again(tmp_path: Path, loop_kind: str) -> None:
    """``If-None-Match`` with the file's tag: 304. When the file has changed: the new one."""
    file = tmp_path / "page.js"
    file.write_text("one")
    app = App(Settings(port=0), MockSource(), extensions=(_Only(tmp_path),))
    await app.start()
    try:
        port = int(app.sockets[0].getsockname()[1])
        status, fields, _ = await fetch(port, ask("/page.js"))
        tag = fields["etag"]
        for known in (tag, f'"other", W/{tag}', "*"):
            status, fields, body = await fetch(port, ask("/page.js", f"If-None-Match: {known}"))
            assert (status, body, fields["etag"]) == (304, b"", tag)
        file.write_text("two")
        status, fields, body = await fetch(port, ask("/page.js", f"If-None-Match: {tag}"))
        assert (status, body) == (200, b"two")
        file.unlink()
        assert (await fetch(port, ask("/page.js")))[0] == 404
    finally:
        await app.close(drain=0)


@pytest.mark.parametrize(
    "path",
    ["/../wrong.py", "/%2e%2e/wrong.py", "/..%2fwrong.py", "/page/index.html", "/index.html", "/wrong.py", "//page.js"],
)
async def test_nothing_else_is_served(path: str) -> None:
    """No path is made of what a client sent."""
    async with rawstream.Server(Settings(port=0)) as server:
        status, _, body = await fetch(server.port, ask(path))
        assert status in (400, 404)
        assert b"import" not in body


def test_the_page_names_nothing_that_is_elsewhere() -> None:
    """No external resources: no URL of another host is loaded by the page or its modules."""
    for path in FOLDER.glob("*"):
        if path.suffix in (".html", ".css", ".js"):
            text = path.read_text()
            for mark in ('src="http', "src='http", "url(http", 'import "http', 'from "http', "//cdn"):
                assert mark not in text, f"{path.name}: {mark}"
