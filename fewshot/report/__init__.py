"""Reports: one page about an encoder, its accuracy and its errors."""
