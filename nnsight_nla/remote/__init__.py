"""Remote runs on an NDIF host: what is sent, what comes back, and what can go wrong on the way."""
