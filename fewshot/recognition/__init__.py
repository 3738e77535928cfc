"""Recognition from a few examples, with a threshold for unknown pictures."""
