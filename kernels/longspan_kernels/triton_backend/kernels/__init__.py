"""Device code: the Triton kernels of forward and backward."""
