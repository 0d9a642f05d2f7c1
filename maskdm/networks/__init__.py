"""Networks on a set of tokens, and the tokens."""
