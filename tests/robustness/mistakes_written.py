"""Mistakes in what a user writes: fields, config files, flags, places."""

import re

import worlds
from judge import Case
from worlds import RUN, STUDY

MAIN = "wd_plasticity.main"
EVALS = ("overfit", "probe", "attention_rank", "finetune", "lm_eval")
# Programs and the flags that a right start of them has.
PROGRAMS = {
    MAIN: ("--config=@/run.py", "--workdir=@/new"),
    "wd_plasticity.study": ("--config=@/study.py", "--workdir=@/new"),
    **{f"wd_plasticity.evals.{e}": (f"--config=@/{e}.py", "--checkpoint=@/done", "--workdir=@/new")
       for e in EVALS},
    "wd_plasticity.report": ("--workdir=@/done", "--out=@/new"),
    "wd_plasticity.training.summary": ("--workdir=@/done",),
    "wd_plasticity.data.prepare": ("--config=@/run.py", "--cache_dir=@/new"),
    "wd_plasticity.interop.export": ("--checkpoint=@/done/members/wd1", "--out=@/new"),
    "wd_plasticity.interop.import_": ("--model=@/model", "--workdir=@/new", "--name=a"),
    "wd_plasticity.bench.train_step": ("--size=0.3m",),
    "wd_plasticity.bench.coverage": ("--studies=4",),
    "launch.local": ("--config=@/study.py", "--workdir=@/new", "--dry_run"),
    "launch.slurm": ("--config=@/study.py", "--workdir=@/new", "--dry_run"),
    "launch.tpu_vm": ("--config=configs/quickstart.py", "--workdir=gs://buck/runs", "--project=p",
                      "--zone=z", "--tpu_name=t", "--accelerator_type=v5litepod-8", "--dry_run"),
    "launch.xpk": ("--config=@/study.py", "--workdir=/data/runs", "--cluster=c", "--storage=disk",
                   "--tpu_type=v5litepod-8", "--docker_image=img", "--workloads=w", "--dry_run"),
    "launch.xm": ("--config=@/study.py", "--workdir=@/new", "--dry_run"),
}

def with_flag(program, *flags):
  """The flags of a right start, some of them given otherwise."""
  names = {flag.partition("=")[0] for flag in flags}
  return (*(f for f in PROGRAMS.get(program, ()) if f.partition("=")[0] not in names), *flags)


# field=value, refused by the plan, so that a dry run refuses it too.
FIELDS = """
model.num_layers=0             model.num_layers=-1           model.num_layers=1.5
model.num_layers=many          model.width=15                model.width=0
model.num_heads=3              model.num_heads=0             model.num_kv_heads=3
model.num_kv_heads=-1          model.head_dim=3              model.head_dim=-2
model.ffn_width=0              model.ffn_width=-8            model.vocab_size=-1
model.vocab_size=1000000000000 model.norm_position=middle    model.rope_theta=nan
model.rope_theta=inf           model.rope_theta=0            model.norm_eps=nan
model.norm_eps=-1              model.norm_eps=inf            model.tied_head=maybe
model.init=zeros               model.compute_dtype=float8    model.attention=flash
model.attention=splash         model.remat=everything        model.rope_scaling=(8.0,1.0)
model.rope_scaling=(8.0,1.0,4.0,float('nan'))                model.width=1000000000000
model.widht=16                 optim.weigth_decay=0.3        data.tokenizer.knd=byte
data.num_workers=-1            data.sequence_length=0        data.sequence_length=-32
data.sequence_length=1000000000000                           data.validation_fraction=nan
data.validation_fraction=1.5   data.validation_fraction=-0.1 data.train_subset_fraction=nan
data.train_subset_fraction=2   data.max_documents=-1         data.source=web
data.strip=(                   data.tokenizer.kind=words
optim.learning_rate=nan        optim.learning_rate=inf       optim.learning_rate=-1
optim.learning_rate=fast       optim.beta1=1                 optim.beta1=nan
optim.beta1=-0.1               optim.beta2=1.5               optim.beta2=nan
optim.eps=nan                  optim.eps=-1                  optim.clip_norm=-1
optim.clip_norm=nan            optim.weight_decay=nan        optim.weight_decay=inf
optim.weight_decay=-1          optim.schedule.name=cosinus   optim.schedule.warmup=10
optim.schedule.warmup=-5%      optim.schedule.warmup=200%    optim.schedule.warmup=nan%
optim.schedule.final_fraction=nan                            optim.schedule.final_fraction=-1
optim.decay.convention=both    optim.decay.preset=some       optim.decay.rules=('(=norm',)
optim.decay.rules=('a=nothing',)                             optim.decay.rules=('norm',)
optim.decay.multipliers.head=nan                             optim.decay.multipliers.head=-1
optim.decay.multipliers.head=inf                             optim.decay.schedule.name=step
train.steps=-1                 train.steps=5000000000        train.global_batch_size=0
train.global_batch_size=-8     train.accumulate_steps=0      train.accumulate_steps=3
train.z_loss=nan               train.z_loss=-1               train.loss_tile_tokens=-5
train.log_every=often          train.log_every=0_steps       train.eval_every=0_steps
train.eval_every=-1_steps      train.eval_sequences=-1       train.eval_sequences=many
sweep.members_at_once=-1       sweep.members_at_once=two     mesh.data=3
mesh.data=0                    mesh.fsdp=0                   mesh.tensor=5
mesh.sweep=3                   mesh.cpu_devices=-1           checkpoint.every=0_steps
checkpoint.every=seldom        checkpoint.every=nan%         checkpoint.keep_latest=0
checkpoint.keep_latest=-1      checkpoint.keep_at=(2.0,)     checkpoint.keep_at=(-0.5,)
checkpoint.keep_at=(float('nan'),)                           checkpoint.keep_at=('half',)
log.wandb=perhaps              distributed.mode=maybe        distributed.num_processes=-1
distributed.timeout_seconds=-1 seed=-1                       seed=2147483648
seed=1208925819614629174706176 seed=one                      optim=3
"""
# Only without train.steps, which the tiny run has.
BUDGET = ("nan", "inf", "-1", "0", "1e300")
# Needs the data, so not a dry run.
LATER = {"data.train=": "data.train", "data.train=@/nowhere/*.txt": "nowhere",
         "data.validation=@/nowhere/*.txt": "nowhere", "data.train=@/run.py": "run.py",
         "model.vocab_size=100": "vocab_size",
         "data.sequence_length=100000": "sequence_length|record|text",
         "data.max_documents=1": "document|record",
         "data.validation_fraction=0": "validation", "data.cache_dir=@/run.py": "run.py",
         "data.train_subset_fraction=0": "train_subset"}
# Of eval programs.
EVAL_FIELDS = {
    "overfit": "sequences=-1 batch_size=0 frequency.binning=words frequency.bins=-1 "
               "frequency.min_count=-1 steps=first steps=7 steps=-1 members_at_once=-1 "
               "compute_dtype=int8 tokenizer_dir=@/nowhere sequnces=3",
    "probe": "tasks=('nothing',) tasks=() max_train=-1 held_out=nan held_out=1.5 seed=-1 "
             "inverse_strengths=(float('nan'),) inverse_strengths=(0.0,) inverse_strengths=() "
             "batch_tokens=0",
    "attention_rank": "threshold=nan threshold=1.5 threshold=-1 power=3 thresold=0.9",
    "finetune": "tasks=('nothing',) tasks=() seed=99999999999 seed=-1 optim.learning_rate=inf "
                "optim.learning_rate=nan epochs=0 epochs=-1 batch_size=0 max_length=3 "
                "max_length=-1 template=nothing lora.rank=-1 lora.alpha=inf lora.alpha=nan "
                "lora.targets=('nose',) replay.fraction=nan replay.fraction=1.5 "
                "evaluate.generate=maybe evaluate.samples=-1 evaluate.temperature=nan "
                "evaluate.top_p=2 evaluate.repetition_penalty=nan evaluate.observations=-1 "
                "reward_model=@/nowhere optim.schedule.warmup=x",
    "lm_eval": "tasks=('nothing',) include_path=@/nowhere num_fewshot=-2 limit=-1 max_length=-1 "
               "max_gen_toks=0"}

_EVAL_WORDS = {"steps": "step", "tasks": "tasks|nothing"}

_GET = "from tiny import tiny_config\nimport pathlib\n" \
       "def get_config():\n  config = tiny_config(pathlib.Path(__file__).parent / 'corpus')\n"
_END = "  return config\n"
_LINE = r"(?=.*bad\.py)(?=.*line \d+)"  # the file, and which line of it
# What the config file holds (bytes or text), and the words.
FILES = {
    "syntax error": (RUN + "\ndef (:\n", _LINE), "tabs and spaces": (RUN + "\n\tx = 1\n", _LINE),
    "empty": ("", r"bad\.py.*get_config|get_config.*bad\.py"),
    "binary": (b"\x00\xff\xfe\x80" * 20, r"bad\.py"),
    "no get_config": ("x = 1\n", "get_config"),
    "get_config returns nothing": (_GET, "get_config"),
    "get_config returns a number": ("def get_config():\n  return 3\n", "get_config"),
    "get_config returns a dict": ("def get_config():\n  return {'seed': 1}\n", "get_config"),
    "get_config is a number": ("get_config = 3\n", "get_config"),
    "configuration of an eval": (
        "from wd_plasticity.evals.config import probe_config as get_config\n",
        r"bad\.py|program|configuration"),
    "a missing module": ("import no_such_module\n" + RUN, r"no_such_module"),
    "a name that is not known": (_GET + "  config.seed = sed\n" + _END, _LINE + ".*sed"),
    "exits": (_GET + "  raise SystemExit(0)\n" + _END, r"bad\.py"),
    "calls itself": (_GET + "  return get_config()\n", r"bad\.py"),
    "an interrupt of its own": (_GET + "  raise OSError(5, 'broken')\n" + _END, _LINE),
    **{f"raises {e}": (_GET + f"  raise {e}('odd')\n" + _END, _LINE)
       for e in ("ValueError", "KeyError", "TypeError", "AttributeError", "RuntimeError",
                 "AssertionError", "ZeroDivisionError", "Exception")},
    "misspelt field": (_GET + "  config.optim.weigth_decay = 0.3\n" + _END, "weigth_decay"),
    "misspelt field of a section": (_GET + "  config.modle = 3\n" + _END, "modle"),
    "misspelt in update": (_GET + "  config.train.update(stepps=3)\n" + _END, "stepps"),
    "misspelt in a deep section": (_GET + "  config.optim.decay.multipliers.embeding = 0.\n" + _END,
                                   "embeding"),
    "section as a number": (_GET + "  config.optim = 3\n" + _END, "optim"),
    "section deleted": (_GET + "  del config.optim\n" + _END, "optim"),
    "field deleted": (_GET + "  del config.train.steps\n" + _END, "steps"),
    "field of another type": (_GET + "  config.train.steps = 'many'\n" + _END, "steps"),
    "field of none": (_GET + "  config.model.width = None\n" + _END, "width"),
    "field with nan": (_GET + "  config.optim.beta1 = float('nan')\n" + _END, "beta1"),
    **{f"sweep {what}": (_GET + _END + f"\ndef sweep(add):\n  {code}\n", words)
       for what, code, words in (
           ("raises", "raise RuntimeError('odd')", _LINE), ("asserts", "assert False", _LINE),
           ("adds nothing", "pass", "sweep"), ("adds no point", "add()", r"bad\.py|sweep|add"),
           ("adds a number", "add(3)", r"bad\.py|sweep|add"),
           ("adds a list", "add(['seed'])", r"bad\.py|sweep|add"),
           ("adds none", "add({'optim.weight_decay': None})", "weight_decay"),
           ("adds text", "add({'optim.weight_decay': 'big'})", "weight_decay"),
           ("adds nan", "add({'optim.weight_decay': float('nan')})", "weight_decay"),
           ("misspells", "add({'optim.weigth_decay': 1.0})", "weigth_decay"),
           ("adds a section", "add({'optim': 1.0})", "optim"),
           ("adds a long name", "add({'name': 'x' * 300})", "name"),
           ("adds a number as key", "add({3: 1})", r"bad\.py|sweep|add|3"),
           ("sets a length wrong", "add({'checkpoint.every': 'x'})", "every"),
           ("sets the mesh", "add({'mesh.data': 3})", "mesh"))},
    "sweep takes nothing": (_GET + _END + "\ndef sweep():\n  pass\n", "sweep"),
    "sweep is a list": (_GET + _END + "\nsweep = [{'seed': 1}]\n", "sweep"),
}
_EVALS_OF = STUDY.partition("\ndef evals")[0] + \
    "\nfrom wd_plasticity.evals.config import attention_rank_config, finetune_config\n" \
    "def evals(add):\n  "
STUDIES = {
    "evals adds nothing": ("pass", "evals"), "evals adds a number": ("add(3)", r"bad\.py|evals"),
    "evals adds nothing at all": ("add()", r"bad\.py|evals"),
    "evals raises": ("raise RuntimeError('odd')", _LINE),
    "evals adds one twice": ("add(attention_rank_config()); add(attention_rank_config())", "twice"),
    "evals misspells": ("c = attention_rank_config(); c.thresold = 0.5; add(c)", "thresold"),
    "evals sweeps what takes none": (
        "add(attention_rank_config(), sweep=[{'threshold': 0.5}])", "sweep"),
    "evals sweeps a misspelt field": (
        "add(finetune_config(), sweep=[{'optim.learning_rat': 1.0}])", "learning_rat"),
    "evals sweeps a field of all": ("add(finetune_config(), sweep=[{'tasks': ('x',)}])", "tasks"),
    "evals sweeps inf": (
        "add(finetune_config(), sweep=[{'optim.learning_rate': float('inf')}])", "learning_rate"),
    "evals sweeps a number": ("add(finetune_config(), sweep=3)", r"bad\.py|sweep"),
    "evals of an unknown task": (
        "c = finetune_config(); c.tasks = ('nothing',); add(c)", "nothing"),
    "evals of a task without files": (
        "c = finetune_config(); c.tasks = ('sst2',); add(c)", "sst2"),
    "evals without end of minutes": ("add(attention_rank_config(), minutes='x')", "minutes|bad"),
    "evals with a wrong threshold": (
        "c = attention_rank_config(); c.threshold = 7.0; add(c)", "threshold"),
}


def fields():
  for text in FIELDS.split():
    field, _, value = text.partition("=")
    value = value.replace("_steps", " steps")
    yield Case(f"--config.{text}", MAIN,
               (*PROGRAMS[MAIN], "--dry_run", f"--config.{field}={value}"),
               re.escape(field.rpartition(".")[2]))
  for value in BUDGET:
    yield Case(f"tokens_per_parameter={value}", MAIN,
               (*PROGRAMS[MAIN], "--dry_run", "--config.train.steps=0",
                f"--config.train.tokens_per_parameter={value}"), "tokens_per_parameter")
  for text, words in LATER.items():
    yield Case(f"--config.{text}", MAIN, (*PROGRAMS[MAIN], f"--config.{text}"), words)
  for program, texts in EVAL_FIELDS.items():
    for text in texts.split():
      words = _EVAL_WORDS.get(text.partition("=")[0],
                              re.escape(text.partition("=")[0].rpartition(".")[2]))
      yield Case(f"{program} --config.{text}", f"wd_plasticity.evals.{program}",
                 (*PROGRAMS[f"wd_plasticity.evals.{program}"], f"--config.{text}"), words)


def files():
  for name, (text, words) in FILES.items():
    content = text if isinstance(text, bytes) else text.encode()
    yield Case(f"config file: {name}", MAIN,
               ("--config=@/bad.py", "--workdir=@/new", "--dry_run"), words,
               lambda w, c=content: (w / "bad.py").write_bytes(c))
  for name, (code, words) in STUDIES.items():
    yield Case(f"config file: {name}", "wd_plasticity.study",
               ("--config=@/bad.py", "--workdir=@/new"), words,
               lambda w, c=code: (w / "bad.py").write_text(_EVALS_OF + c + "\n"))
  for name, flag, words in (("is a folder", "@/corpus", "corpus"),
                            ("is text", "@/sst2.jsonl", "sst2"),
                            ("takes no arguments", "@/run.py:size=1b", r"run\.py|size"),
                            ("is not there", "@/nowhere.py", "nowhere"),
                            ("has no name", "", "config")):
    for program in (MAIN, "wd_plasticity.study", "wd_plasticity.data.prepare", "launch.slurm"):
      rest = [f for f in PROGRAMS[program] if not f.startswith("--config=")]
      yield Case(f"{program}: config {name}", program, (f"--config={flag}", *rest), words)


def flags():
  for program, good in PROGRAMS.items():
    yield Case(f"{program}: unknown flag", program, (*good, "--nonsense=1"), "nonsense")
    if program not in ("launch.xm",):  # which asks for XManager first
      yield Case(f"{program}: a word", program, (*good, "word"), "word")
    for flag in good:
      name = flag.partition("=")[0]
      if name in ("--dry_run", "--size", "--studies", "--storage", "--workloads", "--tpu_name",
                  "--project", "--zone", "--out") and program != "wd_plasticity.interop.export":
        continue
      rest = [f for f in good if f != flag]
      if program != "launch.xm":
        yield Case(f"{program}: without {name}", program, rest, name.lstrip("-"))
      if name in ("--config", "--workdir"):
        yield Case(f"{program}: {name} of no value", program, (*rest, name), name.lstrip("-"))
  for program, flag, words in (
      *((MAIN, f"--sweep_index={x}", "sweep_index|member") for x in ("7", "x", "-1", "1-0", "")),
      (MAIN, "--dry_run=maybe", "dry_run"),
      ("wd_plasticity.study", "--step=nothing", "step"),
      ("wd_plasticity.study", "--sweep_index=0", "sweep_index"),
      ("wd_plasticity.study", "--config.distributed.mode=on", "distributed"),
      ("wd_plasticity.bench.train_step", "--batch=0", "batch"),
      ("wd_plasticity.bench.train_step", "--size=huge", "size"),
      ("wd_plasticity.bench.train_step", "--family=gpt", "family"),
      ("wd_plasticity.bench.sweep", "--members=0", "members"),
      ("wd_plasticity.bench.generate", "--size=x", "size"),
      ("wd_plasticity.bench.probe", "--inverse_strengths=x", "inverse_strengths"),
      ("wd_plasticity.bench.coverage", "--studies=0", "studies"),
      ("wd_plasticity.bench.attention_rank", "--size=x", "size"),
      ("wd_plasticity.interop.export", "--dtype=int8", "dtype"),
      ("wd_plasticity.interop.export", "--shard_size=0GB", "shard_size"),
      ("wd_plasticity.interop.export", "--shard_size=five", "shard_size"),
      ("wd_plasticity.interop.import_", "--name=../x", "name"),
      ("wd_plasticity.interop.import_", f"--name={'x' * 300}", "name"),
      ("wd_plasticity.interop.import_", "--weight_decay=nan", "weight_decay"),
      ("wd_plasticity.interop.import_", "--step=0", "step"),
      ("wd_plasticity.interop.import_", "--seed=-1", "seed"),
      ("wd_plasticity.interop.import_", "--tokens=-1", "tokens"),
      ("wd_plasticity.interop.import_", "--tokenizer=@/nowhere", "tokenizer")):
    yield Case(f"{program}: {flag[:40]}", program, with_flag(program, flag), words)


# name, the path, words, for the flag that says where a program writes
_PLACES = (("a file", "@/run.py", r"run\.py"), ("below a file", "@/run.py/x", r"run\.py"),
           ("in a system that takes no files", "/proc/none", "/proc"),
           ("on a read-only system", "/sys/none", "/sys"),
           ("too long a name", "@/" + "x" * 300, "x{40}|long"),
           ("too long a path", "@" + "/" + "y/" * 2500, "y/y/|long"),
           ("a bucket", "gs://bucket/x", "gs:|bucket"), ("a store", "s3://bucket/x", "s3:|bucket"),
           ("nothing", "", "missing|workdir|cache_dir|out"))


def places():
  for program in (MAIN, "wd_plasticity.study", *(f"wd_plasticity.evals.{e}" for e in EVALS[:4]),
                  "wd_plasticity.data.prepare", "wd_plasticity.interop.import_",
                  "wd_plasticity.interop.export", "wd_plasticity.report"):
    flag = PROGRAMS[program][-1] if "report" in program or "export" in program else next(
        f for f in PROGRAMS[program] if f.startswith(("--workdir", "--cache_dir")))
    name = flag.partition("=")[0]
    for what, path, words in _PLACES:
      if (path, name) == ("", "--out") and "report" in program:
        continue
      rest = [f for f in PROGRAMS[program] if f != flag]
      yield Case(f"{program}: {name} is {what}", program, (*rest, f"{name}={path}"), words)
  for e in ("attention_rank", "overfit"):
    for what, path, words in (
        ("not there", "@/nowhere", "nowhere"), ("a file", "@/run.py", r"run\.py"),
        ("a folder of something else", "@/corpus", "corpus"), ("a bucket", "gs://b/x", "gs:"),
        ("a step that is not there", "@/done/members/wd0/checkpoints/7", "7"),
        ("cache", "@/done/cache", "cache")):
      rest = [f for f in PROGRAMS[f"wd_plasticity.evals.{e}"] if "checkpoint" not in f]
      yield Case(f"{e}: --checkpoint is {what}", f"wd_plasticity.evals.{e}",
                 (*rest, f"--checkpoint={path}"), words)
    yield Case(f"{e}: the same --checkpoint twice, in two folders", f"wd_plasticity.evals.{e}",
               (*PROGRAMS[f"wd_plasticity.evals.{e}"], "--checkpoint=@/half",
                "--config.steps=6"), "wd0|twice")
  for what, path in (("brackets", "@/run[1]"), ("a backslash", "@/run\\1"), ("stars", "@/run*"),
                     ("a space and quotes", "@/my 'run'"), ("letters of others", "@/läuft-運"),
                     ("braces", "@/run{a,b}")):
    yield Case(f"a work directory with {what}", MAIN, ("--config=@/run.py", f"--workdir={path}"),
               r"\\", status=(0, 2) if "\\" in path else (0,),  # which may be refused
               same=lambda w, p=path: _unequal(w, p))
    yield Case(f"a report in a folder with {what}", "wd_plasticity.report",
               ("--workdir=@/done", f"--out={path}"), r"report|\\",
               status=(0, 2) if "\\" in path else (0,))


def _unequal(world, path):
  # What reads it here may take a path for a pattern.
  made = (world / path.removeprefix("@/")).rename(world / "made")
  got, wanted = (worlds.without_paths(worlds.outcome(w, plans=False))
                 for w in (made, world / "done"))
  return worlds.differences(got, wanted)


GROUPS = {"config field": fields, "config file": files, "flag": flags, "place": places}
