"""Repositories of the Hugging Face hub: their addresses, what is fetched from them and pushed to them."""
