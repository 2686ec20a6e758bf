"""Where a run's numbers go, and what a run says of itself."""
