"""What `%%bash` does in the tutorials: IPython's own breaks lines where its pipe does."""

import subprocess

from IPython.core.magic import register_cell_magic


@register_cell_magic
def bash(line, cell):
  """Runs a cell of commands; shows what it printed, and ends the page if it failed."""
  done = subprocess.run(["bash", *line.split(), "-c", cell], text=True, stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT)
  print(done.stdout, end="")
  if done.returncode:
    raise RuntimeError(f"the commands ended with status {done.returncode}")
