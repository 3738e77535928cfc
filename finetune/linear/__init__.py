"""Linear models on features: head, probes of every depth, logistic regression, wrong labels."""
