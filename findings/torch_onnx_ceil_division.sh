#!/usr/bin/env bash
# torch 2.14.1, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.32.0 (Python 3.11, Linux): -(-n // k), Python's way to divide and round up, is exported of a dynamic length as a
# division that rounds towards zero. torch.export has it right; the ONNX graph pads one step too few, without a word, for every length that is no multiple.
# Expected: the same length as in PyTorch. Seen: of 10 samples in steps of 4, 12 in PyTorch and 8 from ONNX. (n + k - 1) // k is exported rightly.
#
# In lmac: `STFT.n_frames` adds before it divides; exported files are compared with PyTorch at lengths that are no multiple of the hop (tests/test_export.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 numpy
"$work/venv/bin/python" - <<'PY'
import onnxruntime
import torch
from torch.nn import functional as F

class Padded(torch.nn.Module):
    "A signal, filled up with zeros to a multiple of four"
    def __init__(self, ceil): super().__init__(); self.ceil = ceil
    def forward(self, x): return F.pad(x, (0, self.ceil(x.shape[-1]) * 4 - x.shape[-1]))

def lengths(ceil):
    module = Padded(ceil).eval()
    program = torch.onnx.export(module, (torch.ones(1, 11),), dynamo=True, verbose=False, dynamic_shapes={"x": {1: torch.export.Dim.DYNAMIC}})
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    x = torch.ones(1, 10)
    return module(x).shape[1], program.exported_program.module()(x).shape[1], session.run(None, {session.get_inputs()[0].name: x.numpy()})[0].shape[1]

negated, added = lengths(lambda n: -(-n // 4)), lengths(lambda n: (n + 3) // 4)
print(f"-(-n // 4): PyTorch {negated[0]}, torch.export {negated[1]}, ONNX {negated[2]}; (n + 3) // 4: {added}")
assert negated == (12, 12, 8) and added == (12, 12, 12), "the behaviour has changed"
PY
