"""Name the new command: building the tiny pair moved to ``tutorials/recipes/tiny``."""

import sys

if __name__ == "__main__":
    sys.exit("Moved. In the root of a clone, run: python -m tutorials.recipes.tiny.build")
