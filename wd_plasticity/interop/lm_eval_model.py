"""Models of this package as models of lm-evaluation-harness, named `wd_plasticity` there.

`python -m wd_plasticity.interop.lm_eval_cli` is the harness's command line with it:

  python -m wd_plasticity.interop.lm_eval_cli run --model wd_plasticity \
      --model_args checkpoint=runs/books/members/wd0.3-seed0 --tasks arc_easy

or in Python: `lm_eval.simple_evaluate("wd_plasticity", {"checkpoint": PATH}, ["arc_easy"])`
after importing this module. Needs the extra `lm_eval`.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from wd_plasticity.errors import UserError
from wd_plasticity.evals.config import lm_eval_config
from wd_plasticity.evals.program import Session
from wd_plasticity.generation.sampling import Sampling
from wd_plasticity.interop.lm_eval_text import TextModel

# The harness would fork processes to resample scores, which threads of JAX may not survive.
os.environ.setdefault("DISABLE_MULTIPROC", "1")
# What a task's generation_kwargs may hold beside those that have no effect here.
_UNDERSTOOD = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "repetition_penalty"}
_WITHOUT_EFFECT = {"num_beams": (None, 1), "top_k": (None, 0), "num_return_sequences": (None, 1),
                   "skip_special_tokens": (None, True), "use_cache": (None, True, False)}


class TextModelLM(LM):
  """A `TextModel` as the harness wants it.

  Attributes:
    text: the model; its parameters may be replaced between evaluations.
    on_done: told (requests done, of how many) while requests are answered; may be replaced.
  """

  def __init__(self, text: TextModel, *, max_gen_toks: int = 256, seed: int = 0,
               tokenizer_name: str = "",
               on_done: Callable[[int, int], None] | None = None):
    """Prepares.

    Args:
      text, on_done: see the attributes.
      max_gen_toks: new tokens of tasks that do not say how many.
      seed: of sampled continuations.
      tokenizer_name: tells the harness's caches of requests apart.
    """
    super().__init__()
    self.text, self.on_done = text, on_done
    self._max_gen_toks, self._seed, self._tokenizer_name = max_gen_toks, seed, tokenizer_name

  def loglikelihood(self, requests: list[Instance],
                    disable_tqdm: bool = False) -> list[tuple[float, bool]]:
    """Log-likelihood of each continuation and whether greedy decoding would write it."""
    made = self.text.likelihoods([r.args for r in requests], self._count(len(requests)))
    return self._kept("loglikelihood", requests, made)

  def loglikelihood_rolling(self, requests: list[Instance],
                            disable_tqdm: bool = False) -> list[float]:
    """Log-likelihood of each whole text."""
    made = self.text.rolling([r.args[0] for r in requests], self._count(len(requests)))
    return self._kept("loglikelihood_rolling", requests, made)

  def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
    """Each continuation up to one of the stops that its task names."""
    alike: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
      alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
    made, done = [""] * len(requests), 0
    for kwargs, places in alike.items():
      stops, sampling = decoding(json.loads(kwargs), self._max_gen_toks)
      texts = self.text.continuations(
          [requests[i].args[0] for i in places], stops, sampling, self._seed,
          self._count(len(requests), done))
      done += len(places)
      for i, text in zip(places, texts, strict=True):
        made[i] = text
    return self._kept("generate_until", requests, made)

  @property
  def max_length(self) -> int:
    return self.text.max_length

  @property
  def tokenizer_name(self) -> str:
    return self._tokenizer_name

  def apply_chat_template(self, chat_history, add_generation_prompt=True) -> str:
    raise UserError("these are base models, which have no chat template; leave out "
                    "--apply_chat_template.")

  def chat_template(self, chat_template: bool | str = False) -> str:
    return self.apply_chat_template([])

  def _count(self, total: int, before: int = 0) -> Callable[[int], None]:
    return lambda done: self.on_done and self.on_done(min(before + done, total), total)

  def _kept(self, kind: str, requests: list[Instance], made: list) -> list:
    for request, answer in zip(requests, made, strict=True):
      self.cache_hook.add_partial(kind, request.args, answer)
    return made


@register_model("wd_plasticity")
class CheckpointLM(TextModelLM):
  """A stored checkpoint, as `--model wd_plasticity --model_args checkpoint=PATH`."""

  def __init__(self, checkpoint: str, step: str | int = "last", *, max_length: int = 0,
               max_gen_toks: int = 256, add_bos_token: bool = False, compute_dtype: str = "",
               tokenizer_dir: str = "", seed: int = 0, fsdp: int = 1, tensor: int = 1,
               batch_size: int | str | None = None, max_batch_size: int | None = None,
               device: str | None = None, **unknown):
    """Opens the checkpoint on all devices.

    Args:
      checkpoint: a member's directory or one of its steps.
      step: of the member: 'last' or a number.
      max_length: tokens that are read at most; 0: those of a pretraining record.
      max_gen_toks, seed: see `TextModelLM`.
      add_bos_token: see `TextModel`.
      compute_dtype: float32 or bfloat16; '' as pretrained.
      tokenizer_dir: '' for the one beside the checkpoint.
      fsdp, tensor: mesh axes that divide the parameters; rows are divided among the rest.
      batch_size, max_batch_size, device: have no effect, though the harness gives them: lengths
        decide how many rows are read at once, and JAX the device (JAX_PLATFORMS=cpu).
      **unknown: refused.

    Raises:
      UserError: no such checkpoint, more than one, an unknown or an impossible argument.
    """
    del batch_size, max_batch_size, device
    if unknown:
      raise UserError(f"the model wd_plasticity has no argument {', '.join(unknown)}; it has "
                      "checkpoint, step, max_length, max_gen_toks, add_bos_token, compute_dtype, "
                      "tokenizer_dir, seed, fsdp and tensor.")
    config = lm_eval_config()
    config.update(steps=str(step), compute_dtype=compute_dtype, tokenizer_dir=tokenizer_dir)
    config.mesh.update(fsdp=fsdp, tensor=tensor)
    session = Session("lm_eval", config, [str(checkpoint)], ".")
    if len(session.targets) != 1:
      raise UserError(f"{checkpoint} holds {len(session.targets)} checkpoints; name one member or "
                      "step, or evaluate all of them by python -m wd_plasticity.evals.lm_eval.")
    self.target = session.targets[0]
    super().__init__(
        of_target(session, self.target, max_length=max_length, add_bos_token=add_bos_token),
        max_gen_toks=max_gen_toks, seed=seed,
        tokenizer_name=self.target.tokenizer.fingerprint[:16])

  def get_model_info(self) -> dict[str, Any]:
    """What the harness keeps beside its results."""
    t = self.target
    return {"checkpoint": str(t.directory), "member": t.member, "step": t.step,
            "weight_decay": t.weight_decay, "seed": t.seed, "tokens": t.tokens,
            "model_num_parameters": t.meta["parameters"]["total"],
            "model_dtype": t.model.compute_dtype}


def of_target(session: Session, target, *, max_length: int, add_bos_token: bool) -> TextModel:
  """The model of a checkpoint, loaded; `max_length` 0 is that of a pretraining record."""
  return TextModel(
      target.model, target.tokenizer, session.mesh, session.num_members([target]),
      session.load([target]), max_length=max_length or target.sequence_length,
      add_bos_token=add_bos_token)


def decoding(kwargs: Mapping[str, Any], max_gen_toks: int) -> tuple[list[str], Sampling]:
  """Stops and way of decoding that a task's `generation_kwargs` mean.

  Args:
    kwargs: of the task.
    max_gen_toks: new tokens where they do not say.

  Raises:
    UserError: a way of decoding that there is not here.
  """
  found = dict(normalize_gen_kwargs(dict(kwargs), max_gen_toks))
  sampled = found["do_sample"]
  for name, value in found.items():
    if name in _UNDERSTOOD or value in _WITHOUT_EFFECT.get(name, ()):
      continue
    if name == "top_k" and not sampled:
      continue
    raise UserError(f"generation_kwargs {name}={value!r} is not understood here; tasks can set "
                    f"{', '.join(sorted(_UNDERSTOOD))}.")
  temperature = float(found.get("temperature") or 0.0) if sampled else 0.0
  return [stop for stop in found["until"] if stop], Sampling(
      max_new_tokens=found["max_gen_toks"], temperature=temperature,
      top_p=float(found.get("top_p") or 1.0) if temperature else 1.0,
      repetition_penalty=float(found.get("repetition_penalty") or 1.0))
