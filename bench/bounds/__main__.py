"""``python -m bench.bounds [ROW …] [--quick] [--json FILE] [--list]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.bounds import dropped, ends, gateway, leavers, llamacpp, memory, pairing, slow_readers, stalled, tls
from bench.bounds.table import Bench, as_json, markdown, run

ROWS = (
    *stalled.ROWS,
    *gateway.ROWS,
    *llamacpp.ROWS,
    *memory.ROWS,
    *leavers.ROWS,
    *pairing.ROWS,
    *ends.ROWS,
    *slow_readers.ROWS,
    *dropped.ROWS,
    *tls.ROWS,
)


def main() -> int:
    """Measure; 1 when a row fails, 2 for a row that there is not."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.bounds", description="Measure the bounds that rawstream promises."
    )
    parser.add_argument("row", nargs="*", help="rows by name or the beginning of it (default: all)")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--quick", action="store_true", help="shorter waits, fewer connections in the comparisons")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--llamacpp", metavar="URL", help="a llama.cpp server that runs already (http://127.0.0.1:9301)"
    )
    parser.add_argument(
        "--llamacpp-python",
        metavar="PATH",
        help="a Python with xllamacpp, gguf and tokenizers; default: RAWSTREAM_LLAMACPP_PYTHON, or one is set up in "
        "the cache folder",
    )
    options = parser.parse_args()
    wanted = [row for row in ROWS if not options.row or any(row.name.startswith(name) for name in options.row)]
    if options.list:
        for row in wanted:
            print(f"{row.name:22} {row.title}: {row.must}")
        return 0
    if not wanted:
        print(f"no such row; there are: {', '.join(row.name for row in ROWS)}", file=sys.stderr)
        return 2
    bench = Bench(quick=options.quick, llamacpp_url=options.llamacpp, llamacpp_python=options.llamacpp_python)
    results = run(wanted, bench)
    print(markdown(results))
    if options.json:
        options.json.write_text(as_json(results) + "\n")
    return 0 if all(result.verdict.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
