"""What artifacts can be asked: funnel, trace, verification."""
