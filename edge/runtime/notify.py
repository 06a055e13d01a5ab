"""Act on a label: report it to an HTTP server, an MQTT broker or a command.

Rules are checked in the thread of the run loop, which takes microseconds. Messages go through a bounded queue to one
thread per target, so a slow or dead target never slows down the loop. A failed delivery is retried after a pause that
doubles; a full queue drops its oldest messages and counts them.

===================  ===================================================================================================
``http(s)://…``      ``POST`` with a JSON body; any 2xx answer is success, a redirect is not followed
``mqtt(s)://…``      published with QoS 1; the path of the URL is the topic
``exec:COMMAND``     run without a shell, JSON on its standard input; exit code 0 is success
===================  ===================================================================================================
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import shlex
import signal
import ssl
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any, Protocol, final
from urllib.parse import unquote, urlsplit

import msgspec

from edge import __version__
from edge.artifacts import FrameResult, Gap, NotifyCounts, Secret, Skip
from edge.config import NotifyRule, did_you_mean
from edge.errors import DeviceError, EdgeError, UsageError, require
from edge.runtime.classifier import UNKNOWN, seen_label

# Time limit of one request, command, or publication.
_TIMEOUT_S = 10.0
_MOST_WAITING = 64
_MOST_ATTEMPTS = 5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
# At the end of the run, queued messages are sent for at most this long.
_DRAIN_S = 2.0
_LONGEST_ANSWER = 64 << 10


class Target(Protocol):
    """A receiver of notifications, for use in one thread."""

    def send(self, message: bytes) -> None:
        """Deliver one JSON document.

        Raises:
            DeviceError: the delivery failed; its message is shown.
        """

    def close(self) -> None:
        """Release the target's resources."""


def open_target(address: Secret) -> Target:
    """Open the target for an address.

    Raises:
        UsageError: the address has an unknown form.
        MissingDependencyError: paho-mqtt is missing.
    """
    text = address.reveal()
    scheme = text.partition(":")[0].lower()
    if scheme in {"http", "https"} and "://" in text:
        return HttpTarget(address)
    if scheme in {"mqtt", "mqtts"} and "://" in text:
        return MqttTarget(address)
    if scheme == "exec":
        return CommandTarget(text.partition(":")[2])
    raise UsageError(
        f"'{address}' is not a valid notification target",
        hint="use http://…, https://…, mqtt://HOST/TOPIC or exec:COMMAND",
    )


@final
class HttpTarget:
    """POST to a URL."""

    def __init__(self, address: Secret) -> None:
        self._address = address
        try:
            parts = urlsplit(address.reveal())
            self._port = parts.port
        except ValueError as exc:
            raise UsageError(f"'{address}' is no URL") from exc
        if not parts.hostname:
            raise UsageError(f"'{address}' has no host")
        self._is_tls = parts.scheme.lower() == "https"
        self._host = parts.hostname
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"content-type": "application/json", "user-agent": f"edge/{__version__}"}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()

    def send(self, message: bytes) -> None:
        """Deliver one JSON document."""
        made: http.client.HTTPConnection
        if self._is_tls:
            made = http.client.HTTPSConnection(
                self._host, self._port, timeout=_TIMEOUT_S, context=ssl.create_default_context()
            )
        else:
            made = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        # A server that sends one byte now and then never exceeds the time-out of a single read.
        late = threading.Event()
        timer = threading.Timer(_TIMEOUT_S, _cut, args=(made, late))
        timer.daemon = True
        timer.start()
        try:
            made.request("POST", self._path, message, self._headers)
            answer = made.getresponse()
            status = answer.status
            if 200 <= status < 300 and not late.is_set():
                return
        except (OSError, http.client.HTTPException, ValueError) as exc:
            what = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
            raise DeviceError(self._address.scrub(what)) from exc
        finally:
            timer.cancel()
            made.close()
        if late.is_set():
            raise DeviceError(f"no complete answer within {_TIMEOUT_S:g} s")
        redirect = ", a redirect, which is not followed" if 300 <= status < 400 else ""
        raise DeviceError(f"the server answered with status {status}{redirect}")

    def close(self) -> None:
        """Do nothing: no resource is held between deliveries."""


def _cut(connection: http.client.HTTPConnection, late: threading.Event) -> None:
    late.set()
    if connection.sock is not None:
        with contextlib.suppress(OSError):
            connection.sock.shutdown(2)


@final
class MqttTarget:
    """Publishes notifications to an MQTT broker with paho-mqtt."""

    def __init__(self, address: Secret) -> None:
        self._mqtt: Any = require("paho.mqtt.client")
        self._enums: Any = require("paho.mqtt.enums")
        try:
            parts = urlsplit(address.reveal())
            port = parts.port
        except ValueError as exc:
            raise UsageError(f"'{address}' is no URL") from exc
        if not parts.hostname:
            raise UsageError(f"'{address}' has no host")
        self._address = address
        self._host, self._is_tls = parts.hostname, parts.scheme.lower() == "mqtts"
        self._port = port or (8883 if self._is_tls else 1883)
        self._user, self._password = parts.username, parts.password
        self._topic = unquote(parts.path.strip("/")) or "edge"
        if any(sign in self._topic for sign in "+#\0") or not self._topic.isprintable() or "#" in address.reveal():
            raise UsageError(
                f"'{address}' has no valid topic: +, # and control characters are not allowed",
                hint="mqtt://HOST/edge/front",
            )
        self._client: Any = None

    def send(self, message: bytes) -> None:
        """Publish one JSON document, and wait for the broker's confirmation."""
        try:
            client = self._connected()
            info = client.publish(self._topic, message, qos=1)
            info.wait_for_publish(_TIMEOUT_S)
            is_published = info.is_published()
        except (OSError, ValueError, RuntimeError, DeviceError) as exc:
            self.close()
            what = exc.what if isinstance(exc, DeviceError) else str(exc) or type(exc).__name__
            raise DeviceError(self._address.scrub(what)) from exc
        if not is_published:
            self.close()
            raise DeviceError("the broker did not confirm the message")

    def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()

    def _connected(self) -> Any:  # noqa: ANN401 - paho's client
        if self._client is not None and self._client.is_connected():
            return self._client
        self.close()
        client = self._mqtt.Client(self._enums.CallbackAPIVersion.VERSION2)
        if self._user is not None:
            client.username_pw_set(unquote(self._user), None if self._password is None else unquote(self._password))
        if self._is_tls:
            client.tls_set()
        refused: list[str] = []
        answered = threading.Event()

        def on_connect(_client: object, _data: object, _flags: object, reason: Any, _properties: object) -> None:  # noqa: ANN401
            if reason.is_failure:
                refused.append(str(reason))
            answered.set()

        client.on_connect = on_connect
        client.connect_timeout = _TIMEOUT_S
        client.connect(self._host, self._port, keepalive=30)
        client.loop_start()
        self._client = client
        if not answered.wait(_TIMEOUT_S):
            raise DeviceError("the broker did not answer")
        if refused:
            raise DeviceError(f"the broker refused the connection: {refused[0]}")
        return client


@final
class CommandTarget:
    """Runs a command with the JSON on its standard input, without a shell: ``|``, ``>`` and ``$`` have no meaning."""

    def __init__(self, command: str) -> None:
        try:
            self.arguments = shlex.split(command)
        except ValueError as exc:
            raise UsageError(f"exec: {exc}") from exc
        if not self.arguments:
            raise UsageError("exec: needs a command", hint="exec:/usr/local/bin/on-label")

    def send(self, message: bytes) -> None:
        """Run the command and wait for its end."""
        try:
            process = subprocess.Popen(
                self.arguments, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        except OSError as exc:
            raise DeviceError(f"{self.arguments[0]}: {exc.strerror or exc}") from exc
        try:
            process.communicate(message, timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired as exc:
            raise DeviceError(f"{self.arguments[0]}: killed after {_TIMEOUT_S:g} s") from exc
        finally:
            if process.poll() is None:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            raise DeviceError(f"{self.arguments[0]}: exit code {process.returncode}")

    def close(self) -> None:
        """Do nothing: no resource is held between deliveries."""


class _Rule:
    """One rule of the profile, with its state for each camera."""

    def __init__(self, rule: NotifyRule, indices: frozenset[int] | None) -> None:
        self.rule = rule
        self.indices = indices
        self.cameras: dict[str | None, _Seen] = {}

    def fires(self, result: FrameResult) -> bool:
        """Return True if ``result`` must be reported. Call this once for every result, in order."""
        seen = self.cameras.setdefault(result.camera, _Seen())
        index, label, confidence = seen_label(result)
        is_match = ((self.indices is None and label != UNKNOWN) or index in (self.indices or ())) and (
            confidence >= self.rule.min_confidence
        )
        if not is_match:
            seen.label = None
            if self.rule.on_change:
                # The label must reappear before it is reported again.
                seen.reported = None
            return False
        if label != seen.label:
            seen.label, seen.since_s = label, result.t_s
        if result.t_s - seen.since_s < self.rule.for_s or result.t_s - seen.reported_s < self.rule.every_s:
            return False
        if self.rule.on_change and seen.reported == label:
            return False
        seen.reported, seen.reported_s = label, result.t_s
        return True


class _Seen:
    """State of a rule for one camera: the current label, its start time, and the last reported label."""

    __slots__ = ("label", "reported", "reported_s", "since_s")

    def __init__(self) -> None:
        self.label: str | None = None
        self.since_s = 0.0
        self.reported: str | None = None
        self.reported_s = float("-inf")


class _Sender:
    """One target with its queue, its thread and its counts."""

    def __init__(self, name: str, target: Target, *, first_pause_s: float) -> None:
        self._name = name
        self._target = target
        self._first_pause_s = first_pause_s
        self._queue: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._sent = self._failed = self._retried = self._dropped = 0
        self._error: str | None = None
        self._is_sending = self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"notify {name}", daemon=True)
        self._thread.start()

    def put(self, message: bytes) -> None:
        with self._changed:
            if len(self._queue) >= _MOST_WAITING:
                self._queue.popleft()
                self._dropped += 1
            self._queue.append(message)
            self._changed.notify()

    def counts(self) -> NotifyCounts:
        with self._changed:
            return NotifyCounts(
                target=self._name, sent=self._sent, failed=self._failed, retried=self._retried,
                dropped=self._dropped, waiting=len(self._queue) + self._is_sending, last_error=self._error,
            )  # fmt: skip

    def close(self, end_s: float) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(max(end_s - time.monotonic(), 0.0))

    def _run(self) -> None:
        try:
            while (message := self._next()) is not None:
                self._deliver(message)
        finally:
            with contextlib.suppress(Exception):
                self._target.close()

    def _next(self) -> bytes | None:
        with self._changed:
            self._is_sending = False
            while not self._queue and not self._closing:
                self._changed.wait()
            if not self._queue:
                return None
            self._is_sending = True
            return self._queue.popleft()

    def _deliver(self, message: bytes) -> None:
        pause_s = self._first_pause_s
        for attempt in range(1, _MOST_ATTEMPTS + 1):
            error = self._try(message)
            with self._changed:
                if error is None:
                    self._sent += 1
                    return
                self._error = error
                is_last = attempt == _MOST_ATTEMPTS or self._closing
                self._failed += is_last
                self._retried += not is_last
                if is_last:
                    return
                self._changed.wait_for(lambda: self._closing, pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _try(self, message: bytes) -> str | None:
        try:
            self._target.send(message)
        except EdgeError as exc:
            return exc.what
        return None


class Notifications:
    """Checks the rules for every result of a run, and sends notifications.

    Args:
        rules: the rules, each with its target addresses.
        names: the labels of the model.
        about: fields of every message, such as the profile's name.

    Raises:
        UsageError: A rule names a label that the model does not have, or an address is wrong.
        MissingDependencyError: a library that a target needs is missing.
    """

    def __init__(
        self, rules: Sequence[tuple[NotifyRule, Sequence[Secret]]], *, names: Sequence[str], about: dict[str, Any],
        first_pause_s: float = _FIRST_PAUSE_S, open_target: Callable[[Secret], Target] = open_target,
    ) -> None:  # fmt: skip
        self._about = about
        self._encoder = msgspec.json.Encoder()
        checked = [(_Rule(rule, _indices(rule, names)), addresses) for rule, addresses in rules]
        targets = {address: open_target(address) for _rule, addresses in checked for address in addresses}
        self._senders = {
            address: _Sender(str(address), target, first_pause_s=first_pause_s) for address, target in targets.items()
        }
        self._rules = [(rule, [self._senders[address] for address in addresses]) for rule, addresses in checked]

    def on_event(self, event: FrameResult | Skip | Gap) -> None:
        """Check the rules for one event of the run."""
        if not isinstance(event, FrameResult):
            return
        for rule, senders in self._rules:
            if rule.fires(event):
                message = self._message(event)
                for sender in senders:
                    sender.put(message)

    def counts(self) -> tuple[NotifyCounts, ...]:
        """Return the counts of each target so far."""
        return tuple(sender.counts() for sender in self._senders.values())

    def close(self) -> None:
        """Send queued messages, for two seconds at most, and close."""
        end_s = time.monotonic() + _DRAIN_S
        for sender in self._senders.values():
            sender.close(end_s)

    def _message(self, result: FrameResult) -> bytes:
        index, label, confidence = seen_label(result)
        content = {
            "time_utc": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "label": label,
            "index": index,
            "confidence": confidence,
            "camera": result.camera,
            "name": result.name,
            "seq": result.seq,
            "t_s": result.t_s,
            **self._about,
            "guesses": result.guesses,
        }
        return self._encoder.encode(content)


def _indices(rule: NotifyRule, names: Sequence[str]) -> frozenset[int] | None:
    """Return the classes of a rule, given by label or number; None means all.

    Raises:
        UsageError: The model has no such label.
    """
    if not rule.labels:
        return None
    found: set[int] = set()
    known = {name: [] for name in names}  # type: dict[str, list[int]]
    for index, name in enumerate(names):
        known[name].append(index)
    for label in rule.labels:
        if isinstance(label, int):
            if not 0 <= label < max(len(names), 1):
                raise UsageError(f"notify: there is no class {label}; the model has {len(names)} classes")
            found.add(label)
        elif label in known:
            found.update(known[label])
        else:
            raise UsageError(
                f"notify: there is no label {label!r}{did_you_mean(label, known)}", hint="see the labels file"
            )
    return frozenset(found)
