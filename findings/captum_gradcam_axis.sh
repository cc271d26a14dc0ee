#!/usr/bin/env bash
# captum 0.9.0: LayerGradCam takes a layer's second axis for its channels, whatever the layer is, and says nothing.
#
# Grad-CAM weighs each channel by the mean gradient over its positions and sums over channels. captum averages over all axes from the third on and
# sums over the second. Convolutions have their channels there. Transformers and recurrent layers with `batch_first` give `(batch, frame, channel)`:
# gradients are then averaged over channels and summed over frames, and what should have one value per frame has one per channel. The result has a
# plausible shape, `(batch, 1, channel)`, and no error says that time is gone.
#
# Seen: of 7 frames of 16 channels, 16 numbers instead of 7.
# In lmac: the baseline `GradCam` weighs and sums over the map's own axes (tests/test_baselines.py, recurrent layers).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check captum==0.9.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import torch
from captum.attr import LayerGradCam
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(16, 2, 32, dropout=0., batch_first=True), nn.Linear(16, 3)
    def forward(self, x): return self.head(self.layer(x).mean(1))

torch.manual_seed(0)
network, x, target = Network(), torch.rand(2, 7, 16), torch.tensor([0, 2])
network.train()  # in eval the layer takes a fused path without hooks
found = LayerGradCam(network, network.layer).attribute(x, target)
frames = (network.layer(x) * network.head.weight[target][:, None] / 7).sum(2)  # the gradient is the head's weight, a seventh for each frame
print("by captum:", tuple(found.shape), "- one value per frame would be", tuple(frames.shape))
assert found.shape == (2, 1, 16) and frames.shape == (2, 7), "the behaviour has changed"
PY
