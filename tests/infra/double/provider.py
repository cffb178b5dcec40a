"""A double of the AWS provider, as the engine starts it: a gRPC server that prints its port.

``CELLWALL_DOUBLE_ACCOUNT`` is the folder of its `Account`.
"""

import os
import sys
import threading
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import empty_pb2, json_format, struct_pb2
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc
from pulumi.runtime.rpc import UNKNOWN

from tests.infra.double.account import IMMUTABLE, TAGGED, Account, RefusedError, computed
from tests.infra.double.rules import names
from tests.infra.double.typed import arguments, faults

VERSION = "7.51.1"
REQUIRED_TAGS = ("Name", "cellwall:environment", "cellwall:part")


def plain(message: struct_pb2.Struct) -> dict[str, Any]:
    """The properties of a message."""
    found: dict[str, Any] = json_format.MessageToDict(message)
    return found


def struct(values: dict[str, Any]) -> struct_pb2.Struct:
    """The inverse of `plain`."""
    return json_format.ParseDict(values, struct_pb2.Struct())


def kind_of(urn: str) -> tuple[str, str]:
    """Type without ``aws:``, and logical name."""
    _, _, kind, name = urn.removeprefix("urn:pulumi:").split("::")
    return kind.rpartition("$")[2].removeprefix("aws:"), name


class Double(provider_pb2_grpc.ResourceProviderServicer):
    """One call at a time: an account is a folder."""

    def __init__(self, account: Account) -> None:
        self._account, self._lock = account, threading.Lock()

    def GetPluginInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return plugin_pb2.PluginInfo(version=VERSION)

    def CheckConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        return provider_pb2.DiffResponse(changes=provider_pb2.DiffResponse.DIFF_NONE)

    def Configure(self, request: Any, context: Any) -> Any:  # noqa: N802
        return provider_pb2.ConfigureResponse(acceptSecrets=False, supportsPreview=True)

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        kind, name = kind_of(request.urn)
        inputs = plain(request.news)
        wrong = [*faults(f"aws:{kind}", inputs), *names(kind, name, inputs)]
        if TAGGED in _properties(kind):
            tags = inputs.get(TAGGED) or {}
            wrong += [f"tags: {tag} is missing" for tag in REQUIRED_TAGS if tag not in tags]
        return provider_pb2.CheckResponse(
            inputs=request.news, failures=[provider_pb2.CheckFailure(reason=f"{name}: {text}") for text in wrong]
        )

    def Diff(self, request: Any, context: Any) -> Any:  # noqa: N802
        kind, _ = kind_of(request.urn)
        old, new = plain(request.old_inputs), plain(request.news)
        ignored = set(request.ignoreChanges)
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and key not in ignored)
        replaces = [key for key in changed if key in IMMUTABLE.get(kind, set())]
        answer = provider_pb2.DiffResponse
        return answer(
            changes=answer.DIFF_SOME if changed else answer.DIFF_NONE,
            diffs=changed,
            replaces=replaces,
        )

    def Create(self, request: Any, context: Any) -> Any:  # noqa: N802
        kind, _ = kind_of(request.urn)
        inputs = plain(request.properties)
        if request.preview:
            later = dict.fromkeys(computed(kind, ""), UNKNOWN)
            return provider_pb2.CreateResponse(id="", properties=struct({**later, **inputs}))
        with self._lock:
            try:
                ident, outputs = self._account.create(request.urn, kind, inputs)
            except RefusedError as e:
                return self._refuse(context, str(e))
        return provider_pb2.CreateResponse(id=ident, properties=struct(outputs))

    def Read(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self._lock:
            outputs = self._account.read(request.id)
        if outputs is None:
            return provider_pb2.ReadResponse(id="")
        kind, _ = kind_of(request.urn)
        added = computed(kind, request.id)
        inputs = {key: value for key, value in outputs.items() if added.get(key) != value}
        return provider_pb2.ReadResponse(id=request.id, properties=struct(outputs), inputs=struct(inputs))

    def Update(self, request: Any, context: Any) -> Any:  # noqa: N802
        inputs = plain(request.news)
        if request.preview:
            return provider_pb2.UpdateResponse(properties=struct({**plain(request.olds), **inputs}))
        with self._lock:
            try:
                outputs = self._account.update(request.id, inputs)
            except RefusedError as e:
                return self._refuse(context, str(e))
        return provider_pb2.UpdateResponse(properties=struct(outputs))

    def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self._lock:
            try:
                self._account.delete(request.id)
            except RefusedError as e:
                return self._refuse(context, str(e))
        return empty_pb2.Empty()

    def Cancel(self, request: Any, context: Any) -> Any:  # noqa: N802
        return empty_pb2.Empty()

    def _refuse(self, context: Any, reason: str) -> Any:
        context.abort(grpc.StatusCode.UNKNOWN, reason)


def _properties(kind: str) -> set[str]:
    from pulumi import _types

    return set(_types.input_type_types(arguments(f"aws:{kind}")))


def main() -> None:
    """Serve until the engine ends this process."""
    account = Account(Path(os.environ["CELLWALL_DOUBLE_ACCOUNT"]))
    server = grpc.server(futures.ThreadPoolExecutor(16))
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(Double(account), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
