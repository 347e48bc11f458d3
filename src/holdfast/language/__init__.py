"""Wing one, language models: prompt groups on one row, log-probabilities, reward models, and objectives over them."""
