"""Comparing runs by the files they left: reading, statistics, tables, figures and the page."""
