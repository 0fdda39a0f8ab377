"""Kill one worker of a training script, and see how the others end."""

import subprocess
import time

import psutil


def log_of_a_killed_worker(command, folder, *, epochs):
    """Start a script whose run is folder/run, kill worker 1 after some epochs, and return what the job printed.

    The job must end by itself within a minute, with a message and without a traceback.
    """
    with open(folder / "log.txt", "w") as log:
        job = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    path, deadline = folder / "run" / "metrics.jsonl", time.monotonic() + 240
    while not (path.exists() and len(path.read_text().splitlines()) >= epochs):
        assert job.poll() is None, (folder / "log.txt").read_text()
        assert time.monotonic() < deadline, "the job did not get going"
        time.sleep(0.02)
    children = psutil.Process(job.pid).children(recursive=True)
    next(process for process in children if process.environ().get("RANK") == "1").kill()
    assert job.wait(timeout=60) != 0
    printed = (folder / "log.txt").read_text()
    assert "worker 0: lost the connection to another worker" in printed
    assert "Traceback" not in printed
    return printed
