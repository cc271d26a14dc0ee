#!/usr/bin/env bash
# silero-vad 6.2.3: importing the package sets torch to one thread, for everything else in the process as well.
#
# The detector is small and fastest on one thread, so its module calls `torch.set_num_threads(1)` when it is imported. The setting is the whole
# process's: a network that is trained or run beside the detector goes on with one core from then on, without a word. Nothing sets it back.
#
# Seen: four threads before the import, one after it.
# In lmac: `lmac.models.packages.SileroVAD` puts back what was set (tests/test_kinds.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check silero-vad==6.2.3
cd "$work"
"$work/venv/bin/python" - <<'PY'
import torch

torch.set_num_threads(4)
before = torch.get_num_threads()
import silero_vad
print(f"torch {torch.__version__}: {before} threads before the import, {torch.get_num_threads()} after it")
assert before == 4 and torch.get_num_threads() == 1, "the behaviour has changed"
PY
