"""What runs a trial, a stage, and many of them."""
