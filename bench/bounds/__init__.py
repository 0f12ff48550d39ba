"""The bounds that rawstream promises, measured: ``python -m bench.bounds``.

One row per promise: what must be reached, what was measured, and what something else does in the same run, on the
same machine, with the same client. The exit code is 1 when a row fails.

Rule 1: the server is a process of its own, started by its command line, with its defaults unless the row
        says otherwise.
Rule 2: a level is measured from two sides where there are two: what the server says, and what the kernel says.
Rule 3: a comparison that is not installed is left out, and said to be; a row never passes for want of a measurement.
"""
