"""Changes of a finished run: extend, forget, undo."""
