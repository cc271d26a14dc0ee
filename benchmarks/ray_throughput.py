"""Two workers of Ray against one process: `pip install -e '.[ray]'`, then `python benchmarks/ray_throughput.py --out nbs/results/cluster.json`, some minutes on two cores that do nothing else.

The 400 clips of ESC-10 if `LMAC_DATA` has them, otherwise synthetic scenes, are explained by one process, with one thread and with all, and by Ray. All do the same: read, explain, encode both sounds, find the regions, write
Parquet. The throughput of Ray is that of the last two thirds of three times as many clips, since a run over a million recordings starts its workers once; the time of the clips themselves, with the start, stands beside it. Rows are compared, sounds to the bit.
The last part kills a worker when a third is done, and counts what is lost.
"""
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastcore.script import call_parse

from lmac.audio import load_audio, make_scene, save_audio
from lmac.data import data_root, esc50, has_dataset
from lmac.evidence.record import Record, run_metadata
from lmac.explain import LMAC
from lmac.pretrained import DEFAULT_EXPLAINER
from lmac.scale.cluster import explain, result_row, result_schema, start_ray

NAMES = ["dog", "rain", "siren", "clock_tick", "sea_waves"]


def gather_clips(folder, n):
    "Put so many recordings into a folder: of ESC-10, or scenes; which of both"
    real = has_dataset("esc50")
    if real:
        for path in esc50("esc10", download=False).table.path[:n]: (folder/Path(path).name).symlink_to(Path(path).absolute())
    else:
        for i in range(n): save_audio(folder/f"{i:04d}.wav", make_scene({NAMES[i % 5]: 0, NAMES[(i + 1) % 5]: -8}, 5., seed=i).waveform, 16000)
    return "ESC-10" if real else "synthetic scenes"


def alone(explainer, files, threads):
    "Table and seconds of one process; one recording is explained before, as a worker that is up has"
    import pyarrow as pa
    import pyarrow.parquet as pq
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    def row(path):
        waveform = load_audio(path, explainer.sample_rate, mono=True)[0][0]
        return result_row(explainer.explain(waveform, explainer.sample_rate), recording=path.name, source=str(path), true_label="", settings="")
    row(files[0])
    began, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(0, len(files), 16):
            part = [row(path) for path in files[i:i + 16]]
            pq.write_table(pa.Table.from_pylist(part, result_schema()), Path(folder, f"{i}.parquet"))
            rows += part
    seconds = time.perf_counter() - began
    torch.set_num_threads(before)
    return pd.DataFrame(rows), seconds


def up_and_running(out):
    "Clips a second in the last two thirds of a run, when all workers are up, which start one after the other: the slope of a line through the times of the files, two of which are often written at once"
    files = sorted(out.glob("*.parquet"), key=lambda p: p.stat().st_mtime_ns)
    times = [p.stat().st_mtime_ns / 1e9 for p in files]
    counts = [len(pd.read_parquet(p, columns=["source"])) for p in files]
    first = max(1, len(files) // 3)
    return float(np.polyfit(times[first:], np.cumsum(counts)[first:], 1)[0])


def three_times(clips, folder):
    "A folder with each clip three times, so that a run lasts long beside the start of its workers"
    folder.mkdir()
    for path in clips:
        for i in range(3): (folder/f"{path.stem}-{i}{path.suffix}").symlink_to(path.resolve())
    return folder


def differences(ours, one):
    "How many rows there are not, how many sounds differ, and the largest difference of a probability"
    both = ours.merge(one, on="source", suffixes=("", "_one"))
    names = ["probability", "probability_masked_in", "probability_masked_out", "probability_heard", "mask_mean"]
    return dict(missing=len(one) - len(both), twice=int(ours.source.duplicated().sum()), errors=int((ours.error != "").sum()),
                sounds_that_differ=int(sum((both[k] != both[f"{k}_one"]).sum() for k in ("explanation", "residual"))),
                largest_difference=max((both[k] - both[f"{k}_one"]).abs().max() for k in names))


def workers_of(parent):
    "Process ids of the actors below a process"
    children, found, titles = {}, [parent], {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try: text, titles[int(stat.parent.name)] = stat.read_text(), (stat.parent/"cmdline").read_bytes()
        except OSError: continue
        children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    for pid in found: found += children.get(pid, [])
    return [pid for pid in found if titles.get(pid, b"").startswith(b"ray::") and b"_Actor" in titles[pid]]


def killed(folder, explainer, out, workers, n):
    "The results of a run in which a worker is killed when a third is done"
    found = []
    thread = threading.Thread(target=lambda: found.append(explain(folder, explainer, out, workers=workers, progress=False)))
    thread.start()
    while thread.is_alive() and len(list(out.glob("*.parquet"))) < max(1, n // 48): time.sleep(.05)
    victims = workers_of(os.getpid())
    if found or not victims: raise RuntimeError("The run was through before a worker could be killed: take more clips.")
    os.kill(victims[0], signal.SIGKILL)
    thread.join()
    return found[0].to_pandas()


@call_parse
def main(
    out:str="results/cluster.json", # Result file; the table of all clips goes beside it
    n:int=400, # Number of clips
    workers:int=2, # Number of actors
    explainer:str=DEFAULT_EXPLAINER, # Bundled explainer or folder
):
    "Measure what two workers do in the time of one process, and whether the results are the same"
    record, lmac = Record(out), LMAC.from_pretrained(explainer)
    folder = Path(tempfile.mkdtemp())
    try:
        (folder/"clips").mkdir()
        kind = gather_clips(folder/"clips", n)
        files = sorted((folder/"clips").iterdir())
        one, one_s = alone(lmac, files, 1)
        _, all_s = alone(lmac, files, os.cpu_count())
        ray, began = start_ray(num_cpus=workers), time.perf_counter()
        table = explain(folder/"clips", lmac, folder/"out", workers=workers).to_pandas()
        ray_s = time.perf_counter() - began
        explain(three_times(files, folder/"many"), lmac, folder/"much", workers=workers)
        rate = up_and_running(folder/"much")
        after = killed(folder/"clips", lmac, folder/"killed", workers, n)
        result = dict(data=kind, n_clips=len(files), workers=workers, cores=os.cpu_count(), ray_version=ray.__version__,
                      clips_per_s=dict(one_process_one_thread=len(files)/one_s, one_process_all_threads=len(files)/all_s, ray=rate, ray_with_start=len(files)/ray_s),
                      ratio=rate*one_s/len(files), ratio_to_all_threads=rate*all_s/len(files), bytes_per_clip=sum(p.stat().st_size for p in (folder/"out").iterdir())/len(files),
                      same=differences(table, one), worker_killed=differences(after, one))
        ray.shutdown()
    finally: shutil.rmtree(folder, ignore_errors=True)
    numbers = table.drop(columns=["explanation", "residual", "thumbnail", "explanation_json", "regions", "timeline", "source", "settings"]).sort_values("recording")
    print(record.write(numbers, run_metadata(), **result))
