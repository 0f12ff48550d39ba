"""A certificate for the peers that speak TLS: ECDSA P-256, self-signed, made on the spot by OpenSSL's own program."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple


class Certificate(NamedTuple):
    """PEM files."""

    cert: Path
    key: Path


def missing() -> str | None:
    """Why there can be no certificate, or None."""
    return None if shutil.which("openssl") else "the openssl program is not installed"


def make_certificate(folder: Path) -> Certificate:
    """Into this folder; OSError or CalledProcessError when openssl is missing or fails."""
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
    argv += ["-days", "2", "-subj", "/CN=bench", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    argv += ["-keyout", str(made.key), "-out", str(made.cert)]
    subprocess.run(argv, check=True, capture_output=True, timeout=30)
    return made


def trusting_all() -> ssl.SSLContext:
    """A client's context that looks at no certificate: what it talks to was started by itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
