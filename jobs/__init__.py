"""What a person runs: each module is one command, `lawm NAME ...` or `python -m jobs.NAME ...`."""
