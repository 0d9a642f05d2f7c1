"""The stages of `dvc.yaml`: one short script each."""
