"""The campaigns of `benchmarks/faults.py`: each makes faults of one kind and judges what the project does."""
