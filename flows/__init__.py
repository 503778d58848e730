"""Prefect flows: which stages, in which order, when."""
