"""The torch networks, their configuration and checkpoints; importable without a trainer."""
