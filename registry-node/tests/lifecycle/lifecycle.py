"""The life of an instance over gRPC, by stubs that protoc makes for Python.

    lifecycle.py new    STUBS GRPC_URL,...           the registry's own API
    lifecycle.py legacy STUBS GRPC_URL,... SPELLING  the original's; SPELLING names the list in its copy of the proto

Waits for conditions with deadlines; the last line says how many checks were made.
"""

import queue
import sys
import threading
import time

import grpc

PATIENCE_S = 30
CALL_S = 10
checks = 0


def check(holds, *what):
    global checks
    checks += 1
    assert holds, what


def refused(call, code, said):
    """The call must be refused with this code, by a message that says why."""
    try:
        answer = call()
    except grpc.RpcError as error:
        check(error.code() == code, error.code(), code, error.details())
        check(said in error.details(), said, error.details())
    else:
        raise AssertionError(("not refused", answer))


def until(what, condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)
    check(True)


def channels(urls):
    return [grpc.insecure_channel(url.removeprefix("http://")) for url in urls.split(",")]


class Watch:
    """Follows a service from nothing; keeps what it hears, and checks that revisions never go back."""

    def __init__(self, pb, stub, service):
        self.pb, self.heard, self.stop = pb, queue.Queue(), threading.Event()

        def requests():
            yield pb.WatchRequest(open=pb.WatchOpen(service=service, watcher="lifecycle"))
            self.stop.wait()

        self.stream = stub.Watch(requests())
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        revision = 0
        try:
            for message in self.stream:
                assert message.header.revision >= revision, (message, revision)
                revision = message.header.revision
                if message.WhichOneof("kind") == "reset":
                    self.heard.put(("reset", revision, [i.id for i in message.reset.instances]))
                for event in message.events.events:
                    kind = self.pb.Event.Kind.Name(event.kind)
                    self.heard.put((kind, event.revision, event.instance.id))
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.CANCELLED:
                self.heard.put(("error", error.code(), error.details()))
        except AssertionError as error:
            self.heard.put(("error", "order", error.args))

    def next(self, within_s=PATIENCE_S):
        return self.heard.get(timeout=within_s)

    def close(self):
        self.stop.set()
        self.stream.cancel()


def new(urls):
    from registry.v1 import registry_pb2 as pb, registry_pb2_grpc as rpc

    nodes = [rpc.RegistryStub(channel) for channel in channels(urls)]
    admins = [rpc.AdminStub(channel) for channel in channels(urls)]
    one = nodes[0]
    for admin in admins:
        status = admin.Status(pb.StatusRequest(), timeout=CALL_S)
        check(status.ready and status.node.id == status.header.node_id, status)
        members = admin.Members(pb.MembersRequest(), timeout=CALL_S).members
        check([m.id for m in members] == [1, 2, 3], members)

    watch = Watch(pb, nodes[-1], "py")
    kind, _, there = watch.next()
    check((kind, there) == ("reset", []), kind, there)

    odd = "py/a?b#c%d e"
    instance = pb.Instance(id=odd, service="py", url="http://127.0.0.1:1", ttl_ms=3_600_000, tags=["t"], metadata={"k": "v"})
    answer = one.Register(pb.RegisterRequest(instance=instance, by="lifecycle", why="began"), timeout=CALL_S)
    first = answer.instance
    check(first.reg_rev == answer.header.revision > 0, answer)
    check(first.changed.by == "lifecycle" and first.changed.why == "began", first)
    check(first.weight == 100 and first.status == pb.Instance.UP, first)
    check(watch.next() == ("PUT", first.reg_rev, odd))

    for node in nodes:
        listed = node.List(pb.ListRequest(service="py"), timeout=CALL_S)
        check([i.id for i in listed.instances] == [odd], listed)
        check(listed.instances[0] == first, listed)
        got = node.Get(pb.GetRequest(id=odd), timeout=CALL_S)
        check(got.instance == first, got)
        beats = [pb.Beat(id=odd, reg_rev=first.reg_rev), pb.Beat(id=odd, reg_rev=first.reg_rev + 1), pb.Beat(id="py/none")]
        results = node.Heartbeat(pb.HeartbeatRequest(beats=beats), timeout=CALL_S).results
        check(list(results) == [pb.RENEWED, pb.LEASE_LOST, pb.LEASE_LOST], results)
        services = node.ListServices(pb.ListServicesRequest(), timeout=CALL_S).services
        check([(s.instances, s.up) for s in services if s.name == "py"] == [(1, 1)], services)

    marked = one.SetStatus(pb.SetStatusRequest(id=odd, status=pb.Instance.DRAINING, why="deploy"), timeout=CALL_S).instance
    check(marked.status == pb.Instance.DRAINING and marked.reg_rev == first.reg_rev and marked.mod_rev > first.mod_rev, marked)
    check(watch.next() == ("PUT", marked.mod_rev, odd))

    conditional = pb.RegisterRequest(instance=instance, expected_revision=0)
    refused(lambda: one.Register(conditional, timeout=CALL_S), grpc.StatusCode.ABORTED, "precondition")
    bad = pb.RegisterRequest(instance=pb.Instance(id="py/x", service="py"))
    refused(lambda: one.Register(bad, timeout=CALL_S), grpc.StatusCode.INVALID_ARGUMENT, "url")
    stale = pb.DeregisterRequest(id=odd, reg_rev=first.reg_rev + 1)
    refused(lambda: one.Deregister(stale, timeout=CALL_S), grpc.StatusCode.FAILED_PRECONDITION, "registered again")
    gone = one.Deregister(pb.DeregisterRequest(id=odd, reg_rev=first.reg_rev), timeout=CALL_S)
    check(gone.found, gone)
    check(watch.next() == ("DELETE", gone.header.revision, odd))
    check(not one.Deregister(pb.DeregisterRequest(id=odd), timeout=CALL_S).found)
    refused(lambda: nodes[1].Get(pb.GetRequest(id=odd), timeout=CALL_S), grpc.StatusCode.NOT_FOUND, "not registered")

    # A repeated request takes effect once.
    once = pb.RegisterRequest(
        instance=pb.Instance(id="py/short", service="py", url="http://127.0.0.1:1", ttl_ms=3_000), client="lifecycle", seq=1
    )
    begun = time.monotonic()
    short = one.Register(once, timeout=CALL_S).instance
    again = nodes[1].Register(once, timeout=CALL_S).instance
    check(again.reg_rev == short.reg_rev, short, again)
    check(watch.next() == ("PUT", short.reg_rev, "py/short"))
    # Nobody renews it: it expires, and not before its time.
    kind, revision, who = watch.next()
    check((kind, who) == ("EXPIRE", "py/short") and revision > short.reg_rev, kind, who)
    check(time.monotonic() - begun >= 3.0, "expired before its time")
    for node in nodes:
        check(not node.List(pb.ListRequest(service="py"), timeout=CALL_S).instances)
    watch.close()


def legacy(urls, spelling):
    import service_registry_pb2 as pb
    import service_registry_pb2_grpc as rpc

    nodes = [rpc.ServiceRegistryStub(channel) for channel in channels(urls)]
    one, name = nodes[0], f"legacy-{spelling}"

    def listed(node, service):
        answer = node.GetHealthyServices(pb.GetHealthyServicesRequest(instanceName=service), timeout=CALL_S)
        return {instance.id: instance for instance in getattr(answer, spelling)}

    def instance(suffix, **more):
        fields = dict(serviceName=name, host="127.0.0.1", port=8082, url="http://127.0.0.1:8082", healthPath="/health")
        return pb.GrpcServiceInstance(id=f"{name}-{suffix}", **(fields | more))

    begun = time.monotonic()
    for which in [instance("dies"), instance("lives"), instance("other", serviceName=f"{name}-2"), instance("hostless", host="")]:
        answer = one.RegisterService(pb.RegisterServiceRequest(instance=which), timeout=CALL_S)
        check(answer.success and answer.message == "Service registered successfully", answer)
    refused(
        lambda: one.RegisterService(pb.RegisterServiceRequest(instance=instance("bad", url="")), timeout=CALL_S),
        grpc.StatusCode.INVALID_ARGUMENT,
        "url",
    )

    for node in nodes:
        check(set(listed(node, name)) == {f"{name}-{s}" for s in ["dies", "lives", "hostless"]})
        check(listed(node, name)[f"{name}-lives"] == instance("lives"))
        check({f"{name}-lives", f"{name}-other"} <= set(listed(node, "")))
        beat = node.SendHeartbeat(pb.SendHeartbeatRequest(instanceId=f"{name}-lives"), timeout=CALL_S)
        check(beat.success and beat.message == "Heartbeat received.", beat)
        check(not node.SendHeartbeat(pb.SendHeartbeatRequest(instanceId="legacy-nobody"), timeout=CALL_S).success)
    for suffix in ["other", "hostless", "hostless"]:
        answer = nodes[1].DeregisterService(pb.DeregisterServiceRequest(instanceId=f"{name}-{suffix}"), timeout=CALL_S)
        check(answer.success and answer.message == "Service deregistered successfully", answer)
    check(set(listed(one, name)) == {f"{name}-dies", f"{name}-lives"})

    # Who sends heartbeats lives, who does not is gone, and not before the 30 s that the original's clients count on.
    def only_one_is_left():
        check(one.SendHeartbeat(pb.SendHeartbeatRequest(instanceId=f"{name}-lives"), timeout=CALL_S).success)
        return set(listed(nodes[-1], name)) == {f"{name}-lives"}

    deadline = time.monotonic() + 30 + PATIENCE_S
    while not only_one_is_left():
        assert time.monotonic() < deadline, "it never expires"
        time.sleep(0.5)
    check(time.monotonic() - begun >= 30.0, "expired before its time")
    check(not one.SendHeartbeat(pb.SendHeartbeatRequest(instanceId=f"{name}-dies"), timeout=CALL_S).success)
    check(one.DeregisterService(pb.DeregisterServiceRequest(instanceId=f"{name}-lives"), timeout=CALL_S).success)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[2])
    new(sys.argv[3]) if sys.argv[1] == "new" else legacy(sys.argv[3], sys.argv[4])
    print(f"{checks} checks")
