"""What is fast and why: each module prints a table, `python -m benchmarks.<name>`."""
