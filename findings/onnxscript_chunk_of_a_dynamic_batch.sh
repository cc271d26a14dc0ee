#!/usr/bin/env bash
# torch 2.14.1, onnxscript 0.7.2 (Python 3.11, Linux): a network that chunks along an axis of dynamic size, as one does that judges two versions of each clip in one batch, goes through torch.export and is translated to
# ONNX; then the optimizer, which torch.onnx.export runs by default, stops with an AttributeError about a constant that is none. The graph is fine: with optimize=False it is written and computes the same.
# Expected: a file. Seen: 'NoneType' object has no attribute 'ndim', inside constant folding of SplitToSequence. unflatten(0, (2, -1)) instead of chunk(2) is exported as it is.
#
# In lmac: `ExplainerGraph` takes batches apart with unflatten.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 numpy
"$work/venv/bin/python" - <<'PY'
import onnxruntime
import torch

class Both(torch.nn.Module):
    "What is said of a clip and of its negative"
    def __init__(self, split): super().__init__(); self.split, self.out = split, torch.nn.Linear(8, 3)
    def forward(self, x): return self.split(self.out(torch.cat([x, -x])))

def export(split, **options):
    torch.manual_seed(0)
    module = Both(split).eval()
    program = torch.onnx.export(module, (torch.ones(2, 8),), dynamo=True, verbose=False, dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}}, **options)
    session, x = onnxruntime.InferenceSession(program.model_proto.SerializeToString()), torch.randn(3, 8)
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return max((torch.from_numpy(a) - b).abs().max().item() for a, b in zip(found, module(x)))

def chunk(y): return y.chunk(2)
def unflatten(y): return tuple(y.unflatten(0, (2, -1)))

try: said = f"a file, off by {export(chunk):.0e}"
except Exception as e:
    said, causes = "", e
    while causes is not None: said, causes = f"{type(causes).__name__}: {causes}", causes.__cause__
print(f"chunk: {said}")
apart, plain = export(unflatten), export(chunk, optimize=False)
print(f"unflatten: a file, off by {apart:.0e}; chunk with optimize=False: a file, off by {plain:.0e}")
assert "AttributeError" in said and "ndim" in said and max(apart, plain) < 1e-5, "the behaviour has changed"
PY
