"""The answers of a classifier: predictions, their table, pictures sorted by them."""
