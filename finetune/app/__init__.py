"""A run over HTTP: a service for programs and a page for people, and what both have in common with `fewshot`."""
