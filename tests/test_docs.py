"""The documentation: its commands, the reference that is made from the code, the site."""

import collections
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import programs
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(p for p in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
               if "_build" not in p.parts and p.name != "configuration.md")
_BLOCK = re.compile(r"(?:<!-- (needs|run by): ([^\n]+?) -->\n+)?^```(sh|bash|)\n(.*?)^```",
                    re.M | re.S)
_PROGRAM = re.compile(r"^(time )?(python3? |make |pip |pytest |git |sbatch |xmanager |lm_eval )",
                      re.M)
_CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```", re.M | re.S)


def _blocks(page):
  """(what marks it, what stands behind the mark, commands) of every block of commands."""
  for mark, value, language, text in _BLOCK.findall(page.read_text(encoding="utf-8")):
    if language or _PROGRAM.search(text):
      yield mark, value, [c for c in _commands(text) if _PROGRAM.match(c)]


def _commands(text):
  return [line.strip() for line in text.replace("\\\n", " ").splitlines()
          if line.strip() and not line.lstrip().startswith("#")]


def _all_commands():
  """Every command of a page or of an executed cell, with where it stands."""
  for page in PAGES:
    for _, _, commands in _blocks(page):
      yield from ((page, c) for c in commands)
    for cell in _CELL.findall(page.read_text(encoding="utf-8")):
      if "%%bash" in cell:
        yield from ((page, c) for c in _commands(cell) if _PROGRAM.match(c))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_says_who_runs_it(page):
  """A block is marked by what it needs, or names the file that runs it, or is run below."""
  for mark, value, commands in _blocks(page):
    assert commands, f"{page} has a block of commands without a program"
    if mark == "run by":
      text = " ".join((ROOT / name).read_text(encoding="utf-8") for name in value.split(" and "))
      for command in commands:
        program = re.search(r"python3? -m ([\w.]+)", command)
        wanted = program[1] if program else _made_by(command)
        assert wanted is None or wanted in text, command


def _made_by(command):
  """What stands for a command that is not a program of this project."""
  if command.startswith("make "):
    target = command.split()[1]
    if f"make {target}" in (ROOT / ".ci/run").read_text(encoding="utf-8"):
      return None
    recipe = re.search(rf"^{target}:.*\n\t\$\(PY\) -m ([\w.]+)",
                       (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    return recipe[1] if recipe else None
  return None


def test_files_that_commands_name_exist():
  for page, command in _all_commands():
    for path in re.findall(r"(?:--config=|python )((?:configs|docs|tests)/[\w/.]+\.py)", command):
      assert "NAME" in path or (ROOT / path).is_file(), f"{page.name}: {command}"


def test_the_reference_describes_every_field(tmp_path):
  spec = importlib.util.spec_from_file_location("configuration", ROOT / "docs/configuration.py")
  configuration = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(configuration)
  page = configuration.page()
  undescribed = [line for line in page.splitlines() if re.match(r"\| `.*\|\s*\|$", line)]
  assert not undescribed
  for said in ("| `optim.weight_decay` | `0.1` | lambda", "| `optim.schedule.warmup` | `'10%'` |",
               " `[0, 2^31)` |", "## finetune", "| `gsm8k` |"):
    assert said in page
  path = tmp_path / "page.md"
  configuration.write(path)
  before = path.stat().st_mtime_ns
  configuration.write(path)  # unchanged, so that a build does not redo what reads it
  assert path.stat().st_mtime_ns == before


@pytest.mark.slow
def test_commands_are_those_that_programs_take(tmp_path):
  """Every flag and every field of every command exists and has a value of its type."""
  by_module = collections.defaultdict(list)
  for _, command in _all_commands():
    match = re.match(r"(?:time )?python3? -m ([\w.]+)(.*)", command)
    if match and match[1].startswith(("wd_plasticity", "launch")) and "NAME" not in match[1]:
      arguments = shlex.split(re.split(r" (?:\|\|?|>|&&) ", match[2])[0])
      # lm_eval_cli hands over to the harness; what is left out is meant to be a mistake.
      if not match[1].endswith("lm_eval_cli") and not any(
          "wheight" in a or "$" in a for a in arguments):
        # A word in capitals stands for arguments that the page tells beside it.
        by_module[match[1]].append([a for a in arguments if not re.fullmatch("[A-Z]+", a)])
  assert len(by_module) > 10
  refused = []
  for module, lines in by_module.items():
    file = tmp_path / module
    file.write_text("".join(json.dumps(a) + "\n" for a in lines), encoding="utf-8")
    refused += programs.run("parse_flags", module, file).splitlines()
  # A config of a page's own is written by the page.
  assert [r for r in refused if "runs/own_data" not in r] == []


@pytest.mark.slow
def test_unmarked_commands_run(tmp_path):
  """In a copy of what is tracked, page by page, in their order."""
  copy = tmp_path / "clone"
  listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True,
                          capture_output=True, check=True).stdout.splitlines()
  for name in listed:
    if (ROOT / name).is_file():
      (copy / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(ROOT / name, copy / name)
  for page in PAGES:
    for mark, _, commands in _blocks(page):
      for command in commands if not mark else ():
        done = subprocess.run(command, shell=True, cwd=copy, text=True, capture_output=True,
                              env=_environment(copy))
        assert done.returncode == 0, f"{page.name}: {command}\n{done.stdout}\n{done.stderr}"


def _environment(root):
  path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
  return os.environ | {"PATH": path, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
