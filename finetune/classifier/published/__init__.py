"""Runs on the Hugging Face hub: what of a run is pushed, its model card, and runs that are fetched."""
