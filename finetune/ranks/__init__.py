"""Several processes that train together: how they start, what they exchange, how they end."""
