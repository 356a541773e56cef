"""Feature extractors and the published protocols of scores."""
