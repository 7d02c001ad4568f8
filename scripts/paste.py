#!/usr/bin/env python3
"""Pastes each program of README and the guide into a package of its own, compiles all, and runs those that can run here.

    scripts/paste.py            all programs
    scripts/paste.py recipes    the programs of pages whose name starts so

A program is a ```rust block with a `main`. The package has the dependencies that the pages list, not this crate's dev-dependencies. Run as they
are: blocks without `no_run`. Run against a stand-in on 127.0.0.1 in place of their servers: the others, unless COMPILED_ONLY says why not; with
a real Redis if `redis-server` is installed. A ```text block after "It prints:" is compared with the output. An excerpt (`ignore`, without `main`) has to stand in
examples/clients, which CI builds and runs.
"""

import contextlib
import http.server
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
PACKAGE = TARGET / "paste"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs/guide").glob("*.md"))]
BLOCK = re.compile(r"^```(rust[^\n]*)\n(.*?)^```\n(?:\nIt prints:\n\n```text\n(.*?)^```)?", re.M | re.S)
# Endless; a DPoP server; a login.
COMPILED_ONLY = ("loop {", "Placement::dpop", "authorization_code")
REDIS = "rediss://redis.internal:6379"
HOSTS = re.compile(r"https://(api\.example\.com|login\.example\.com|api\.github\.com|api\.cloud\.seqera\.io)")

MANIFEST = """\
[package]
name = "paste"
version = "0.0.0"
edition = "2024"

[workspace]

[dependencies]
futures-util = "0.3"
# Without a feature it keeps secrets in memory.
metrics-exporter-prometheus = {{ version = "0.18", default-features = false }}
keyring = {{ version = "3", default-features = false }}
jsonwebtoken = {{ version = "11", features = ["aws_lc_rs", "use_pem"] }}
reqwest = {{ version = "0.13", features = ["multipart", "stream"] }}
reqwest-middleware = "0.5"
reqwest-reauth = {{ path = "{root}", features = ["dpop", "metrics", "redis", "test-util"] }}
serde = {{ version = "1", features = ["derive"] }}
serde_json = "1"
tokio = {{ version = "1", features = ["full"] }}
tracing-subscriber = {{ version = "0.3", features = ["env-filter"] }}
"""


class StandIn(http.server.BaseHTTPRequestHandler):
    """A token endpoint that issues a token for every grant, and an API that takes every token."""

    protocol_version = "HTTP/1.1"
    seen = []

    def route(self, body):
        """Status, headers and content of the response."""
        base, token = f"http://{self.headers['host']}", self.headers.get("authorization") or ""
        if self.path.startswith("/.well-known/"):
            return 200, {}, {"token_endpoint": f"{base}/oauth/token", "revocation_endpoint": f"{base}/oauth/revoke"}
        if self.path in ("/oauth/token", "/token") and b"grant_type=" in body:
            return 200, {}, {"access_token": "issued", "token_type": "Bearer", "expires_in": 3600}
        if self.path == "/oauth/access_token" and b"grant_type=" in body:
            # As Seqera does.
            return 200, {"set-cookie": "JWT=issued; Path=/"}, {}
        if self.path == "/oauth/revoke":
            return 200, {}, {}
        if not token.startswith("Bearer ") or token == "Bearer expired":
            return 401, {"www-authenticate": 'Bearer error="invalid_token"'}, {}
        if self.path.endswith("/access_tokens"):
            # As GitHub does.
            return 201, {}, {"token": "issued", "expires_at": "2100-01-01T00:00:00Z"}
        if self.path.startswith("/execution"):
            # As Airflow does.
            wanted = {"/execution/task-instances/7/run": ("PATCH", 200), "/execution/task-instances/7/heartbeat": ("PUT", 204)}
            method, fine = wanted.get(self.path, (None, 404))
            right = self.headers.get("content-type") == "application/json" and b"pid" in body
            return 404 if not method else 405 if self.command != method else fine if right else 422, {"refreshed-api-token": "next"}, None
        return 200, {}, {}

    def reply(self):
        status, headers, answer = self.route(self.rfile.read(int(self.headers.get("content-length") or 0)))
        self.seen.append((self.path, status))
        answer = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {**headers, "content-type": "application/json"}.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_PATCH = reply

    def log_message(self, *_):
        pass


def programs():
    """Name, fence, text and expected output of each program."""
    for page in PAGES:
        number = 0
        for fence, text, output in BLOCK.findall(page.read_text()):
            if "fn main" not in text:
                continue
            number += 1
            name = f"{page.stem.lower()}_{number}" if page.parent.name == "guide" else f"front_{number}"
            if not sys.argv[1:] or name.startswith(tuple(sys.argv[1:])):
                yield name, fence, text, output


def loose_excerpts():
    """Excerpts that are no longer in examples/clients."""
    sources = [re.sub(r"\s+", "", path.read_text()) for path in (ROOT / "examples/clients").rglob("*.rs") if "target" not in path.parts]
    for page in PAGES:
        for fence, text, _ in BLOCK.findall(page.read_text()):
            if "ignore" in fence and "fn main" not in text and not any(re.sub(r"\s+", "", text) in source for source in sources):
                yield f"{page.name}: this excerpt is not in examples/clients:\n{text}"


def write(chosen, base, redis):
    """The package, with each program as it stands, and once more with the addresses of what stands in for its servers."""
    examples = PACKAGE / "examples"
    examples.mkdir(parents=True, exist_ok=True)
    for old in examples.glob("*.rs"):
        old.unlink()
    (PACKAGE / "src").mkdir(exist_ok=True)
    (PACKAGE / "src/lib.rs").write_text("")
    (PACKAGE / "Cargo.toml").write_text(MANIFEST.format(root=ROOT))
    (PACKAGE / "Cargo.lock").write_bytes((ROOT / "Cargo.lock").read_bytes())
    to_run = {}
    for name, fence, text, output in chosen:
        (examples / f"{name}.rs").write_text(text)
        if "no_run" not in fence and "ignore" not in fence:
            to_run[name] = output
        elif not any(word in text for word in COMPILED_ONLY) and (redis or REDIS not in text):
            local = HOSTS.sub(base, text).replace("/var/run/secrets/tokens/", "token-").replace(REDIS, redis)
            # The heartbeat of a job that is over at once may not have sent anything.
            local = local.replace("async fn work() {}", "async fn work() { tokio::time::sleep(Duration::from_secs(1)).await }")
            (examples / f"{name}_run.rs").write_text(local)
            to_run[f"{name}_run"] = ""
    return to_run


@contextlib.contextmanager
def redis_server():
    """The URL of a Redis server, or an empty string where there is none."""
    if not shutil.which("redis-server"):
        yield ""
        return
    # One port, as below.
    command = ["redis-server", "--port", "48438", "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield "redis://127.0.0.1:48438"
    finally:
        server.terminate()
        server.wait()


def prepare(folder, base):
    """Files and variables that the programs read."""
    for name, algorithm, option in (("service", "EC", "ec_paramgen_curve:P-256"), ("app", "RSA", "rsa_keygen_bits:2048")):
        key = folder / f"{name}.pem"
        subprocess.run(["openssl", "genpkey", "-quiet", "-algorithm", algorithm, "-pkeyopt", option, "-out", key], check=True)
    for name in ("report.pdf", "token-exchange", "token-api"):
        (folder / name).write_text("eyJhbGciOiJub25lIn0.e30.")
    (folder / "token-api").write_text("projected")
    return {
        **os.environ,
        **{"REFRESH_TOKEN": "refresh-token", "CLIENT_SECRET": "secret", "GITHUB_APP_ID": "1", "GITHUB_INSTALLATION_ID": "2"},
        **{"TOWER_ACCESS_TOKEN": "expired", "TOWER_REFRESH_TOKEN": "refresh-token", "HOSTNAME": "here"},
        **{"LOGIN_KEY": "0123456789abcdef" * 4},
        **{"EXECUTION_API": f"{base}/execution/", "TASK_INSTANCE_ID": "7", "TOKEN": "first"},
        **{"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
    }


def run(chosen, base, redis):
    """What went wrong, and the programs that were run."""
    to_run = write(chosen, base, redis)
    environment = {**os.environ, "CARGO_TARGET_DIR": str(TARGET), "RUSTFLAGS": os.environ.get("RUSTFLAGS", "")}
    subprocess.run(["cargo", "build", "--quiet", "--examples"], cwd=PACKAGE, env=environment, check=True)
    faults = list(loose_excerpts())
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        variables = prepare(folder, base)
        for name, expected in to_run.items():
            StandIn.seen.clear()
            try:
                ran = subprocess.run([TARGET / "debug/examples" / name], cwd=folder, env=variables, capture_output=True, text=True, timeout=60)
            except subprocess.TimeoutExpired:
                faults.append(f"{name}: still runs after 60 s")
                continue
            if ran.returncode != 0:
                faults.append(f"{name}: {ran.stderr.strip() or ran.stdout.strip()}")
            elif expected and ran.stdout != expected:
                faults.append(f"{name} prints:\n{ran.stdout}and not:\n{expected}")
            elif StandIn.seen and not any(status < 300 and "/oauth/" not in path for path, status in StandIn.seen):
                faults.append(f"{name}: no request that the API accepted: {StandIn.seen}")
    return faults, to_run


def main():
    # One port, so that a second run compiles nothing; another one if it is taken.
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 48437), StandIn)
    except OSError:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    # A program that ends drops its connections.
    server.handle_error = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    chosen = list(programs())
    with redis_server() as redis:
        faults, to_run = run(chosen, f"http://127.0.0.1:{server.server_port}", redis)
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"{len(chosen)} programs compiled, {len(to_run)} run, {len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
