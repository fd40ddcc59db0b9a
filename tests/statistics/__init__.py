"""Statistical tests: what the population draws is what the models say, at stated error rates."""
