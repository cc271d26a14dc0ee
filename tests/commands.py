"""The installed commands, without what Python takes to start: to import torch takes longer than most of what is tested, so a process that has
imported it waits, and forks for each command. What runs is the command's own function, in a process with its own arguments, folder and output.
"""
import json
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

SERVER = '''
import gc, json, os, resource, sys, traceback
import accelerate, matplotlib.backends.backend_agg, matplotlib.figure, scipy.stats
import lmac.cli, lmac.training, lmac.evidence.baselines, lmac.evidence.benchmark, lmac.evidence.recipes, pandas, tqdm
from lmac.cli import *
gc.freeze()  # or each fork copies what its collections touch
for line in sys.stdin:
    call, pids = json.loads(line), []
    for rank, outputs in enumerate(call['outputs']):
        pid = os.fork()
        if pid: pids.append(pid); continue
        for number, output in zip((1, 2), outputs): os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(call['cwd'])
        if call['largest']: resource.setrlimit(resource.RLIMIT_FSIZE, (call['largest'],) * 2)
        if call['port']:
            n = str(len(call['outputs']))
            os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=n, LOCAL_WORLD_SIZE=n, MASTER_ADDR='localhost', MASTER_PORT=call['port'])
        sys.argv, status = call['argv'], 0
        try:
            exec(call['before'], dict(rank=rank))
            if sys.argv: globals()[sys.argv[0].replace('-', '_')]()
        except SystemExit as e: status = e.code or 0
        except BaseException:
            traceback.print_exc()
            status = 1
        if call['port']: sys.exit(status)  # as scripts end, with all that Python does then
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
'''


@dataclass
class Run:
    status: int
    out: str
    err: str

    def ok(self):
        assert self.status == 0 and 'Traceback' not in self.err, self.err[-3000:]
        return self

    def failed(self, message, lines=1):
        "One line on stderr that says `message`; for a command that shows its progress, the last of them"
        assert self.status == 1, (self.status, self.out, self.err[-2000:])
        assert 'Traceback' not in self.err, self.err[-3000:]
        last = self.err.rstrip().split('\n')
        assert lines is None or len(last) == lines, self.err
        assert re.match(r'lmac-(explain|train|evaluate|study): error: ', last[-1].rpartition('\r')[2]), last[-1]
        assert re.search(message, last[-1]), last[-1]
        return self

    def misused(self, message):
        "As argparse does it: the usage, and what is wrong"
        assert self.status == 2 and self.err.startswith('usage: lmac-') and 'Traceback' not in self.err
        assert re.search(message, self.err), self.err
        return self


def free_port():
    with socket.socket() as s:
        s.bind(('localhost', 0))
        return str(s.getsockname()[1])


class Commands:
    "Runs commands; fixture `commands`"
    def __init__(self, folder, environment):
        self.folder = folder
        (file := folder/'server.py').write_text(SERVER)
        self.process = subprocess.Popen([sys.executable, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def __call__(self, n, *argv, cwd='.', before='', largest=None):
        "In `n` processes that a launcher would have started; `before` is code that each runs first, `largest` a limit on the size of files, in bytes, as of a disk that is full"
        outputs = [[str(Path(mkdtemp(dir=self.folder))/name) for name in ('out', 'err')] for _ in range(n)]
        call = dict(argv=[str(a) for a in argv], cwd=str(cwd), outputs=outputs, before=before, port=free_port() if n > 1 else None, largest=largest)
        self.process.stdin.write(json.dumps(call) + '\n')
        self.process.stdin.flush()
        statuses = json.loads(self.process.stdout.readline())
        return [Run(status, *(open(o, newline='').read() for o in output)) for status, output in zip(statuses, outputs)]

    def close(self):
        self.process.stdin.close()
        self.process.wait()
