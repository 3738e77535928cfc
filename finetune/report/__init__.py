"""Charts, pages and diagnosis of a finished run."""
