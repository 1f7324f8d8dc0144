"""From vectors to text: the verbalizer's graph, its queue of pending handles, fast decoding."""
