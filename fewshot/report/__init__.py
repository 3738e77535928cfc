"""What an encoder learned, as one page."""
