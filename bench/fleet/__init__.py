"""A fleet on paper: what N streams take, what breaks first, and what an outage does. Pure, measures nothing."""
