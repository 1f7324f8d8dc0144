"""Turn vectors into text: the verbalizer's graph, its pending handles, fast decoding."""
