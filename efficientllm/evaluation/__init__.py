"""Quality of a model: held-out perplexity and task accuracy, with what is needed for their intervals."""
