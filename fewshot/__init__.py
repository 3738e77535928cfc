"""One-shot learning: embeddings from Siamese networks, nearest neighbours, recognition from one example."""
