"""Certificates made on the spot, by OpenSSL's own program."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.tools import require_tool


@dataclass(frozen=True)
class Certificate:
    """A certificate that has signed itself, and its key: PEM files."""

    cert: Path
    key: Path

    @property
    def flags(self) -> tuple[str, ...]:
        """What ``rawstream serve`` is given."""
        return ("--ssl-certfile", str(self.cert), "--ssl-keyfile", str(self.key))

    def trusting(self) -> ssl.SSLContext:
        """A client's context that trusts this certificate and no other."""
        return ssl.create_default_context(cafile=str(self.cert))


def make_certificate(folder: Path, name: str = "server", *, password: str | None = None) -> Certificate:
    """For ``localhost`` and ``127.0.0.1``; ``name`` is the common name, and that of the files."""
    made = Certificate(folder / f"{name}.pem", folder / f"{name}-key.pem")
    argv = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]
    argv += ["-noenc"] if password is None else ["-passout", f"pass:{password}"]
    argv += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    argv += ["-keyout", str(made.key), "-out", str(made.cert)]
    subprocess.run([require_tool("openssl"), *argv], check=True, capture_output=True, timeout=30)
    return made
