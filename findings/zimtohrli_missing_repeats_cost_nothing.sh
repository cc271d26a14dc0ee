#!/usr/bin/env bash
# zimtohrli 0.2.1.post1: a recording whose later events are silenced gets a mean opinion score of 5.0, as if nothing were missing.
#
# Zimtohrli compares an estimate with its reference, sample for sample one would think, since both have one length. But it aligns them in time first, as far
# as it takes: of bursts that repeat, four fifths can be replaced by silence, and the distance is 0. Of steady noise, two thirds that are missing at the end
# cost one point; missing at the beginning they cost three. Signals of different lengths raise nothing.
#
# Seen: six bursts of noise or of a tone in three seconds, silenced after the first second: 5.0, in both orders of the arguments; a faint noise where there
# was silence: 2.1. In windows of a second by themselves the same estimates get 1.6 and 2.4.
# In lmac: `zimtohrli_mos` (evidence/quality) compares second by second and averages the distances.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check zimtohrli==0.2.1.post1 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy as np
from zimtohrli import Pyohrli, mos_from_zimtohrli

ear, rate = Pyohrli(), 48000
t, noise = np.arange(3 * rate) / rate, np.random.default_rng(0).standard_normal(3 * rate)
on = np.sin(2 * np.pi * 2 * t) > 0

def mos(a, b): return mos_from_zimtohrli(ear.distance(a.astype(np.float32), b.astype(np.float32)))
def by_second(a, b): return mos_from_zimtohrli(np.mean([ear.distance(x.astype(np.float32), y.astype(np.float32)) for x, y in zip(a.reshape(3, -1), b.reshape(3, -1))]))

for name, x in dict(noise=.1 * noise * on, tone=.3 * np.sin(2 * np.pi * 1000 * t) * on).items():
    first = x * (t < 1)
    found = dict(silenced=mos(x, first), reversed=mos(first, x), hissing=mos(x, x + .01 * noise), nothing=mos(x, 0 * x), windows=by_second(x, first))
    print(name, {k: round(v, 2) for k, v in found.items()})
    assert found["silenced"] > 4.9 < found["reversed"] and found["hissing"] < 2.5 and found["nothing"] < 2 and found["windows"] < 3, "the behaviour has changed"
PY
