"""Content-addressed artifacts: keys, store, manifests, stages, lineage, garbage collection."""
