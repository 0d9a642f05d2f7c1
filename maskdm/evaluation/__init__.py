"""From weights to numbers: samples, features, distances."""
