"""The outside world to documents: crawl, collect, ingest."""
