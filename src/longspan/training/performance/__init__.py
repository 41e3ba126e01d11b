"""What a step costs, and what a device could do."""
