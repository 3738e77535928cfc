"""Measuring encoders: protocols, episodes, verification, thresholds, intervals."""
