"""One module per asset with its checks, in money order."""
