"""Open, load, place in memory and run the language models that an NLA uses."""
