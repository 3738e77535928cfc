"""Encoders, and the embedding API."""
