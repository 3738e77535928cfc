"""Protocols, episodes, verification and thresholds, with intervals."""
