#!/usr/bin/env bash
# The life of an instance by curl: the registry's REST API and the original's, through every node. Every answer is
# checked exactly. `rest.sh URL,URL,...`; the last line says how many checks were made.
set -euo pipefail
IFS=, read -ra nodes <<<"$1"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
checks=0

fail() { echo "FAILED: $*" >&2; head -c 2000 "$work/body" >&2; exit 1; }

# status CODE CURL_ARGUMENTS...: the answer's code; its body is left in $work/body.
status() {
  local want=$1 got
  shift
  got=$(curl -sS --max-time 10 -o "$work/body" -D "$work/head" -w '%{http_code}' "$@") || fail "curl $*"
  [[ $got == "$want" ]] || fail "$got instead of $want: curl $*"
  checks=$((checks + 1))
}

# json EXPRESSION: a Python expression that must hold of the body, `b`.
json() {
  python3 - "$work/body" "$1" <<'PY' || fail "not so: $1"
import json, sys
b = json.load(open(sys.argv[1]))
sys.exit(0 if eval(sys.argv[2]) else 1)
PY
  checks=$((checks + 1))
}

# body TEXT: the body, exactly.
body() { [[ $(cat "$work/body") == "$1" ]] || fail "the body is not $1"; checks=$((checks + 1)); }

one=${nodes[0]}
odd=curl%2Fa%3Fb%23c%25d # curl/a?b#c%d

# ---- the registry's own API ----
status 201 -X PUT "$one/v1/instances/$odd?by=me&why=began" -d '{"service":"curl","url":"http://127.0.0.1:1","ttlMs":3600000}'
json 'b["instance"]["id"] == "curl/a?b#c%d" and b["instance"]["changed"]["why"] == "began" and b["instance"]["changed"]["by"] == "me"'
rev=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["instance"]["regRev"])' "$work/body")
json "b['instance']['modRev'] == '$rev' == b['header']['revision']"
for node in "${nodes[@]}"; do
  status 200 "$node/v1/instances/$odd"
  json "b['instance']['regRev'] == '$rev'"
  status 200 "$node/v1/services/curl"
  json 'len(b["instances"]) == 1'
  status 200 "$node/v1/services/curl?consistency=stale&min_revision=$rev"
  json 'len(b["instances"]) == 1'
  status 200 -X POST "$node/v1/instances/$odd/heartbeat?reg_rev=$rev"
  json 'b["results"] == ["RENEWED"]'
  status 404 -X POST "$node/v1/instances/nobody/heartbeat"
  json 'b["code"] == "LEASE_LOST" and b["had_no_effect"]'
  status 200 "$node/v1/status"
  json 'b["ready"] and b["node"]["id"] == b["header"]["nodeId"]'
  status 200 "$node/v1/members"
  json 'len(b["members"]) == 3'
  status 200 "$node/readyz"
done
status 200 "$one/v1/services"
json '[(s["instances"], s["up"]) for s in b["services"] if s["name"] == "curl"] == [(1, 1)]'
status 200 -X PUT "$one/v1/instances/$odd/status" -d '{"status":"DRAINING","why":"deploy"}'
json "b['instance']['status'] == 'DRAINING' and b['instance']['regRev'] == '$rev'"
status 200 "$one/v1/watch?service=curl&cluster_id=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["header"]["clusterId"])' "$work/body")&since=$rev&wait=5s"
json 'b["updates"][0]["events"]["events"][0]["instance"]["status"] == "DRAINING"'
status 200 "$one/v1/watch?service=curl&wait=5s"
json 'len(b["updates"][0]["reset"]["instances"]) == 1'
# Server-sent events go on until the client has enough; curl then says 28.
curl -sSN --max-time 2 -H 'Accept: text/event-stream' "$one/v1/watch?service=curl" >"$work/body" || [[ $? == 28 ]] || fail "events"
grep -q '^data: .*"reset"' "$work/body" && grep -q '^id: ' "$work/body" || fail "no events"
status 412 -X PUT "$one/v1/instances/$odd?expected_revision=0" -d '{"service":"curl","url":"http://127.0.0.1:1"}'
json 'b["code"] == "PRECONDITION" and not b["retryable"]'
status 400 -X PUT "$one/v1/instances/x" -d '{"service":"curl"}'
json 'b["code"] == "INVALID" and "url" in b["detail"]'
status 400 -X PUT "$one/v1/instances/x" -d '{'
json 'b["code"] == "MALFORMED"'
status 409 -X DELETE "$one/v1/instances/$odd?reg_rev=$((rev + 1))"
json 'b["code"] == "SUPERSEDED"'
status 200 -X DELETE "$one/v1/instances/$odd?reg_rev=$rev"
json 'b["found"]'
status 200 -X DELETE "$one/v1/instances/$odd"
json 'not b.get("found", False)'
status 404 "$one/v1/instances/$odd"
json 'b["code"] == "NOT_FOUND"'
status 201 -X PUT "$one/v1/instances/curl-short" -d '{"service":"curl","url":"http://127.0.0.1:1","ttlMs":3000}'
deadline=$((SECONDS + 30))
until [[ $(curl -sS --max-time 10 -o /dev/null -w '%{http_code}' "${nodes[1]}/v1/instances/curl-short") == 404 ]]; do
  ((SECONDS < deadline)) || fail "it never expires"
  sleep 0.1
done

# ---- the original's ----
instance() { printf '{"id":"%s","serviceName":"%s","host":"127.0.0.1","port":8082,"url":"http://127.0.0.1:8082","healthPath":"/health"}' "$1" "$2"; }
for node in "${nodes[@]}"; do
  base=$node/api/v1/services
  status 201 -X POST "$base/register" -H 'Content-Type: application/json' -d "$(instance curl-legacy curl-old)"
  json 'b["serviceName"] == "curl-old" and b["alive"] is True'
  status 400 -X POST "$base/register" -d '{"serviceName":"s","url":"http://x","healthPath":"/h"}'
  json '"id" in b["detail"]'
  status 200 -X POST "$base/heartbeat/curl-legacy"
  body ''
  status 404 -X POST "$base/heartbeat/nobody"
  status 200 "$base"
  json 'isinstance(b, list) and [sorted(i) for i in b if i["id"] == "curl-legacy"] == [sorted("id serviceName host port url healthPath lastHeartbeat alive".split())]'
  status 200 "$base/curl-old/healthy"
  json '[i["id"] for i in b] == ["curl-legacy"]'
  status 200 "$base/no-such-service/healthy"
  body '[]'
  status 204 -X DELETE "$base/deregister/curl-legacy"
  status 204 -X DELETE "$base/deregister/curl-legacy"
  for path in actuator/health actuator/info actuator/prometheus metrics; do status 200 "$node/$path"; done
  status 404 -X POST "$node/actuator/shutdown"
done
echo "$checks checks"
