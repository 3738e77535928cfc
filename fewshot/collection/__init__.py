"""Collections that do not fit one machine: embedded in parts, by several processes, and merged into an index."""
