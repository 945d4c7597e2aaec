"""One network, trained: weights to start from, what is frozen, the classifier, its callbacks, one tracked run."""
