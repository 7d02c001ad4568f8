#!/usr/bin/env bash
# Checks the metrics with a real Prometheus: scrapes examples/observe, queries each of its metrics, and evaluates each alert rule of
# docs/alerts.yml and each query of docs/dashboard.json. Needs Debian's package `prometheus`, which is installed if the script runs as root.
set -euo pipefail
cd "$(dirname "$0")/.."

have() { command -v "$1" >/dev/null 2>&1; }

if ! have prometheus || ! have promtool || ! have curl; then
  export DEBIAN_FRONTEND=noninteractive
  # Keeps the package from starting the server.
  policy=/usr/sbin/policy-rc.d
  [ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod +x "$policy"; made_policy=yes; }
  apt-get update -qq
  apt-get install -qq -y --no-install-recommends prometheus curl
  [ -z "${made_policy:-}" ] || rm -f "$policy"
fi

cargo build --quiet --locked --example observe
observe=$(cargo metadata --no-deps --format-version 1 | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug/examples/observe

work=$(mktemp -d)
pids=()
stop() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}
trap stop EXIT

promtool check rules docs/alerts.yml

"$observe" --port 0 --seconds 300 >"$work/observe" &
pids+=($!)
for _ in $(seq 100); do
  target=$(sed -n 's|^metrics: *http://\([^/]*\)/metrics$|\1|p' "$work/observe")
  [ -n "$target" ] && break
  sleep 0.1
done
[ -n "$target" ] || { echo "examples/observe did not start" >&2; exit 1; }

# The same rules without their waiting time and without dead series.
sed '/^ *for: /d' docs/alerts.yml >"$work/alerts.yml"
cat >"$work/prometheus.yml" <<YML
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [$work/alerts.yml]
scrape_configs: [{job_name: observe, static_configs: [{targets: ["$target"]}]}]
YML
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/data" --web.listen-address="127.0.0.1:$port" \
  >"$work/prometheus.log" 2>&1 &
pids+=($!)

python3 - "$port" docs/dashboard.json <<'PY'
import json, sys, time, urllib.parse, urllib.request

port, dashboard = sys.argv[1:]

def api(path, **query):
    url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)["data"]

def query(text):
    return api("query", query=text)["result"]

# The metrics of examples/observe.
METRICS = {
    "reauth_flights", "reauth_flight_duration_bucket", "reauth_flight_retries", "reauth_wait_duration_bucket",
    "reauth_requests_failed", "reauth_session_state", "reauth_heartbeat_beats", "reauth_heartbeat_beat_duration_bucket",
    "reauth_heartbeat_ended", "reauth_store_failures",
}
FIRING = {
    ("ReauthLoginRequired", "revoked"), ("ReauthRefreshFailing", "outage"), ("ReauthRequestsFailing", "outage"),
    ("ReauthRequestsFailing", "revoked"), ("ReauthHeartbeatFailing", "outage"),
    ("ReauthHeartbeatLost", "revoked"), ("ReauthStoreFailing", "revoked"),
}

deadline = time.monotonic() + 120
missing = why = None
while time.monotonic() < deadline:
    try:
        missing = {name for name in METRICS if not query(name + '{reauth_session!=""}')}
        firing = {(found["metric"]["alertname"], found["metric"].get("reauth_session"))
                  for found in query('ALERTS{alertstate="firing"}')}
        if not missing and FIRING <= firing:
            break
        why = f"metrics missing: {sorted(missing)}; alerts not firing: {sorted(FIRING - firing)}"
    except OSError as error:
        why = error
    time.sleep(1)
else:
    sys.exit(f"after two minutes: {why}")

unexpected = {alert for alert in firing if alert[1] == "healthy"}
assert not unexpected, f"alerts for a healthy session: {unexpected}"
rules = [rule for group in api("rules")["groups"] for rule in group["rules"]]
bad = [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"]
assert not bad, f"rules that cannot be evaluated: {bad}"

queries = [target["expr"] for panel in json.load(open(dashboard))["panels"] for target in panel.get("targets", [])]
for text in queries:
    query(text.replace("$__rate_interval", "1m").replace("$session", ".*"))
print(f"{len(METRICS)} metrics, {len(rules)} alert rules ({len(FIRING)} alerts fire as expected, none for the healthy session), "
      f"{len(queries)} queries of the dashboard")
PY
