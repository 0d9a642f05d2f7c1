"""From settings and data to weights: objective, optimizers, the plan that spends the budget, the loop, its files."""
