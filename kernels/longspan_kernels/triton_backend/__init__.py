"""The Triton kernels and what launches them; empty, so that schedules and sizes are read without Triton."""
