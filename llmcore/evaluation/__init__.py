"""Bits per byte, baselines, memorisation, samples."""
