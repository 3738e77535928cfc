"""Recognition from a few examples: gallery, threshold for unknown pictures, open-set metrics."""
