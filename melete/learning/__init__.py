"""Changing the weights: the `Learner` protocol and its local form."""
