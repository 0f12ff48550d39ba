"""The TLS side of ``rawstream chaos``: certificates that are as wrong as they are asked to be.

Rule 1: the ``openssl`` program makes them, anew at each start; no key is kept, and none comes with rawstream.
Rule 2: where only the certificate's own fault is meant, it can be trusted otherwise: the server gives it away
        (``GET /chaos/certificate``), for ``--upstream-ca``.
"""

from __future__ import annotations

import ssl
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from rawstream.errors import MisuseError

MODES: Final[Mapping[str, str]] = {
    "self-signed": "a certificate that nobody has signed: good once it is trusted",
    "expired": "a certificate that is no longer valid",
    "wrong-name": "a certificate of another host",
    "truncate": "as self-signed, and every connection ends without a close_notify, as if it had been cut",
}
"""What ``--tls`` may be. Row 51 of the faults."""

_WITHIN: Final = 30
_NEW_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Certificate(NamedTuple):
    """A certificate in use."""

    context: ssl.SSLContext
    pem: str
    """The certificate alone, without its key."""


def make_certificate(mode: str) -> Certificate:
    """A certificate for 127.0.0.1, ::1 and localhost, as ``mode`` of MODES says.

    Blocks for some milliseconds. Raises MisuseError where there is no ``openssl`` program, or it fails.
    """
    with tempfile.TemporaryDirectory(prefix="rawstream-chaos-") as name:
        folder = Path(name)
        key, request, made, extension = (folder / file for file in ("key.pem", "req.pem", "cert.pem", "ext.txt"))
        named = "DNS:elsewhere.invalid" if mode == "wrong-name" else "IP:127.0.0.1,IP:::1,DNS:localhost"
        extension.write_text(f"subjectAltName={named}\nbasicConstraints=critical,CA:TRUE\n")
        days = "-1" if mode == "expired" else "30"
        _openssl("req", *_NEW_KEY, "-subj", "/CN=rawstream chaos", "-keyout", key, "-out", request)
        signed = ("-req", "-in", request, "-signkey", key, "-days", days, "-extfile", extension, "-out", made)
        _openssl("x509", *signed)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made, key)
        return Certificate(context, made.read_text())


def _openssl(*arguments: str | Path) -> None:
    try:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=_WITHIN)
    except FileNotFoundError:
        raise MisuseError("TLS needs the openssl program, which is not installed") from None
    except (subprocess.SubprocessError, OSError) as error:
        said = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else ""
        raise MisuseError("openssl could not make a certificate", detail=said) from None
