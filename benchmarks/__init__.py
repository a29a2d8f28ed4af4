"""What servicegroup costs, measured against bare threads: `python -m benchmarks`."""
