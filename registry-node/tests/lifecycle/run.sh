#!/usr/bin/env bash
# The life of an instance as programs meet it that share no code with this project: a Python gRPC client made from
# the .proto files (the registry's API, and the original's in both spellings of its proto), and curl for REST.
#
#   tests/lifecycle/run.sh PATH/TO/cluster
#
# Starts a system of its own on free ports, ends it, fails when a tool is missing. Installs the client from PyPI into a
# directory outside the checkout, once. Takes about 40 s: the original's leases live 30 s, and are seen to end.
set -euo pipefail
cluster=${1:?usage: $0 PATH/TO/cluster}
here=$(cd "$(dirname "$0")" && pwd)
protos=$(cd "$here/../../../proto/proto" && pwd)

for tool in python3 curl timeout sha256sum; do
  command -v "$tool" >/dev/null || { echo "lifecycle: $tool is missing" >&2; exit 1; }
done
[[ -x $cluster ]] || { echo "lifecycle: $cluster is no program: cargo build --release -p cluster" >&2; exit 1; }

# One environment per set of pinned versions; made under another name first, so that a broken one is never used.
pinned=$(cat "$here/requirements.txt" <(python3 --version) | sha256sum | cut -c1-16)
venv=${XDG_CACHE_HOME:-$HOME/.cache}/flux-lifecycle-$pinned
if [[ ! -x $venv/bin/python ]]; then
  making=$venv.$$
  python3 -m venv "$making"
  timeout 300 "$making/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  # A venv's scripts name their directory; only its interpreter is used, which does not.
  mv -T "$making" "$venv" 2>/dev/null || rm -rf "$making"
fi
python=$venv/bin/python

work=$(mktemp -d)
system=$work/system
finish() {
  "$cluster" --dir "$system" down >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap finish EXIT

# Three sets of stubs, each in a process of its own, as three programs would have them.
stubs() { mkdir -p "$work/$1" && "$python" -m grpc_tools.protoc -I "$2" --python_out="$work/$1" --grpc_python_out="$work/$1" "$3"; }
stubs new "$protos" registry/v1/registry.proto
stubs services "$protos" service_registry.proto
mkdir "$work/spelled"
sed 's/repeated GrpcServiceInstance services = 1;/repeated GrpcServiceInstance instances = 1;/' \
  "$protos/service_registry.proto" >"$work/spelled/service_registry.proto"
grep -q 'GrpcServiceInstance instances = 1;' "$work/spelled/service_registry.proto"
stubs instances "$work/spelled" service_registry.proto

timeout 60 "$cluster" --dir "$system" up --detach --free-ports --balancers 1 --backends 1 >"$work/up.log" 2>&1 \
  || { cat "$work/up.log" >&2; exit 1; }
"$cluster" --dir "$system" status -o json >"$work/status.json"
nodes() { python3 -c 'import json, sys; print(",".join(n[sys.argv[2]] for n in json.load(open(sys.argv[1]))["nodes"]))' "$work/status.json" "$1"; }
rest=$(nodes rest) grpc=$(nodes grpc)

# Side by side: they use ids of their own.
declare -A running
start() { local name=$1; shift; timeout 180 "$@" >"$work/$name.log" 2>&1 & running[$name]=$!; }
start new "$python" "$here/lifecycle.py" new "$work/new" "$grpc"
start services "$python" "$here/lifecycle.py" legacy "$work/services" "$grpc" services
start instances "$python" "$here/lifecycle.py" legacy "$work/instances" "$grpc" instances
start rest "$here/rest.sh" "$rest"
failed=0
for name in "${!running[@]}"; do
  if wait "${running[$name]}"; then
    echo "lifecycle: $name ok: $(tail -n 1 "$work/$name.log")"
  else
    failed=1
    echo "lifecycle: $name FAILED" >&2
    cat "$work/$name.log" >&2
  fi
done
exit "$failed"
