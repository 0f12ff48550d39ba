"""``rawstream doctor``: does a deployment stream, and what does a model server do when nobody reads?

Probes measure (``edge_probes``, ``upstream_probes``), findings judge (``edge_findings``, ``upstream_findings``: pure),
a plan puts the two together (``edge``, ``upstream``), and ``report`` shows what came of it.
"""
