"""Recordings that were damaged at random, and what reading them comes to: sound, an error that is documented, or something that must not happen."""
import argparse
import io
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from select import select

import numpy as np
import soundfile as sf

LIMIT_S, LIMIT_BYTES = 5., 1 << 30 # for one recording: time, and memory above what the libraries take


# ---- recordings, whole and damaged ----

def whole_recordings(rate=16000, duration_s=.25): # {name with suffix: bytes}
    "A recording in each format that there is to make; those of PyAV only if it is installed"
    rng, n = np.random.default_rng(0), round(rate*duration_s)
    sound = (.3*np.sin(np.arange(n)*.2)[:, None] + .05*rng.standard_normal((n, 2))).astype('float32')
    def encoded(container, subtype, channels=1):
        file = io.BytesIO()
        sf.write(file, sound[:, :channels], rate, format=container, subtype=subtype)
        return file.getvalue()
    found = {'pcm.wav': encoded('WAV', 'PCM_16'), 'stereo.wav': encoded('WAV', 'PCM_U8', 2), 'float.wav': encoded('WAV', 'FLOAT'), 'adpcm.wav': encoded('WAV', 'IMA_ADPCM'), 'wide.wav': encoded('RF64', 'PCM_16'),
             'a.flac': encoded('FLAC', 'PCM_16'), 'stereo.flac': encoded('FLAC', 'PCM_24', 2), 'a.ogg': encoded('OGG', 'VORBIS'), 'stereo.ogg': encoded('OGG', 'VORBIS', 2), 'a.opus': encoded('OGG', 'OPUS'),
             'a.mp3': encoded('MP3', 'MPEG_LAYER_III'), 'stereo.mp3': encoded('MP3', 'MPEG_LAYER_III', 2), 'a.aiff': encoded('AIFF', 'PCM_16'), 'a.caf': encoded('CAF', 'ALAC_16'), 'a.au': encoded('AU', 'ULAW')}
    pipe = bytearray(found['a.flac'])
    pipe[21:26] = pipe[21] & 0xf0, 0, 0, 0, 0
    joined = {f'joined{suffix}': 2*found[f'a{suffix}'] for suffix in ('.ogg', '.mp3', '.flac')}
    return found | joined | {'pipe.flac': bytes(pipe), 'joined.wav': 2*found['pcm.wav']} | av_recordings(sound[:, :1].T, rate)

def av_recordings(sound, rate):
    "The recordings that PyAV makes, `sound` being `(1, time)`; none without it"
    try: import av
    except ImportError: return {}
    found = {}
    for name, container, codec in (('a.m4a', 'ipod', 'aac'), ('a.mp4', 'mp4', 'aac'), ('a.aac', 'adts', 'aac'), ('a.webm', 'webm', 'libopus'), ('a.mka', 'matroska', 'flac'), ('a.wma', 'asf', 'wmav2'), ('a.mov', 'mov', 'alac')):
        file = io.BytesIO()
        try:
            with av.open(file, 'w', format=container) as out:
                stream = out.add_stream(codec, rate=rate, layout='mono')
                stream.bit_rate = 64000
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format='fltp', layout='mono')
                frame.sample_rate, frame.pts = rate, 0
                for packet in [*stream.encode(frame), *stream.encode(None)]: out.mux(packet)
        except av.FFmpegError: continue  # an encoder that this build lacks
        found[name] = file.getvalue()
    return found

def damaged(data, rng, others): # bytes, random.Random, list of bytes -> bytes
    "One to three kinds of damage: bytes, fields of the header, a cut, a piece that is doubled, dropped, emptied or another file's"
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        n = max(1, len(data))
        at = rng.choice((rng.randrange(n), rng.randrange(min(n, 128))))
        kind, size = rng.randrange(8), rng.choice((1, 4, 16, 300))
        if kind in (0, 1):
            for _ in range(rng.choice((1, 2, 8, 40))): data[rng.randrange(n) if kind else rng.randrange(min(n, 128))] = rng.randrange(256)
        elif kind == 2: data[at:at + 4] = rng.choice((b'\0\0\0\0', b'\xff\xff\xff\xff', b'\x7f\xff\xff\xff', b'\xff\xff\xff\x7f', b'\1\0\0\0', b'\0\0\0\1', rng.randbytes(4)))
        elif kind == 3: del data[at:]
        elif kind == 4: data[at:at] = data[at:at + size]
        elif kind == 5: del data[at:at + size]
        elif kind == 6: data[at:at + size] = bytes(size)
        else: data[at:] = rng.choice(others)[rng.randrange(50):]
        if not data: data = bytearray(b'\0')
    return bytes(data)

def mutated_recordings(n, seed=0, first=0): # yields (name, bytes), the same for the same seed and number
    "Damaged recordings number `first` to `n` - 1"
    whole = whole_recordings()
    names, others = list(whole), list(whole.values())
    for i in range(first, n):
        rng = random.Random(f'{seed} {i}')
        name = names[i % len(names)]
        yield f'{i}-{name}', damaged(whole[name], rng, others)


# ---- what reading them comes to ----

def read_recording(path): # path -> ('ok', 'documented' or 'undocumented', what was found)
    "Load a recording, and read it in blocks: both must agree; a documented error is a `ValueError` that names the file"
    from lmac.audio import load_audio
    from lmac.scale.long import sound_blocks
    def outcome(read):
        try: return 'ok', read()
        except ValueError as e: return ('documented' if str(path) in str(e) and '\n' not in str(e) else 'undocumented'), f'{type(e).__name__}: {e}'
        except Exception as e: return 'undocumented', f'{type(e).__name__}: {e}'
    def blocks():
        with sound_blocks(path, block_s=.1) as (rate, _, found): return sum(map(len, found)), rate
    def whole():
        sound, rate = load_audio(path, mono=True)
        load_audio(path, 16000, mono=True)
        return sound.shape[-1], rate
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        (status, found), (status_2, found_2) = outcome(whole), outcome(blocks)
    if 'undocumented' in (status, status_2): return 'undocumented', found if status == 'undocumented' else found_2
    if status != status_2 or status == 'ok' and found != found_2: return 'undocumented', f'as a whole: {found}; in blocks: {found_2}'
    return status, str(found)

def read_all(n, seed, first): # prints a line before and after each
    "What a child process does"
    import torch
    import lmac.scale.long
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, 'a.wav').write_bytes(whole_recordings()['pcm.wav'])
        read_recording(Path(folder, 'a.wav'))
        now = int(Path('/proc/self/statm').read_text().split()[0])*resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + LIMIT_BYTES, now + LIMIT_BYTES))
        for i, (name, data) in enumerate(mutated_recordings(n, seed, first), first):
            print(json.dumps(dict(i=i, name=name)), flush=True)
            path = Path(folder, name)
            path.write_bytes(data)
            status, found = read_recording(path)
            path.unlink()
            print(json.dumps(dict(i=i, name=name, status=status, found=found.replace(folder, ''))), flush=True)

def run_recordings(n, seed=0, n_processes=2): # -> dict: ok, documented, undocumented, crashed, hung, seconds, failures
    "Read `n` damaged recordings in child processes, each in at most `LIMIT_S` and `LIMIT_BYTES`; a child that crashes or hangs is replaced by one that goes on with the next"
    began, found = time.monotonic(), dict(ok=0, documented=0, undocumented=0, crashed=0, hung=0, failures=[])
    def child(first, last):
        argv = [sys.executable, __file__, '--child', str(first), '--n', str(last), '--seed', str(seed)]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    ends = [round(n*k/n_processes) for k in range(n_processes + 1)]
    running = [dict(process=child(a, b), last=b, now=dict(i=a - 1, name='start'), since=time.monotonic(), busy=False, held=b'') for a, b in zip(ends, ends[1:]) if a < b]
    def fail(job, status):
        found[status] += 1
        found['failures'].append(dict(name=job['now']['name'], status=status, found=f"{status} ({job['process'].poll()})"))
        running.remove(job)
        if job['now']['i'] + 1 < job['last']: running.append(job | dict(process=child(job['now']['i'] + 1, job['last']), since=time.monotonic(), busy=False, held=b''))
    while running:
        ready, _, _ = select([job['process'].stdout for job in running], [], [], .2)
        for job in list(running):
            if job['process'].stdout in ready:
                data = job['process'].stdout.read1()
                *lines, job['held'] = (job['held'] + data).split(b'\n')
                for row in map(json.loads, lines):
                    job |= dict(now=row, since=time.monotonic(), busy='status' not in row)
                    if 'status' in row:
                        found[row['status']] += 1
                        if row['status'] == 'undocumented': found['failures'].append(row)
                if not data:
                    if job['process'].wait() or job['busy']: fail(job, 'crashed')
                    else: running.remove(job)
            elif job['busy'] and time.monotonic() - job['since'] > LIMIT_S:
                job['process'].kill()
                job['process'].wait()
                fail(job, 'hung')
    return found | dict(seconds=time.monotonic() - began)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--n', type=int, default=10_000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--child', type=int, help='read in this process, from this number on')
    args = parser.parse_args()
    if args.child is not None: read_all(args.n, args.seed, args.child)
    else: print(json.dumps(run_recordings(args.n, args.seed), indent=1))
