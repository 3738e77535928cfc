"""Siamese training."""
