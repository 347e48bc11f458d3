"""Wing one: language models. Prompt groups packed on one row, log-probabilities, reward models, and the objectives over them."""
