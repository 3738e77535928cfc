"""Pictures: read, listed from folders and tables, assigned to splits, transformed, batched."""
