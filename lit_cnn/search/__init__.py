"""Searches among configurations: which to train, with how much of the budget, and what their results are worth."""
