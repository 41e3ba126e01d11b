"""Analysis: what a pattern can see, what it costs, and how runs compare."""
