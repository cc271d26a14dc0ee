#!/usr/bin/env bash
# soundfile 0.14.0 (libsndfile 1.2.2): a FLAC file that states no length cannot be read whole, although every sample is there.
#
# An encoder that writes to a pipe cannot go back to put the number of samples into the header, and the format allows 0 there for "unknown" (RFC 9639, section 8.2). The
# reference encoder does so: `flac - < a.wav > a.flac` through a pipe. libsndfile gives 2^63 - 1 as the number of frames; `soundfile.read` asks NumPy for that many, and `info` says the
# recording lasts 18 million years. Reading block by block loses the last block, since soundfile seeks after each read, which fails at the end.
#
# Seen: frames 9223372036854775807; `read()` raises ValueError; blocks of 4,096 give 12,288 of the 16,000 samples, then LibsndfileError.
# In lmac: `lmac.audio.Recording` counts, reads to the end, and believes no length (tests/test_audio.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check soundfile==0.14.0 'numpy<3'
cd "$work"
"$work/venv/bin/python" - <<'PY'
import io

import numpy as np
import soundfile as sf

file = io.BytesIO()
sf.write(file, .1 * np.sin(np.arange(16_000) * .2), 16000, format='FLAC', subtype='PCM_16')
data = bytearray(file.getvalue())
data[21:26] = data[21] & 0xf0, 0, 0, 0, 0  # as of an encoder that wrote to a pipe: 36 bits for the number of samples
sound = sf.SoundFile(io.BytesIO(bytes(data)))
try: sf.read(io.BytesIO(bytes(data)))
except ValueError as e: whole = f'{type(e).__name__}: {e}'
else: whole = 'read'
found, end = 0, ''
try:
    while n := len(sound.read(4096)): found += n
except sf.LibsndfileError as e: end = f'{type(e).__name__}: {e}'
print(f"soundfile {sf.__version__} ({sf.__libsndfile_version__}): frames {sound.frames}; read(): {whole}; blocks: {found} samples, then {end or 'the end'}")
assert sound.frames == 2**63 - 1 and whole.startswith('ValueError') and found == 12_288 and end, "the behaviour has changed"
PY
