"""Omniglot: read, downloaded, and split as published."""
