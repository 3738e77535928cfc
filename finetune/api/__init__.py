"""One file for each job: fit, evaluate, inspect, probe, demo."""
