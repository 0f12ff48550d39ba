"""``python -m bench.bounds.tls_objects CERT KEY``: what OpenSSL allocates for one connection, by malloc's own account.

Prints JSON, bytes per server-side connection: ``established`` after the handshake, ``written`` after one record of
2 KiB. Only memory that is in use counts (``mallinfo2``; glibc 2.33 or newer), not what the process has of it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import ssl
import sys

from bench.certificate import trusting_all

_CONNECTIONS = 200
_FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _MallInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


def _in_use() -> int:
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _MallInfo
    info = libc.mallinfo2()
    return int(info.uordblks + info.hblkhd)


class _Connection:
    """The server's half of a connection that was made in memory."""

    def __init__(self, context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        from_server, from_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = client_context.wrap_bio(from_server, from_client)
        done = 0
        while done < 2:
            done = 0
            for half in (client, self.tls):
                try:
                    half.do_handshake()
                    done += 1
                except ssl.SSLWantReadError:
                    pass
                from_server.write(self.outgoing.read())
                self.incoming.write(from_client.read())


def main() -> None:
    """Measure and print."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    client_context = trusting_all()
    _Connection(context, client_context)  # what is made once
    empty = _in_use()
    made = [_Connection(context, client_context) for _ in range(_CONNECTIONS)]
    established = _in_use()
    for each in made:
        each.tls.write(bytes(2048))
        each.outgoing.read()
    written = _in_use()
    print(
        json.dumps({"established": (established - empty) / _CONNECTIONS, "written": (written - empty) / _CONNECTIONS})
    )


if __name__ == "__main__":
    main()
