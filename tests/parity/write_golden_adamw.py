"""Writes tests/golden/adamw_*.npz: trajectories of torch optimizers to be reproduced.

  python tests/parity/write_golden_adamw.py

Needs torch. The default tests read the files and need no torch.
"""

import math
import os
from pathlib import Path

import numpy as np
import torch

STEPS = 50
WARMUP = 5
FINAL = 0.1
PEAK = 0.02
BETAS = (0.9, 0.95)
EPS = 1e-8
CLIP = 1.0
CURVATURE = 0.3
GOLDEN = Path(__file__).parents[1] / "golden"

SHAPES = {
    "embed/embedding": (5, 3),
    "head/kernel": (3, 5),
    "layers/attention/query/kernel": (2, 3, 4),
    "layers/feed_forward/down/kernel": (2, 4, 3),
    "layers/attention_norm/scale": (2, 3),
    "final_norm/scale": (3,),
}
# Weight decay of every parameter: one value per group, zero for the head.
WEIGHT_DECAY = {
    "embed/embedding": 0.1,
    "head/kernel": 0.0,
    "layers/attention/query/kernel": 3.0,
    "layers/feed_forward/down/kernel": 0.5,
    "layers/attention_norm/scale": 1.0,
    "final_norm/scale": 1.0,
}


def problem(seed: int) -> dict[str, np.ndarray]:
  """Initial weights and the noise of every step; the gradient is CURVATURE * w + noise.

  The scale of the noise varies, so that some steps are clipped and others are not.
  """
  rng = np.random.default_rng(seed)
  scales = np.exp(rng.uniform(-4, 1, STEPS))
  arrays = {}
  for name, shape in SHAPES.items():
    start = 1.0 if name.endswith("scale") else 0.0
    arrays[f"params/{name}"] = (start + 0.3 * rng.standard_normal(shape)).astype(np.float32)
    noise = scales.reshape(-1, *[1] * len(shape)) * rng.standard_normal((STEPS, *shape))
    arrays[f"noise/{name}"] = noise.astype(np.float32)
  return arrays


def learning_rate(step: int) -> float:
  """Warmup, then cosine to FINAL of the peak at the last update."""
  n = step + 1
  if n <= WARMUP:
    return PEAK * n / WARMUP
  cosine = 0.5 * (1 + math.cos(math.pi * (n - WARMUP) / (STEPS - WARMUP)))
  return PEAK * (FINAL + (1 - FINAL) * cosine)


def decay_multiplier(step: int) -> float:
  """Decay schedule: linear to zero at the last update."""
  return 1 - (step + 1) / STEPS


def torch_trajectory(
    arrays: dict[str, np.ndarray], optimizer: type, betas: tuple[float, float] = BETAS,
) -> dict[str, np.ndarray]:
  """Weights after every step and the gradient norms before clipping."""
  params = {n: torch.nn.Parameter(torch.tensor(arrays[f"params/{n}"])) for n in SHAPES}
  torch_groups = [{"params": [p], "weight_decay": WEIGHT_DECAY[n]} for n, p in params.items()]
  opt = optimizer(torch_groups, lr=PEAK, betas=betas, eps=EPS)
  weights = {n: [] for n in SHAPES}
  norms = []
  for step in range(STEPS):
    for name, p in params.items():
      p.grad = CURVATURE * p.detach() + torch.tensor(arrays[f"noise/{name}"][step])
    norms.append(float(torch.nn.utils.clip_grad_norm_(params.values(), CLIP)))
    for name, group in zip(SHAPES, opt.param_groups, strict=True):
      group["lr"] = learning_rate(step)
      group["weight_decay"] = WEIGHT_DECAY[name] * decay_multiplier(step)
    opt.step()
    for name, p in params.items():
      weights[name].append(p.detach().numpy().copy())
  return {f"weights/{n}": np.stack(w) for n, w in weights.items()} | {
      "grad_norm": np.asarray(norms, np.float32)}


OPTIMIZERS = {"learning_rate": torch.optim.AdamW, "l2": torch.optim.Adam}


def settings() -> dict[str, np.ndarray]:
  """The numbers that a reader of the file needs."""
  return {"steps": STEPS, "warmup": WARMUP, "final": FINAL, "peak": PEAK, "betas": BETAS,
          "eps": EPS, "clip": CLIP, "curvature": CURVATURE} | {
              f"weight_decay/{n}": wd for n, wd in WEIGHT_DECAY.items()}


def main():
  for convention, optimizer in OPTIMIZERS.items():
    arrays = problem(seed=0)
    arrays |= torch_trajectory(arrays, optimizer) | settings()
    path = GOLDEN / f"adamw_{convention}.npz"
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **arrays)
    os.replace(temporary, path)
    print(f"{path.name}: {path.stat().st_size} bytes, torch {torch.__version__}")


if __name__ == "__main__":
  main()
