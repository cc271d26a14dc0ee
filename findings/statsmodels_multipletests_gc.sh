#!/usr/bin/env bash
# statsmodels 0.15.0: each call of `multipletests` runs a full garbage collection.
#
# Correcting three p-values takes microseconds, but `statsmodels.stats.multitest.multipletests` calls `gc.collect()` before it returns, whatever the
# method. In a fresh interpreter that is tens of ms; in a process that has imported torch, or holds a few hundred thousand objects, a third of a
# second, and a table of results calls it once for each of its groups. The cost grows with what else the process holds, not with the p-values, so that
# a test in a small process does not show it; and `gc.disable()` does not help, since the collection is an explicit one.
#
# Seen: a full collection in each of three calls, with gc disabled (0.14.6: the same); a call took 50 to 120 ms in this small process.
# In lmac: `compare` of a benchmark (64 groups) took 23.8 s, of which 22.8 s were these collections; it does Holm's correction itself now.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check statsmodels==0.15.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import gc, time
from statsmodels.stats.multitest import multipletests

full = []
gc.callbacks.append(lambda phase, info: full.append(info["generation"]) if phase == "start" and info["generation"] == 2 else None)
gc.disable()
for _ in range(3): multipletests([.01, .02, .03], method="holm")
print("full collections in three calls, with gc disabled:", len(full))

def seconds():
    start = time.perf_counter()
    for _ in range(5): multipletests([.01, .02, .03], method="holm")
    return (time.perf_counter() - start) / 5

small = seconds()
held = [[i] for i in range(500_000)]
large = seconds()
print(f"a call: {1e3 * small:.1f} ms; with 500,000 lists alive: {1e3 * large:.1f} ms, {large / small:.1f} times as long")
assert len(full) >= 3, "the behaviour has changed"
PY
