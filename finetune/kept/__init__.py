"""What a finished run keeps: the features of its pictures, and its earlier states."""
