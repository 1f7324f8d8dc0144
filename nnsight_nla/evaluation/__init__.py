"""From text back to vectors, and what that says about an explanation: scores, labels, claims."""
