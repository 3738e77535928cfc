"""The index: nearest neighbours of named vectors, its files, and indexes of pictures."""
