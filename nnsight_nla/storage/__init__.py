"""Write files and folders atomically, and lock an output against a second process."""
