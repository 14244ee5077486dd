#!/usr/bin/env bash
# A real Prometheus scrapes a whole system as deploy/ has it, and every query of the Grafana dashboard returns data.
#
#   cluster/tests/dashboard/run.sh PATH/TO/cluster
#
# Everything runs in a network namespace of its own, where the documented ports are free; that needs root. Installs
# Prometheus from the distribution if it is not there. Takes about half a minute.
set -euo pipefail
cluster=$(realpath "${1:?usage: $0 PATH/TO/cluster}")
here=$(cd "$(dirname "$0")" && pwd)

[[ -x $cluster ]] || { echo "dashboard: $cluster is no program: cargo build --release -p cluster" >&2; exit 1; }
command -v prometheus >/dev/null || {
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus
}
for tool in python3 unshare timeout prometheus; do
  command -v "$tool" >/dev/null || { echo "dashboard: $tool is missing" >&2; exit 1; }
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# What is started in the namespace ends with the script: its processes are in a namespace of their own, too.
timeout 300 unshare --net --pid --fork --kill-child --mount-proc \
  python3 "$here/queries.py" "$cluster" "$here/../../deploy" "$work"
