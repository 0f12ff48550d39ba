"""``python -m bench.peers._behind PORT COMMAND … -- FRONT …``: start COMMAND, wait for its port, become FRONT."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time


def main() -> None:
    """Exit status 1 when COMMAND does not accept within 30 s."""
    port, cut = int(sys.argv[1]), sys.argv.index("--")
    behind, front = sys.argv[2:cut], sys.argv[cut + 1 :]
    process = subprocess.Popen(behind)
    until = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"{behind[0]} does not accept on port {port}")
            time.sleep(0.02)
        else:
            break
    os.execvp(front[0], front)


if __name__ == "__main__":
    main()
