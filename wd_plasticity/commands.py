"""Commands as a user would type them, from what was parsed and not from the words that were typed.

So a flag file, `--noconfig.FIELD`, `--config FILE` and `--set_config` reach the programs that are
started with the same configuration, and the records of what was run.
"""

from collections.abc import Sequence

from absl import flags

from wd_plasticity import cli


def config_words(name: str = "config") -> list[str]:
  """The configuration of this program: --config=FILE, and --config.FIELD=VALUE for what was set."""
  filename, values = cli.config_source(name)
  return [f"--{name}={filename}",
          *(f"--{name}.{field}" + ("" if value is True else f"={value}")
            for field, value in values.items())]


def words(module: str, names: Sequence[str]) -> list[str]:
  """This program's command: arguments of the Python interpreter.

  Args:
    module: of the program.
    names: of the flags that decide what it does, in the order in which they are shown.
  """
  made = ["-m", module]
  for name in names:
    flag = flags.FLAGS[name]
    if not flag.present:
      continue
    if name == "config":
      made += config_words()
    elif flag.boolean:
      made.append(f"--{name}" if flag.value else f"--no{name}")
    else:
      values = flag.value if isinstance(flag.value, list) else [flag.value]
      made += [f"--{name}={value}" for value in values]
  return made
