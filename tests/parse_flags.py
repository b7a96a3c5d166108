"""Parses command lines of a program without running it: those of the documentation.

  python -m parse_flags MODULE FILE     one JSON list of arguments per line

Prints a line for every command that the program would refuse.
"""

import json
import os
import runpy
import sys

from wd_plasticity import cli
from wd_plasticity.errors import UserError


def main(module: str, file: str) -> None:
  parse = cli._parse
  cli.run = lambda main, addresses=(): None  # what every program calls at its end
  sys.argv = [module]
  sys.modules.pop(module, None)
  runpy.run_module(module, run_name="__main__")
  rewrite = list
  if module.startswith("launch."):
    from launch.command_line import as_config_flags as rewrite
  for line in open(file, encoding="utf-8"):
    arguments = json.loads(line)
    child = os.fork()  # flags can be parsed only once
    if not child:
      sys.argv = rewrite([module, *arguments])  # where fields of the config are looked up
      try:
        parse(sys.argv)
      except UserError as e:
        print(f"{module} {' '.join(arguments)}: {e}", flush=True)
      finally:
        os._exit(0)
    os.waitpid(child, 0)


if __name__ == "__main__":
  main(*sys.argv[1:])
