"""What a user keeps: the classifier, its run folder, probabilities, export."""
