"""Each measures against a peer or a limit in one run and prints a ratio: `python -m benchmarks.NAME [--quick]`."""
