"""Run on an NDIF host: check blocks, send requests, rebuild results, report errors."""
