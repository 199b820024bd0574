"""What a run measures, shows and tells of itself while it trains."""
