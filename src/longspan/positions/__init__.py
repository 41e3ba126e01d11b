"""Models extended to more positions than they were trained with."""
