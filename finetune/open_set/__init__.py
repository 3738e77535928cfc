"""Pictures of none of the classes: scores of novelty, thresholds for them, and how good both are."""
