"""The benchmark harness: what backpressure is worth, measured beside the servers people use.

``python -m bench list`` · ``run SCENARIO|all`` · ``report [DIR]`` · ``peers [--install]``.

Rule 1: bench uses rawstream only through its command line and public API; rawstream knows nothing of bench.
Rule 2: a figure is the server's only when the load generator was not the bottleneck, and every token was checked.
Rule 3: a peer that cannot run is named with its reason; nothing is skipped in silence.

The rooms, from the bottom:
    ``gen/``            C: the generator and the fake upstream
    ``build``, ``programs``, ``pygen``      compile and drive them; the generator's stand-in in Python
    ``sample``, ``trend``, ``netns``        CPU, memory, kernel queues; "rising or level"; a thin pipe
    ``serving``         a peer's process
    ``scenarios/``      one small file each; ``peers/`` one small file per peer
    ``runner``, ``results``                 what is measured, in which order, and what came of it
    ``report``, ``plots``, ``cli``
"""
