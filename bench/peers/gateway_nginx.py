"""nginx as streaming manuals have it: ``proxy_buffering off``, HTTP/1.1 and keep-alive upstream."""

from __future__ import annotations

import getpass
import resource
import shutil
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from bench.certificate import Certificate
from bench.peers.contract import BACKLOG, GATEWAY_PATHS, Peer, PeerContext, output_of

_CONFIG = """\
daemon off;
worker_processes 1;
pid {workdir}/nginx.pid;
error_log stderr error;
{user}
worker_rlimit_nofile {files};
events {{
    worker_connections 20000;
}}
http {{
    access_log off;
    client_body_temp_path {workdir}/body;
    proxy_temp_path {workdir}/proxy;
    fastcgi_temp_path {workdir}/fastcgi;
    uwsgi_temp_path {workdir}/uwsgi;
    scgi_temp_path {workdir}/scgi;
    upstream model {{
        server {upstream};
        keepalive 1024;
        keepalive_requests 1000000;
    }}
    server {{
        listen {host}:{port}{speaks} backlog={backlog};
        {certificate}
        keepalive_requests 1000000;
        location / {{
            proxy_pass http://model;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 3600s;
            proxy_send_timeout 3600s;
            send_timeout 3600s;
        }}
    }}
}}
"""


_TLS: Final = (
    "ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3; ssl_prefer_server_ciphers on;"
)


def _program() -> str | None:
    return shutil.which("nginx", path="/usr/sbin:/usr/local/sbin") or shutil.which("nginx")


def configuration(
    ctx: PeerContext, upstream: str, *, certificate: Certificate | None = None, http2: bool = False
) -> str:
    """nginx in front of ``upstream`` (HOST:PORT); https with a certificate, TLS 1.2 and newer, as rawstream has it.

    ``http2``: it speaks that; without a certificate (before 1.25.1) nothing else.
    """
    # Started by root, nginx would give its worker to 'nobody', who cannot write into the work folder.
    user = f"user {getpass.getuser()};" if getpass.getuser() == "root" else ""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return _CONFIG.format(
        files=40000 if hard == resource.RLIM_INFINITY else min(40000, hard),
        workdir=ctx.workdir,
        user=user,
        upstream=upstream,
        host=ctx.host,
        port=ctx.port,
        backlog=BACKLOG,
        speaks=(" ssl" if certificate else "") + (" http2" if http2 else ""),
        certificate=_TLS.format(cert=certificate.cert, key=certificate.key) if certificate else "",
    )


def nginx(ctx: PeerContext, config: Path) -> list[str]:
    """The command line with this configuration file."""
    return [str(_program()), "-e", "stderr", "-p", str(ctx.workdir), "-c", str(config)]


def _command(ctx: PeerContext) -> list[str]:
    config = ctx.workdir / "nginx.conf"
    config.write_text(configuration(ctx, urlsplit(ctx.upstream).netloc))
    return nginx(ctx, config)


def version(ctx: PeerContext) -> str:
    program = _program()
    return "nginx " + (output_of(program, "-v").rpartition("/")[2] if program else "?")


def missing(ctx: PeerContext) -> str | None:
    return None if _program() else "nginx is not installed (python -m bench peers --install --apt)"


PEERS = (
    Peer(
        name="nginx",
        kind="gateway",
        command=_command,
        paths=GATEWAY_PATHS,
        version=version,
        missing=missing,
        stats=None,
        notes=(
            "proxy_buffering off, proxy_http_version 1.1, 'Connection' cleared, keepalive 1024, one worker "
            "(and its master), no access log, timeouts of an hour. Bytes, unread."
        ),
    ),
)
