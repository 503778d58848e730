"""The configuration, the chain of steps it means, and what running it would do."""
