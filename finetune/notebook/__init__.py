"""Results as HTML for a notebook: no script, nothing loaded, colours that fit a light and a dark page."""
