"""Payment processors: one protocol in `base`, one folder per processor with the same file names in each."""
