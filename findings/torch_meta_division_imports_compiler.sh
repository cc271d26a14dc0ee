#!/usr/bin/env bash
# torch 2.14.1: dividing a tensor on the meta device imports torch's compiler, and with it sympy: over a thousand modules, more than a second.
#
# A module that is built under `torch.device('meta')` tells the shapes of its weights without memory, which is how safetensors files and checkpoints are
# compared with a network before anything is loaded. That is quick until somewhere in `__init__` there is arithmetic: a `torch.rand(n) / n**.5` for an
# initialisation, or a `clamp`, goes through a decomposition in Python, which first imports torch._dynamo. In-place methods are no way out: `div_` imports
# sympy. `uniform_(low, high)`, `zeros` and the initialisations of `nn.Linear` and `nn.Conv2d` import nothing; `normal_` does.
#
# Seen: importing torch leaves torch._dynamo and sympy out; so do Conv2d and uniform_ on the meta device; one division brings in both and more than 800 modules.
# In lmac: loading an explainer took 1.5 s, and `lmac-explain` of one clip as much longer; `MaskDecoder` draws from scaled ranges, and makes its constants on
# the CPU (06_decoder).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys
import time

import torch

def loaded(): return [name for name in ("torch._dynamo", "sympy") if name in sys.modules]

print("after import torch:", loaded())
before = loaded()
with torch.device("meta"):
    torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(3, 4), torch.empty(4, 3).uniform_(-.5, .5)
    quiet, n = loaded(), len(sys.modules)
    began = time.perf_counter()
    torch.empty(4, 3) / 2.
    seconds = time.perf_counter() - began
print("after Conv2d, Linear and uniform_ on the meta device:", quiet)
print(f"after one division: {loaded()}, {len(sys.modules) - n} more modules, {seconds:.2f} s")
assert before == quiet == [] and loaded() == ["torch._dynamo", "sympy"] and len(sys.modules) - n > 800, "the behaviour has changed"
PY
