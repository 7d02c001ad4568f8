#!/usr/bin/env python3
"""Runs the guide's recipe for Airflow against Airflow's own execution API, whose tokens live for 20 seconds here.

    scripts/airflow.py

Installs Airflow from PyPI into the cache folder first (about two minutes), and starts its API server on 127.0.0.1 with a database in a
temporary folder. The recipe runs as it stands in the guide, but for a beat each 5 s and a job that takes 50 s.
"""

import os
import pathlib
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid

import paste

PEER = paste.ROOT / "tests/peers/airflow"
SECRET = "a-secret-of-this-test-alone-" * 3
LIFETIME = 20
REPLACED = {"Duration::from_secs(30)": "Duration::from_secs(5)", "async fn work() {}": "async fn work() { tokio::time::sleep(Duration::from_secs(50)).await }"}


def installed():
    """The folder of Airflow's programs."""
    cache = pathlib.Path(os.environ.get("CI_CACHE") or pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "reqwest-reauth")
    requirements = PEER / "requirements.txt"
    venv = cache / "airflow"
    stamp = venv / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        subprocess.run([venv / "bin/pip", "install", "--quiet", "--requirement", requirements], check=True)
        stamp.write_text(requirements.read_text())
    return venv / "bin"


def recipe():
    """The compiled recipe."""
    page = (paste.ROOT / "docs/guide/recipes.md").read_text()
    text = next(text for _, text, _ in paste.BLOCK.findall(page) if "EXECUTION_API" in text)
    for old, new in REPLACED.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    package = paste.TARGET / "airflow"
    (package / "src").mkdir(parents=True, exist_ok=True)
    (package / "src/main.rs").write_text(text)
    (package / "Cargo.toml").write_text(paste.MANIFEST.format(root=paste.ROOT).replace('name = "paste"', 'name = "airflow-recipe"'))
    (package / "Cargo.lock").write_bytes((paste.ROOT / "Cargo.lock").read_bytes())
    environment = {**os.environ, "CARGO_TARGET_DIR": str(paste.TARGET), "RUSTFLAGS": os.environ.get("RUSTFLAGS", "")}
    subprocess.run(["cargo", "build", "--quiet"], cwd=package, env=environment, check=True)
    return paste.TARGET / "debug/airflow-recipe"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def status(url, token):
    """Of a heartbeat with this token."""
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    request = urllib.request.Request(url, b'{"hostname":"here","pid":1}', headers, method="PUT")
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def queue_task(airflow, environment, home):
    """The id of a task instance that is ready to run."""
    (home / "dags").mkdir()
    (home / "dags/job.py").write_text((PEER / "job.py").read_text())
    for command in (["db", "migrate"], ["dags", "reserialize"], ["dags", "trigger", "job", "--run-id", "one"]):
        ran = subprocess.run([airflow, *command], env=environment, capture_output=True, text=True)
        if ran.returncode:
            sys.exit(f"airflow {' '.join(command)}: {ran.stdout}{ran.stderr}")
    # This would be the scheduler.
    with sqlite3.connect(home / "airflow.db") as database:
        database.execute("update task_instance set state = 'queued'")
        return str(uuid.UUID(database.execute("select id from task_instance").fetchone()[0]))


def main():
    programs, program = installed(), recipe()
    with tempfile.TemporaryDirectory() as folder:
        home = pathlib.Path(folder)
        environment = {
            **os.environ,
            **{"AIRFLOW_HOME": folder, "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "AIRFLOW__API_AUTH__JWT_SECRET": SECRET},
            **{"AIRFLOW__EXECUTION_API__JWT_EXPIRATION_TIME": str(LIFETIME), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
            "PATH": f"{programs}:{os.environ['PATH']}",
        }
        task, port = queue_task(programs / "airflow", environment, home), free_port()
        token = subprocess.run([programs / "python", PEER / "workload_token.py", task], env=environment, capture_output=True, text=True, check=True)
        token = token.stdout.split()[-1]
        log = home / "server.log"
        command = [programs / "airflow", "api-server", "--apps", "execution", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        with log.open("w") as out:
            server = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            check(program, f"http://127.0.0.1:{port}/execution/", task, token, log, server)
        except AssertionError:
            print(log.read_text())
            raise
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def check(program, base, task, token, log, server):
    deadline = time.monotonic() + 180
    while "Uvicorn running" not in log.read_text():
        assert server.poll() is None and time.monotonic() < deadline, "the API server did not start"
        time.sleep(0.2)
    variables = {**os.environ, "EXECUTION_API": base, "TASK_INSTANCE_ID": task, "TOKEN": token, "HOSTNAME": "here"}
    ran = subprocess.run([program], env=variables, capture_output=True, text=True, timeout=300)
    requests = re.findall(r"method=(\w+) path=(\S+) query=\S* status_code=(\d+)", log.read_text())
    beats = [code for _, path, code in requests if path == f"/execution/task-instances/{task}/heartbeat"]
    assert (ran.returncode, ran.stdout) == (0, "Requested\n"), ran
    assert ("PATCH", f"/execution/task-instances/{task}/run", "200") in requests, requests
    assert len(beats) >= 8 and set(beats) == {"204"}, beats
    # The token that the recipe started with is of no use for a heartbeat.
    url = f"{base}task-instances/{task}/heartbeat"
    assert status(url, token) == 403
    print(f"airflow: started, and {len(beats)} beats over 50 s with tokens of {LIFETIME} s, none rejected")


main()
