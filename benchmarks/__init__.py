"""Speed, measured beside the alternatives in one run and reported as ratios."""
