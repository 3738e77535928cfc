"""A local page to try a run or a gallery on: pictures and their answers, corrections and undo."""
