"""What wraps a language model: its blocks, its loading, its place in memory, its runtime."""
