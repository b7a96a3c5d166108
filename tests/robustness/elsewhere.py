"""Runs a program in a folder of its own: python -m elsewhere FOLDER MODULE FLAGS."""

import os
import sys

from bound import become

if __name__ == "__main__":
  os.chdir(sys.argv.pop(1))
  become()
