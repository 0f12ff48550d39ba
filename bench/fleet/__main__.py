"""``python -m bench.fleet`` prints the tables."""

from bench.fleet.tables import everything

print(everything())
