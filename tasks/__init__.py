"""Prefect tasks: one a stage, or a chunk of its shards."""
