"""nginx and HAProxy, the real programs, in front of a port: what stands between rawstream and its clients.

Rule 1: configurations are the text that a user would install, with ``127.0.0.1:8000`` for rawstream and port 80 for
        the clients' side; starting one puts the real ports in, and changes nothing else of it.
Rule 2: a front is up when it accepts, and down when its processes have ended; what it logged is in the failure.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.tools import missing

README: Final = Path(__file__).resolve().parents[2] / "README.md"
_START_WITHIN: Final = 10.0
_STOP_WITHIN: Final = 5.0
_TRIES: Final = 3
"""Another process may take the free port that was found before the front binds it."""


def require_tool(name: str) -> str:
    """The path of a program; Debian keeps nginx and HAProxy in ``/usr/sbin``, which is not on everybody's PATH."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        missing(f"the program {name}")
    return path


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Front:
    """A proxy that runs while the ``with`` block does. ``url`` and ``port`` are the clients' side."""

    program: str

    def __init__(self, config: str, upstream_port: int) -> None:
        """``config``: one of the functions below, or the like. ``upstream_port``: rawstream's."""
        self._path = require_tool(self.program)
        self._text = config.replace("127.0.0.1:8000", f"127.0.0.1:{upstream_port}")
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def write(self, folder: Path, text: str) -> list[str]:
        """Write the configuration for ``self.port`` into ``folder``; the command line."""
        raise NotImplementedError

    def logs(self) -> str:
        """All that it has said so far: its stderr, its error log, its access log."""
        folder = Path(self._folder.name) if self._folder else Path("/nonexistent")
        names = ("stderr", "error.log", "access.log")
        parts = [f"--- {name}\n{(folder / name).read_text()}" for name in names if (folder / name).is_file()]
        return "\n".join(parts)[-6000:]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of its master process."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="front-", ignore_cleanup_errors=True)
        try:
            for _ in range(_TRIES):
                if self._start(Path(self._folder.name)):
                    return self
            raise AssertionError(f"{self.program} does not start:\n{self.logs()}")
        except BaseException:
            self._stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"{self.program} says:\n{self.logs()}")
        self._stop()

    def _start(self, folder: Path) -> bool:
        self.port = free_port()
        command = self.write(folder, self._text)
        with open(folder / "stderr", "ab") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, cwd=folder, start_new_session=True
            )
        until = time.monotonic() + _START_WITHIN
        while self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return self._process.poll() is None
            except OSError:
                assert time.monotonic() < until, f"{self.program} does not accept:\n{self.logs()}"
                time.sleep(0.01)  # no event tells when another program listens
        return False

    def _stop(self) -> None:
        process, folder = self._process, self._folder
        try:
            if process is not None and process.poll() is None:
                process.terminate()  # for both: now, with its connections
                try:
                    process.wait(_STOP_WITHIN)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, 9)
                    process.wait(_STOP_WITHIN)
        finally:
            if folder is not None:
                folder.cleanup()


_NGINX = """\
daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log info;
{user}
events {{ worker_connections 768; }}
http {{
    # What Debian's nginx.conf has beside the sites.
    sendfile on;
    tcp_nopush on;
    gzip on;
    default_type application/octet-stream;
    access_log access.log;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
{site}
}}
"""


class Nginx(Front):
    """nginx. ``config``: a file of ``sites-enabled`` or ``conf.d``, which listens on port 80."""

    program = "nginx"

    def write(self, folder: Path, text: str) -> list[str]:
        site, count = re.subn(r"\blisten 80\b", f"listen 127.0.0.1:{self.port}", text)
        assert count == 1, "the site must listen on port 80, once"
        # Started by root, nginx would give its worker to 'nobody', who cannot write here.
        user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(_NGINX.format(user=user, site=site))
        return [self._path, "-e", "error.log", "-p", str(folder), "-c", str(folder / "nginx.conf")]


_HAPROXY = """\
global
    log stderr local0
{text}
"""


class HAProxy(Front):
    """HAProxy. ``config``: what follows ``global`` in ``haproxy.cfg``; it binds port 80."""

    program = "haproxy"

    def write(self, folder: Path, text: str) -> list[str]:
        rest, count = re.subn(r"bind :80\b", f"bind 127.0.0.1:{self.port}", text)
        assert count == 1, "the configuration must bind port 80, once"
        (folder / "haproxy.cfg").write_text(_HAPROXY.format(text=rest))
        return [self._path, "-db", "-f", str(folder / "haproxy.cfg")]


# --- configurations -----------------------------------------------------------------------------------------


def from_readme(name: str) -> str:
    """The README's block between the markers ``name:start`` and ``name:end``."""
    found = re.search(
        rf"<!-- {name}:start -->\n```\w*\n(.*?)\n```\n<!-- {name}:end -->",
        README.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert found is not None, f"the README has no block {name}"
    return found[1]


def nginx_readme() -> str:
    """The README's nginx site."""
    return from_readme("nginx")


def nginx_as_debian_ships(*directives: str) -> str:
    """The packaged site with the one line that makes a proxy of it, and every default: HTTP/1.0 to the upstream,
    buffering on. ``directives`` are added to the location."""
    return "server {{\n    listen 80;\n    location / {{\n        {}\n    }}\n}}".format(
        "\n        ".join(("proxy_pass http://127.0.0.1:8000;", *directives))
    )


def nginx_buffering() -> str:
    """The packaged site in a deployment that does not listen to ``x-accel-buffering: no``, and so does buffer."""
    return nginx_as_debian_ships("proxy_ignore_headers X-Accel-Buffering;")


def nginx_gzip() -> str:
    """A deployment that does not buffer, but compresses event streams too."""
    return nginx_as_debian_ships(
        "proxy_http_version 1.1;",
        'proxy_set_header Connection "";',
        "proxy_buffering off;",
        "gzip on;",
        "gzip_proxied any;",
        "gzip_min_length 0;",
        "gzip_buffers 4 4k;",
        "gzip_types text/event-stream text/plain application/json;",
    )


DEBIAN_DEFAULTS: Final = """\
defaults
    log global
    mode http
    option httplog
    option dontlognull
    timeout connect 5000
    timeout client 50000
    timeout server 50000
"""
"""The ``defaults`` section of Debian's ``haproxy.cfg``."""


def haproxy_as_debian_ships() -> str:
    """Debian's ``defaults``, and the least that makes a proxy of them."""
    return f"{DEBIAN_DEFAULTS}\nlisten rawstream\n    bind :80\n    server one 127.0.0.1:8000\n"


def haproxy_readme() -> str:
    """Debian's ``defaults``, and the README's sections after them."""
    return f"{DEBIAN_DEFAULTS}\n{from_readme('haproxy')}\n"


def change(text: str, *changes: tuple[str, str]) -> str:
    """``text`` with each line that begins as the first of a pair replaced by the second; '' takes it out.

    AssertionError when there is no such line: a control that changes nothing shows nothing.
    """
    for beginning, line in changes:
        lines = text.split("\n")
        found = [at for at, old in enumerate(lines) if old.strip().startswith(beginning)]
        assert found, f"no line begins with {beginning!r} in:\n{text}"
        for at in found:
            indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
            lines[at] = indent + line
        text = "\n".join(lines)
    return text
