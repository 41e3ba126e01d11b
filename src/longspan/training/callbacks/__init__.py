"""Callbacks: exact resumption, checkpoints, throughput, progress, the last validation."""
