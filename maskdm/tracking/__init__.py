"""What a run leaves: record files, and MLflow's view of them."""
