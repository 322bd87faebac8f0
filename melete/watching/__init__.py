"""A run while it trains, on a page. Reads what the run writes and changes nothing."""
