"""Nearest neighbours by name: the index, its files, pictures in it."""
