"""What runs and patterns are like: what they cost, what they can see, how they compare."""
