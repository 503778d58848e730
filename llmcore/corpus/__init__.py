"""From the outside world to documents: crawl, collect, ingest, extract, clean, …, split."""
