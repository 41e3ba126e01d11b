"""DeepSpeed's names: utilities, and the block of its configuration files."""
