"""Documents to better documents: extract, clean, language, personal data."""
