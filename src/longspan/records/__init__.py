"""What a run leaves, as names and shapes."""
