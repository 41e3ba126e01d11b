"""The commands: `longspan` and its words, and training."""
