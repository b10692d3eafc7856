"""Run scripts in processes of their own that begin with everything imported: imports take longer than most scripts."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SERVER = """
import atexit, json, os, signal, sys, traceback

import lightning.pytorch, matplotlib.pyplot, sklearn.cluster, sklearn.datasets, torch.distributed, torchmetrics
import torch.utils.tensorboard
import lightning_neuroimp

for line in sys.stdin:
    job = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    signal.alarm(job["seconds"])
    for number, path in enumerate((os.devnull, job["output"], job["errors"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    os.chdir(job["folder"])
    sys.argv = ["-c", *job["arguments"]]
    code = 0
    try:
        exec(compile(job["script"], "<script>", "exec"), {"__name__": "__main__"})
    except SystemExit as stopped:
        code = stopped.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
"""


@functools.cache
def _server():
    """Start the process that has imported everything, and forks for each script."""
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, "-c", SERVER], **options)

    def stop():
        server.stdin.close()
        server.stdout.close()
        server.wait()

    atexit.register(stop)
    return server


def run_script(script, *arguments, folder=None, seconds=240):
    """Run a script as `python -c` does; the outcome is that of `subprocess.run`, with output and errors as text."""
    with tempfile.TemporaryDirectory() as kept:
        output, errors = Path(kept, "output"), Path(kept, "errors")
        job = {"script": script, "arguments": [str(one) for one in arguments], "folder": str(folder or os.getcwd())}
        job |= {"output": str(output), "errors": str(errors), "seconds": seconds}
        server = _server()
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        code = server.stdout.readline()
        assert code, "the process that forks has ended"
        return subprocess.CompletedProcess(arguments, int(code), output.read_text(), errors.read_text())


def run_file(path, *arguments, folder):
    """Run a file as `python FILE` does, and fail where it fails."""
    script = "import runpy, sys; sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = run_script(script, path, *arguments, folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done
