"""Which documents: near-duplicates, signals, classifier, quality, decontamination, split."""
