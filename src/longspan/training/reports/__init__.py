"""What is printed, written and logged of a run."""
