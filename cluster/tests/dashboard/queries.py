"""Starts a system and a Prometheus, lets requests flow, and asks every query of the dashboard.

    queries.py PATH/TO/cluster DEPLOY_DIRECTORY WORK_DIRECTORY

Run by run.sh in network and process namespaces of its own. Uses the standard library alone.
"""

import fcntl
import http.client
import json
import math
import pathlib
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse

# One scrape a second and queries over a few of them: what takes minutes in operation takes seconds here.
SCRAPE, WINDOW = "1s", "15s"
PATIENCE_S = 120
PROMETHEUS = ("127.0.0.1", 9990)


def loopback_up():
    """A new network namespace has a loopback that is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        up = struct.pack("16sh14x", b"lo", 1)  # SIOCSIFFLAGS, IFF_UP
        fcntl.ioctl(s, 0x8914, up)


def get(address, path, method="GET", timeout=5):
    connection = http.client.HTTPConnection(*address, timeout=timeout)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def eventually(what, holds):
    end = time.monotonic() + PATIENCE_S
    while True:
        last = holds()
        if last is True:
            return
        if time.monotonic() > end:
            sys.exit(f"dashboard: not within {PATIENCE_S} s: {what}: {last}")
        time.sleep(0.5)


def expressions(node):
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield node["expr"]
        for value in node.values():
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def ask(expression):
    """The values that a query has now."""
    query = urllib.parse.urlencode({"query": expression.replace("$__rate_interval", WINDOW)})
    status, body = get(PROMETHEUS, f"/api/v1/query?{query}")
    answer = json.loads(body)
    if status != 200:
        sys.exit(f"dashboard: {expression}: {answer.get('error', body)}")
    result = answer["data"]["result"]
    values = [result] if answer["data"]["resultType"] == "scalar" else [series["value"] for series in result]
    return [float(value) for _, value in values]


def main(cluster, deploy, work):
    deploy, work = pathlib.Path(deploy), pathlib.Path(work)
    loopback_up()
    system = work / "system"
    run = lambda *args: subprocess.run([cluster, "--dir", system, *args], check=True, capture_output=True, timeout=60)
    subprocess.run([cluster, "--dir", system, "up", "--detach", "--strict-ports"], check=True, timeout=90)
    try:
        watch(run, deploy, work)
    finally:
        run("down")


def watch(run, deploy, work):
    status = json.loads(run("status", "-o", "json").stdout)
    balancers = [urllib.parse.urlparse(b["http"]) for b in status["balancers"]]
    balancers = [(url.hostname, url.port) for url in balancers]
    config = (deploy / "prometheus" / "prometheus.yml").read_text().replace("scrape_interval: 5s", f"scrape_interval: {SCRAPE}")
    assert SCRAPE in config, "the Prometheus file has another scrape interval than this script knows"
    (work / "prometheus.yml").write_text(config)
    prometheus = subprocess.Popen(
        ["prometheus", f"--config.file={work}/prometheus.yml", f"--storage.tsdb.path={work}/tsdb",
         f"--web.listen-address={PROMETHEUS[0]}:{PROMETHEUS[1]}", "--log.level=warn"])
    over = threading.Event()

    def load():
        """A few requests a second, now and then one that is no HTTP."""
        n = 0
        while not over.wait(0.05):
            n += 1
            for address in balancers:
                try:
                    get(address, f"/page/{n % 7}", "POST" if n % 5 == 0 else "GET")
                except OSError:
                    pass

    threading.Thread(target=load, daemon=True).start()
    try:
        eventually("Prometheus is ready", lambda: ready())
        eventually("every target is up", targets_up)
        # Failures, so that there is something to see: backends die and come back.
        backends = [b["name"] for b in status["backends"]]
        run("kill", *backends)
        eventually("requests failed", lambda: bool(ask('loadbalancer_total_requests{status=~"5.."}')) or "none yet")
        run("start", *backends)
        wanted = sorted(set(expressions(json.loads((deploy / "grafana" / "dashboards" / "flux.json").read_text()))))
        assert len(wanted) > 40, f"the dashboard has hardly any queries: {wanted}"
        missing = set(wanted)

        def all_answered():
            # A quantile of nothing is not a number.
            answered = {e for e in missing if any(not math.isnan(v) for v in ask(e))}
            missing.difference_update(answered)
            return True if not missing else "\n  ".join(["no data for", *sorted(missing)])

        eventually("every query returns data", all_answered)
        print(f"dashboard: {len(wanted)} queries return data")
    finally:
        over.set()
        prometheus.terminate()
        prometheus.wait(30)


def ready():
    try:
        status, _ = get(PROMETHEUS, "/-/ready")
        return status == 200 or status
    except OSError as error:
        return str(error)


def targets_up():
    _, body = get(PROMETHEUS, "/api/v1/targets?state=active")
    targets = json.loads(body)["data"]["activeTargets"]
    down = [f"{t['scrapeUrl']}: {t['lastError'] or t['health']}" for t in targets if t["health"] != "up"]
    return True if targets and not down else "; ".join(down)


if __name__ == "__main__":
    main(*sys.argv[1:])
