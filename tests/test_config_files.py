"""Config files: what is written is what is run, and what is wrong is a sentence with its line."""

import copy
import json

import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from wd_plasticity import cli, config_file, members, typed_config
from wd_plasticity.config import as_json, default_config, flatten
from wd_plasticity.errors import Interrupted, UserError
from wd_plasticity.evals import config as eval_config
from wd_plasticity.study import plan as study_plan

_PROGRAMS = ("overfit", "probe", "attention_rank", "finetune", "lm_eval")
_FILE = """import numpy as np
from wd_plasticity.config import default_config
from wd_plasticity.evals.config import *

def get_config({parameters}):
  config = {make}()
  {body}
  return config

{rest}
"""


def _write(folder, body="pass", rest="", make="default_config", parameters=""):
  path = folder / "x.py"
  path.write_text(_FILE.format(body=body, rest=rest, make=make, parameters=parameters))
  return str(path)


def _refused(call, *words):
  with pytest.raises(UserError) as e:
    call()
  said = str(e.value)
  assert "\n" not in said and "Traceback" not in said and "locals" not in said, said
  assert said.endswith((".", "?", "!")) and len(said) < 700, said
  for word in words:
    assert word in said, said
  return said


# Fields.


@pytest.mark.parametrize("body, words", [
    ("config.optim.weigth_decay = 0.3", ("'weigth_decay'", "did you mean weight_decay?")),
    ("config.optimm = dict(a=1)", ("'optimm'", "optim?")),
    ("config.optim.update(weigth_decay=0.3)", ("'weigth_decay'",)),
    ("config.update(dict(optim=dict(weigth_decay=0.3)))", ("'weigth_decay'",)),
    ("config['seeds'] = 1", ("'seeds'", "seed?")),
    ("config.optim.learning_rate = 'much'", ("learning_rate='much' must be a number",)),
    ("config.optim.learning_rate = None", ("learning_rate=None must be a number",)),
    ("config.train.steps = 1e3", ("steps=1000.0 must be a whole number",)),
    ("config.seed = True", ("seed=True must be a whole number",)),
    ("config.model.qk_norm = 1", ("qk_norm=1 must be True or False",)),
    ("config.data.train = 3", ("train=3 must be a text",)),
    ("config.checkpoint.keep_at = 0.5", ("keep_at=0.5 must be a tuple",)),
    ("config.optim = 3", ("optim=3 must be a section",)),
    ("config.seed = {}", ("seed={} must be a whole number",)),
    ("del config.optim.beta1", ("locked",)),
    ("del config.optim", ("locked",)),
    ("print(config.optim.weigth_decay)", ("weigth_decay", "weight_decay")),
])
def test_a_wrong_field_is_refused_in_its_own_line(tmp_path, body, words):
  path = _write(tmp_path, body)
  _refused(lambda: config_file.get_config(path), f"{path}, line 7", body, *words)


@pytest.mark.parametrize("body, words", [
    ("config.unlock(); config.optim.weigth_decay = 0.3",
     ("'optim.weigth_decay'", "optim.weight_decay")),
    ("config.unlock(); config.weight_decay = 0.3", ("'weight_decay'", "optim.weight_decay")),
    ("config.unlock(); del config.optim.beta1", ("lacks the field 'optim.beta1'",)),
    ("config.unlock(); del config['optim']", ("lacks the field 'optim'",)),
    ("config.optim = dict(learning_rate=1e-3)", ("lacks the field 'optim.beta1'",)),
    ("config = config.to_dict(); config['seeds'] = 1; from ml_collections import ConfigDict; "
     "config = ConfigDict(config)", ("'seeds'",)),
    ("config = config.to_dict()", ("dict is not a configuration",)),
    ("config = None", ("NoneType is not a configuration",)),
    ("config.unlock(); config.program = 'finetun'", ("program='finetun' is not known",)),
    ("config.optim.decay.multipliers.mine = 'x'", ("multipliers.mine='x' must be a number",)),
])
def test_a_configuration_of_ones_own_is_compared_with_what_is_known(tmp_path, body, words):
  path = _write(tmp_path, body)
  _refused(lambda: config_file.get_config(path), f"get_config() of {path}", *words)


@pytest.mark.parametrize("program", _PROGRAMS)
def test_configurations_of_evals_are_refused_alike(tmp_path, program):
  make = f"{program}_config"
  for body in ("config.thresold = 3", "config.mesh.dat = 1", "config.steps = 3"):
    path = _write(tmp_path, body, make=make)
    _refused(lambda path=path: config_file.get_config(path, program), "line 7", body)
  added = _write(tmp_path, rest=f"def evals(add):\n  c = {make}()\n  c.thresold = 3\n  add(c)\n")
  evals = cli.load_function(added, "evals")
  _refused(lambda: study_plan.load_evals(evals, None), f"{added}, line 12 (c.thresold = 3)")
  path = _write(tmp_path, make=make)
  _refused(lambda: config_file.get_config(path), f"of {program}", "configs/quickstart.py is one")
  path = _write(tmp_path)
  _refused(lambda: config_file.get_config(path, program), "pretraining", f"configs/{program}.py")


def test_what_is_right_is_taken(tmp_path):
  path = _write(tmp_path, "config.optim.learning_rate, config.model.rope_scaling = 1, [8, 1, 4, 64]"
                "; config.optim.decay.multipliers.mine = 2"
                "; config.optim.schedule.update(name='wsd')"
                "; config.data = dict(config.data, train='x')")
  config = config_file.get_config(path)
  assert type(config.optim.learning_rate) is float and config.model.rope_scaling == (8, 1, 4, 64)
  assert config.optim.decay.multipliers.mine == 2.0 and config.optim.schedule.name == "wsd"
  assert config.data.train == "x" and config.data.source == "embedded"
  assert config.is_locked and config.data.is_locked
  for make in typed_config.DECLARED.values():
    typed_config.check(make(), "x")
    assert make().is_locked


# Code.


@pytest.mark.parametrize("body, words", [
    ("raise RuntimeError('no\\nway')", ("RuntimeError: no way; correct it.",)),
    ("assert config.seed > 3", ("AssertionError; correct it.",)),
    ("{}['a']", ("KeyError: a; correct it.",)),
    ("raise ValueError('x')", ("ValueError: x; correct it.",)),
    ("raise TypeError('x')", ("TypeError: x; correct it.",)),
    ("raise AttributeError('x')", ("AttributeError: x; correct it.",)),
    ("open('/nowhere/x')", ("FileNotFoundError", "/nowhere/x")), ("1 / 0", ("ZeroDivision",)),
    ("import nowhere_to_be_found", ("No module named",)),
    ("exit(3)", ("SystemExit: 3; correct it.",)),
    ("raise BaseException", ("BaseException; correct it.",)),
    ("raise MemoryError", ("MemoryError; correct it.",)),
    ("raise RuntimeError('x' * 5000)", ("xxx...; correct it.",)),
    ("raise StopIteration", ("StopIteration",)),
    ("import ast; ast.parse('(')", ("SyntaxError",)), ("default_config(3)", ("TypeError",)),
])
def test_code_that_raises_is_a_sentence_with_its_line(tmp_path, body, words):
  path = _write(tmp_path, body)
  _refused(lambda: config_file.get_config(path), path, "line 7", body[:60], *words)
  for name in ("sweep", "evals"):
    path = _write(tmp_path, rest=f"def {name}(add):\n  config = default_config()\n  {body}\n")
    _refused(lambda name=name, path=path: cli.load_function(path, name)(print), "line 12", *words)


def test_recursion_without_end_and_interruptions(tmp_path):
  path = tmp_path / "y.py"
  path.write_text("def get_config():\n  return get_config()\n")
  _refused(lambda: config_file.get_config(str(path)), "line 2 (return get_config())",
           "RecursionErr")
  for body, kind in (("raise KeyboardInterrupt", KeyboardInterrupt),
                     ("from wd_plasticity.errors import Interrupted; raise Interrupted('x')",
                      Interrupted)):
    with pytest.raises(kind):
      config_file.get_config(_write(tmp_path, body))


@pytest.mark.parametrize("content, words", [
    (b"", "no function get_config"), (b"x = 1", "no function get_config"),
    (bytes(range(256)), "syntax error"), (b"\x80\x81", "syntax error"), (b"def f(:", "in line 1"),
    (b"import json\n\n1 / 0", "line 3 (1 / 0)"), (b"get_config = 3", "is int, not a function"),
    (b"def get_config(a, b): pass", "needs an argument"), (b"(" * 5000, "x.py"),
    (b"class get_config: pass", "is not a configuration")])
def test_files_that_are_no_config_files(tmp_path, content, words):
  path = tmp_path / "x.py"
  path.write_bytes(content)
  _refused(lambda: config_file.get_config(str(path)), words, str(path))
  assert not (tmp_path / "__pycache__").exists()


def test_places_that_are_no_config_files(tmp_path):
  _refused(lambda: config_file.get_config(str(tmp_path)), "cannot be read (Is a directory)")
  _refused(lambda: config_file.get_config(f"{tmp_path}/none.py"), "there is no config file")
  _refused(lambda: config_file.get_config(""), "names no file")
  _refused(lambda: config_file.get_config("a\0b"), "cannot be read")
  (tmp_path / "config").write_text(_FILE.format(body="pass", rest="", make="default_config",
                                                parameters=""))
  assert config_file.get_config(str(tmp_path / "config")).seed == 0  # whatever its ending


def test_arguments_go_to_functions_that_take_them(tmp_path):
  path = _write(tmp_path, rest="def sweep(add):\n  add({'seed': 1})\n")
  _refused(lambda: config_file.get_config(f"{path}:size=1b"), "not take the argument 'size=1b'")
  path = _write(tmp_path, "config.name = a", parameters="a",
                rest="def sweep(add, a=None):\n  add({'name': str(a)})\n\n"
                     "def evals(add):\n  add(1)\n")
  _refused(lambda: config_file.get_config(path), "needs an argument", ":ARGUMENT")
  assert config_file.get_config(f"{path}:b:c").name == "b:c"
  points = []
  cli.load_sweep(f"{path}:b")(points.append)
  cli.load_sweep(path)(points.append)
  cli.load_function(path, "evals")(points.append, "an argument that it does not take")
  assert points == [{"name": "b"}, {"name": "None"}, 1]
  path = _write(tmp_path, rest="def sweep():\n  pass\n\nevals = 3\n")
  _refused(lambda: cli.load_sweep(path)(print), f"{path}, line 10", "def sweep(add)")
  _refused(lambda: cli.load_function(path, "evals"), "evals of", "is int, not a function")
  assert cli.load_function(path, "nothing") is None


def test_a_file_is_run_once_until_it_changes(tmp_path):
  path = _write(tmp_path, rest="runs = []\nruns.append(1)\ndef sweep(add):\n  add(len(runs))\n")
  seen = []
  for _ in range(2):
    cli.load_sweep(path)(seen.append)
    config_file.get_config(path)
  _write(tmp_path, rest="def sweep(add):\n  add('changed')\n")
  cli.load_sweep(path)(seen.append)
  assert seen == [1, 1, "changed"]


@pytest.mark.parametrize("code, words", [
    ("add()", ("line 11 (add())", "missing 1 required")), ("add(3)", ("line 11", "adds 3")),
    ("add('seed')", ("a point is a dict",)), ("add([('seed', 1)])", ("a point is a dict",)),
    ("add({1: 2})", ("a point is a dict",)), ("add({}, {})", ("TypeError",)),
    ("add({'optim.weight_decay': None})", ("line 11", "weight_decay=None", "wrong type")),
    ("add({'optim.weigth_decay': 1})", ("unknown config field", "did you mean optim.weight_decay")),
    ("add({'weight_decay': 1})", ("unknown config field", "optim.weight_decay")),
    ("add({'optim': 1})", ("optim=1", "must be a section")), ("add({'seed.x': 1})", ("unknown",)),
    ("add({'optim': {'weigth_decay': 1}})", ("optim.weigth_decay",)),
    ("add({'seed': {}})", ("seed={}, which names no field",)),
    ("add({'optim': {'schedule': {}}})", ("optim.schedule={}",)),
    ("add({'name': 'x' * 300})", ("too long for a folder",)),
    ("add({'name': 'a'}); add({'name': 'A'})", ("upper and lower case",)),
    ("pass", ("adds no member",)), ("yield add({})", ("adds no member",)),
])
def test_mistakes_of_a_sweep_are_in_their_line(tmp_path, code, words):
  path = _write(tmp_path, rest=f"def sweep(add):\n  {code}\n")
  _refused(lambda: members.expand(default_config(), cli.load_sweep(path)), *words)


# Numbers of numpy's.


def test_numbers_of_numpy_are_pythons():
  for value, expected in ((np.float64(0.1), 0.1), (np.float32(0.1), 0.1), (np.float16(0.1), 0.1),
                          (np.longdouble("0.1"), 0.1), (np.int64(3), 3), (np.uint8(3), 3),
                          (np.bool_(True), True), (np.str_("x"), "x"), (np.array(0.5), 0.5),
                          (np.array([1, 2]), [1, 2]), ((np.float32(0.3),), (0.3,)),
                          ({"a": [np.int8(1)]}, {"a": [1]}), (np.float32("inf"), float("inf"))):
    got = typed_config.plain(value)
    assert got == expected and type(got) is type(expected), value
    assert repr(got) == repr(expected)
  import jax.numpy as jnp
  assert typed_config.plain(jnp.float32(0.1)) == 0.1
  assert json.dumps(as_json({"a": np.float32(0.1), "b": np.arange(2)})) == '{"a": 0.1, "b": [0, 1]}'
  assert np.isnan(typed_config.plain(np.float64("nan")))


def test_a_sweep_of_numpy_is_that_of_python():
  def expand(*points):
    return members.expand(default_config(), lambda add: [add(p) for p in points])
  field = "optim.weight_decay"
  for kind in (np.float64, np.float32, np.float16, float):
    made, = expand({field: kind(0.1), "seed": np.int32(1)})
    assert made.name == "wd0.1-seed1" and made.overrides == {field: 0.1, "seed": 1}
    assert type(made.config.optim.weight_decay) is float and type(made.config.seed) is int
  # One value is one member, however it is written.
  assert len(expand({field: 0.1}, {field: np.float64(0.1)}, {field: np.float32(0.1)})) == 1
  assert [m.name for m in expand({field: 1}, {field: 1.0}, {field: np.int64(1)})] == ["wd1"]
  assert [m.name for m in expand({field: 0.0}, {field: -0.0})] == ["wd0"]
  # So is one configuration: the order of fields, and fields that are as they were, make no other.
  assert len(expand({field: 2.0, "seed": 1}, {"seed": 1, field: 2.0})) == 1
  assert len(expand({"seed": 0}, {"seed": 0, field: 0.1})) == 1


def test_names_of_members_are_readable_and_safe():
  name = members.member_name
  assert name({"checkpoint.keep_at": (0.25, 0.5)}) == "keep_at0.25_0.5"
  assert name({"optim.decay.rules": ("a.*=b",)}) == "rulesa.__b"
  assert name({"model.qk_norm": True, "data.train": "../x/*"}) == "qk_normTrue-train.._x__"
  made, = members.expand(default_config(), lambda add: add({"optim.schedule": {"name": "wsd"}}))
  assert made.name == "namewsd" and made.config.optim.schedule.warmup == "10%"
  for value in ("", ".", "..", "-", "/", "\n\x1b[31m"):
    assert name({"data.train": value}).startswith("train") and "/" not in name({"name": value})
    assert name({"data.train": value}).isprintable()
  many = members.expand(default_config(), lambda add: [add({"seed": i}) for i in range(200)])
  assert len(many) == 200


def test_the_config_of_a_step_is_read_back_as_it_was(tmp_path):
  def evals(add):
    config = eval_config.finetune_config()
    config.tasks, config.template = np.array(["embedded_topic"]), 'a "b"\n{prompt}\\\'\x00é\u2028'
    config.optim.learning_rate, config.seed = np.float32(3e-4), np.int64(7)
    config.optim.decay.multipliers.lora = np.float64(0.5)
    config.lora.rank, config.evaluate.stop = np.uint8(2), ["\n'''", '"""']
    add(config, sweep=[{"optim.learning_rate": r, "epochs": np.int16(2)}
                       for r in np.logspace(-4, -3, 2)] + [{"evaluate": {"samples": np.int8(1)}}],
        minutes=np.float32(2))
  e, = study_plan.load_evals(evals, None)
  path = tmp_path / "finetune.py"
  path.write_text(study_plan.config_text(e), encoding="utf-8")
  read = config_file.get_config(str(path), "finetune")
  assert flatten(read.to_dict()) == flatten(e.config.to_dict())
  assert as_json(read) == as_json(e.config) and read.optim.learning_rate == 3e-4
  assert type(read.seed) is int and read.optim.decay.multipliers.lora == 0.5
  points = []
  cli.load_sweep(str(path))(points.append)
  assert points == list(e.sweep) and points[-1] == {"evaluate.samples": 1}
  assert [m.name for m in members.expand(read, cli.load_sweep(str(path)), alone=())] == [
      "lr0.0001-epochs2", "lr0.001-epochs2", "samples1"]
  study_plan.fingerprint(as_json(e.config), e.sweep)
  for value in (float("inf"), float("nan"), object()):
    _refused(lambda value=value: study_plan.config_text(
        study_plan.Eval(eval_config.finetune_config(), ({"optim.learning_rate": value},))))


# Fields that follow others.


def test_fields_that_refer_to_others_follow_them_in_a_sweep(tmp_path):
  path = _write(tmp_path, "config.model.ffn_width = config.model.get_ref('width') * 3",
                rest="def sweep(add):\n  for w in (64, 128): add({'model.width': w})\n")
  config = config_file.get_config(path)
  made = members.expand(config, cli.load_sweep(path))
  assert [m.config.model.ffn_width for m in made] == [192, 384]
  on_the_command_line = copy.deepcopy(config)
  on_the_command_line.model.width = 64
  assert as_json(on_the_command_line) == as_json(made[0].config)
  assert config.model.ffn_width == 384  # the file's own is as it was
  made, = members.expand(config, lambda add: add({"model.ffn_width": 100}))
  assert (made.config.model.width, made.config.model.ffn_width) == (128, 100)
  path = _write(tmp_path, "config.model.ffn_width = config.model.get_ref('width') * 2.5")
  _refused(lambda: config_file.get_config(path), "ffn_width=320.0 must be a whole number")


def test_the_sweep_of_an_eval_does_not_lose_what_follows():
  def evals(*points):
    def declare(add):
      config = eval_config.finetune_config()
      config.max_test = config.get_ref("max_train")
      add(config, sweep=points)
    return study_plan.load_evals(declare, None)
  _refused(lambda: evals({"max_train": 8}), "sets max_train, which other fields follow")
  e, = evals({"epochs": 2})
  assert e.config.max_test == 0


# Command lines.


_MISTAKES = [
    (["--config"], "Missing value"), (["--config="], "names no file"),
    (["--config=none.py"], "there is no config file none.py"),
    (["--config.seed=1"], "--config=FILE is missing"),
    (["--config", "{x}", "--config.seed"], "Missing value"),
    (["--config={x}", "--config.seed=abc"], "--config.seed=abc"),
    (["--config={x}", "--config.seed="], "--config.seed="),
    (["--config={x}", "--config.seed=1.5"], "1.5"),
    (["--config={x}", "--config.log.wandb=maybe"], "maybe"),
    (["--config={x}", "--config.optim=3"], "3"),
    (["--config={x}", "--config.optim={{'learning_rate': 1}}"], "lacks the field 'optim.beta1'"),
    (["--config={x}", "--config.optim.weigth_decay=1"], "did you mean optim.weight_decay"),
    (["--config={x}", "--config.weight_decay=1"], "did you mean optim.weight_decay"),
    (["--config={x}", "--noconfig.log.wandbb"], "log.wandb"),
    (["--config={x}", "--config..x=3"], "there is no field '.x'"),
    (["--config={x}", "--config.seed.real=3"], "no field 'seed.real'"),
    (["--config={x}", "--config.optim.update=3"], "no field 'optim.update'"),
    (["--config={x}", "--config.a[0=1"], "no field 'a[0'"),
    (["--config={x}", "--config.checkpoint.keep_at=(1 2"], "keep_at"),
    (["--config={x}", "--wrokdir=w"], "workdir"),
    (["--config={x}", "word"], "'word' is not a flag"),
    (["--config={x}", "--workdir=a", "--workdir=b"], "--workdir is given twice"),
    (["--config={x}", "--workdir=a", "--workdir", "b"], "--workdir is given twice"),
    (["--config={x}", "--dry_run", "--nodry_run"], "--dry_run is given twice"),
    (["--config={x}", "--config.seed=1", "--config.seed=2"], "--config.seed is given twice"),
]


def test_a_command_line_is_right_or_a_sentence(tmp_path):
  """All of them in one program, which parses each in a process of its own."""
  x = _write(tmp_path)
  flagfile, lines = tmp_path / "flags", tmp_path / "lines"
  flagfile.write_text(f"--config={x}\n--config.seed=1\n--workdir=a\n")
  right = [
      ["--config", x, "--config.seed", "3", "--config.log.wandb", "--workdir=a", "--workdir=a"],
      [f"--config={x}", "--config.checkpoint.keep_at=0.5", "--config.checkpoint.keep_at=0.75"],
      [f"--flagfile={flagfile}", "--workdir=b", "--config.seed=2"]]
  wrong = [[a.format(x=x) for a in arguments] for arguments, _ in _MISTAKES]
  lines.write_text("".join(json.dumps(a) + "\n" for a in [*right, *wrong]))
  said = tiny.programs.run("parse_flags", "wd_plasticity.main", lines).splitlines()
  assert len(said) == len(wrong), said
  for line, arguments, (_, words) in zip(said, wrong, _MISTAKES, strict=True):
    before = f"wd_plasticity.main {' '.join(arguments)}: "
    assert line.startswith(before) and words in line.removeprefix(before), line
    assert len(line) < 700 and "Traceback" not in line, line


@pytest.mark.parametrize("text", ["", "a", "0-", "-1", "1-0", "9", "0-99999999999", "0,,1", "²",
                                  "9" * 5000])
def test_members_that_are_not_there(text):
  made = members.expand(default_config(), lambda add: [add({"seed": s}) for s in range(3)])
  _refused(lambda: members.select(made, text[:100]), "members")
  assert members.select(made, "2, 0-1") == [0, 1, 2] == members.select(made, "all")


@pytest.mark.parametrize("text, words", [
    ("size=1b,size=4b", "size is given twice"), ("sise=1b", "'sise' is not known"),
    ("tpp=many", "not of type int"), ("long=3", "not of type bool"), ("long={}", "of type bool")])
def test_arguments_of_a_config_file(text, words):
  defaults = dict(size="1b", tpp=20, long=False)
  _refused(lambda: cli.parse_arguments(text, **defaults), words)
  assert cli.parse_arguments("tpp=3,long=True", **defaults) == dict(size="1b", tpp=3, long=True)


def test_a_flag_file_that_is_not_there(tmp_path):
  said = tiny.programs.run("wd_plasticity.main", f"--flagfile={tmp_path}/none", expect=2)
  assert said.startswith("error: ") and said.count("\n") == 1 and "none" in said, said


def test_data_are_prepared_with_the_same_flags(tmp_path):
  lines = tmp_path / "lines"
  lines.write_text('["--nothing=3"]\n["--config=none.py"]\n')
  said = tiny.programs.run("parse_flags", "wd_plasticity.data.prepare", lines).splitlines()
  assert len(said) == 2 and "'nothing'" in said[0] and "no config file none.py" in said[1], said


def test_the_check_takes_what_configurations_of_older_files_are():
  config = ConfigDict(default_config().to_dict())  # not of the class that this project makes
  typed_config.check(config, "x")
  made, = members.expand(config, lambda add: add({"seed": np.int64(4)}))
  assert made.config.seed == 4
