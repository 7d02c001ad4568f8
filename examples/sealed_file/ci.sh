#!/usr/bin/env bash
# Runs the store against gnome-keyring, on a bus and in a home of its own. Installs what is missing (as root on Debian).
set -euo pipefail
cd "$(dirname "$0")"
if ! command -v gnome-keyring-daemon >/dev/null 2>&1 || ! command -v dbus-run-session >/dev/null 2>&1; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -qq -y --no-install-recommends gnome-keyring dbus-daemon
fi
cargo fmt --check
cargo clippy --quiet --locked --all-targets -- -D warnings
cargo build --quiet --locked
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
export XDG_DATA_HOME=$home/data XDG_RUNTIME_DIR=$home
# The daemon ends with its bus. It reads the password of the keyring from its input.
dbus-run-session -- bash -c '
  printf password | gnome-keyring-daemon --unlock --components=secrets --foreground >/dev/null 2>&1 &
  for _ in {1..100}; do
    dbus-send --session --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.NameHasOwner \
      string:org.freedesktop.secrets 2>/dev/null | grep -q "boolean true" && break
    sleep 0.1
  done
  cargo run --quiet --locked'
