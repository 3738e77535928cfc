"""Training by gradient: the choice of a strategy, its plan, the loop and what it needs."""
