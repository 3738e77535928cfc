"""What a frozen network makes of pictures: computed once, fast, and kept."""
