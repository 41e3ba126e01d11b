"""Attention over kept blocks in plain PyTorch: the CPU's path, and the oracle of every kernel."""
