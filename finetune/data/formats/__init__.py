"""What each format of pictures needs beyond Pillow: bounds before decoding, and whether the data end early."""
