#!/usr/bin/env bash
# soundfile 0.14.0 (libsndfile 1.2.2): of an Ogg file with two Vorbis streams one after the other, only the first is read, and nothing is said.
#
# Ogg allows streams to be chained (RFC 3533, section 4), and web radio that is recorded comes as one file per title change or as a chain of them. libsndfile states the
# length of the first stream, reads it to its end, and reports no error and nothing left; FFmpeg (PyAV) goes on with the second.
#
# Seen: 32,000 of 48,000 samples by libsndfile, 47,872 by FFmpeg (which drops 128 at the beginning).
# In lmac: `lmac.audio.Recording` looks for a further stream behind the end of each, and reads all of them (tests/test_audio.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check soundfile==0.14.0 av==18.1.0 'numpy<3'
cd "$work"
"$work/venv/bin/python" - <<'PY'
import io

import av
import numpy as np
import soundfile as sf

def stream(n):
    file = io.BytesIO()
    sf.write(file, .1 * np.sin(np.arange(n) * .2), 16000, format='OGG', subtype='VORBIS')
    return file.getvalue()

chain = stream(32_000) + stream(16_000)
with sf.SoundFile(io.BytesIO(chain)) as file:
    stated, read, left = file.frames, len(file.read()), len(file.read())
with av.open(io.BytesIO(chain)) as container: decoded = sum(frame.samples for frame in container.decode(audio=0))
print(f"soundfile {sf.__version__} ({sf.__libsndfile_version__}): {stated} samples stated, {read} read, {left} after that; PyAV {av.__version__}: {decoded}")
assert (stated, read, left) == (32_000, 32_000, 0) and decoded == 47_872, "the behaviour has changed"
PY
