#!/usr/bin/env bash
# accelerate 1.15.0 (with torch 2.14.1): a sampler that was told its epoch is told another one by the data loader.
#
# Samplers that shuffle by epoch have `set_epoch`, as torch's DistributedSampler has, and torch's documentation says to call it on the sampler before
# each epoch. `prepare_data_loader` (and `Accelerator.prepare`) keep that very sampler, but every pass over the prepared loader first sets the sampler's
# epoch to a count of its own, which begins at 0. So a training that resumes in its fourth epoch and calls `sampler.set_epoch(3)` shuffles as in its
# first, without a word: the resumed run sees other batches than the one that was not interrupted. Right: call `set_epoch` on the prepared loader.
#
# Seen: the plain loader gives [30, 31, 32, 33], the prepared one [0, 1, 2, 3]; after prepared.set_epoch(3) it gives [30, 31, 32, 33].
# In lmac: `Learner` calls it on the prepared loader (08_training), and its tests compare resumed runs bit by bit.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check accelerate==1.15.0 torch==2.14.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Sampler, TensorDataset

class ByEpoch(Sampler):
    epoch = 0
    def set_epoch(self, epoch): self.epoch = epoch
    def __len__(self): return 4
    def __iter__(self): return iter([10 * self.epoch + i for i in range(4)])

loader = DataLoader(TensorDataset(torch.arange(100)), batch_size=4, sampler=ByEpoch())
prepared = prepare_data_loader(loader, num_processes=1, process_index=0)
def batch(batches): return next(iter(batches))[0].tolist()

loader.sampler.set_epoch(3)
plain, overridden = batch(loader), batch(prepared)
prepared.set_epoch(3)
told = batch(prepared)
print("sampler.set_epoch(3):  plain", plain, " prepared", overridden)
print("prepared.set_epoch(3): prepared", told)
assert plain == told == [30, 31, 32, 33] and overridden == [0, 1, 2, 3], "the behaviour has changed"
PY
