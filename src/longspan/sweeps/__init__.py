"""Many runs, one command."""
