"""The process of a command: signals that stop it, streams that may be closed, and its start."""
