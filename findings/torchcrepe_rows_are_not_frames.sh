#!/usr/bin/env bash
# torchcrepe 0.0.24: the network takes clips longer than its frame without a word, and gives rows that are not those of its frames.
#
# CREPE estimates the pitch of one frame of 1024 samples. torchcrepe's `Crepe` module does not check the length: its last maps are reshaped to
# `(-1, in_features)`, so that a clip of four frames, `(1, 4096)`, comes back as four rows of 360 pitch bins, exactly the shape that four frames
# give. But the convolutions have run across the frames and the rows are cut elsewhere: a steady tone gets four pitches, three of them wrong by
# octaves. Whoever tries lengths to find out which one a network takes has to look at the number of rows.
#
# Seen: a sine of 220 Hz, as four frames: bin 168 (221 Hz) four times; as one clip of 4096 samples: other bins.
# In lmac: `fit_input` counts the answers, five for five clips, and so finds the 1024 samples by itself.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torchcrepe==0.0.24 torch torchaudio
cd "$work"
"$work/venv/bin/python" - <<'PY'
import torch, torchcrepe

torchcrepe.load.model("cpu", "tiny")
model, t = torchcrepe.infer.model, torch.arange(4096) / 16000
tone = torch.sin(2 * torch.pi * 220 * t)
tone = (tone - tone.mean()) / tone.std()  # as torchcrepe.preprocess does with each frame
with torch.no_grad(): frames, clip = model(tone.view(4, 1024)), model(tone.view(1, 4096))
print("four frames:", tuple(frames.shape), frames.argmax(1).tolist())
print("one clip:   ", tuple(clip.shape), clip.argmax(1).tolist())
hz = 10 * 2**((20 * frames.argmax(1) + 1997.3794084376191) / 1200)
assert ((hz - 220).abs() < 5).all() and frames.shape == clip.shape
assert (frames.argmax(1) != clip.argmax(1)).sum() >= 2, "the behaviour has changed"
PY
