"""Football match results into participant shares, payout instructions and settlement records."""
