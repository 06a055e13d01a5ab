"""Ship one bundle to one device. At any time, ``current`` on the device is a complete, verified bundle."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge.artifacts import sha256_bytes
from edge.deploy import agent_protocol, trial
from edge.deploy.agent_protocol import DeviceState, Need, Trial, Verdict
from edge.deploy.bundle import MANIFEST, SIGNATURE, Bundle, mismatch, signature
from edge.deploy.transport import (
    WORTH_BYTES,
    DeviceAddress,
    DeviceSession,
    connect,
    invalid,
    rsync_files,
    rsync_usable,
    without_cancel,
)
from edge.errors import ArtifactError, DeviceError, UsageError
from edge.events import Listener, Note, Progress, ignore_events

Result = Literal[
    "ok", "unchanged", "trial failed", "not tried", "rolled back", "would ship", "failed", "stopped"
]  # fmt: skip
# The verdict did not let the bundle into use.
REFUSED: frozenset[Result] = frozenset({"trial failed", "not tried", "rolled back"})


class ShipSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a shipment.

    ``gates`` are the canary's limits by name (:data:`edge.deploy.trial.GATES`). ``rsync`` is used if both sides have
    it.
    """

    dry_run: bool = False
    canary: bool = True
    bootstrap: bool = False
    rsync: bool = True
    gates: dict[str, float] = {}
    lock_wait_s: int = 30
    canary_wait_s: int = 3600


_DEFAULTS = ShipSettings()
# Even a slow card reads faster than this.
_READ_BACK_BPS = 5_000_000


class ShipOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """Result of shipping to one device.

    ``current`` is the bundle in use at the end, as reported by the device; ``verdict`` is that of its trial.
    ``sent_bytes`` is the number of bytes of file contents that were sent. ``resumed_bytes`` were there from an earlier
    attempt.
    """

    target: str
    work: Result
    bundle: str
    current: str | None = None
    verdict: Verdict | None = None
    previous: str | None = None
    reason: str | None = None
    hint: str | None = None
    files: int = 0
    sent_files: int = 0
    sent_bytes: int = 0
    resumed_bytes: int = 0
    seconds: float = 0.0
    signed_by: str | None = None
    canary: Trial | None = None
    warnings: list[str] = []
    exit_code: int = 0


def ship(
    bundle: Bundle,
    place: DeviceAddress,
    *,
    settings: ShipSettings = _DEFAULTS,
    listen: Listener = ignore_events,
    hold: Callable[[DeviceSession], None] = without_cancel,
    tree: BundleTree | None = None,
) -> ShipOutcome:
    """Send missing files, verify the bundle, try it, and switch to it if the trial passed.

    ``hold`` is called with the session, so that it can be ended from outside. ``tree`` is the source for rsync; one is
    enough for all devices that get the bundle.

    Raises:
        DeviceError: the device cannot be reached, or the bundle is not for it.
        StoreError: its disk cannot be written, or another shipment has its lock.
        UsageError: edge cannot be installed on this target.
        ArtifactError: the bundle is damaged, or the device does not accept its signature.
    """
    if settings.bootstrap and place.system_root and not place.is_own:
        raise UsageError(
            "edge cannot be installed onto the disk of another machine", where=place.name,
            hint="start that machine and ship over ssh with --bootstrap",
        )  # fmt: skip
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(connect(place, hold=hold))
        shared = tree or stack.enter_context(BundleTree(bundle))
        push = _Push(bundle, place, settings, session, listen=listen, tree=shared)
        outcome = push.plan() if settings.dry_run else push.run()
    return msgspec.structs.replace(outcome, seconds=round(time.monotonic() - start, 3))


class BundleTree:
    """The files of a bundle in a folder, for rsync: a bundle folder itself, or a copy of a tar's contents.

    One tree serves all devices of a rollout and is thread-safe. Use it in a ``with`` block.
    """

    def __init__(self, bundle: Bundle, *, parent: Path | None = None) -> None:
        self._bundle = bundle
        self._parent = parent
        self._folder: Path | None = None
        self._guard = threading.Lock()

    def __enter__(self) -> BundleTree:  # noqa: PYI034 - Self is Python 3.11
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def folder_with(self, names: Iterable[str]) -> Path | None:
        """Return a folder with these files; None if they do not fit on this disk.

        Raises:
            ArtifactError: a file of the bundle is damaged.
        """
        if self._bundle.is_folder:
            return self._bundle.path
        with self._guard:
            try:
                if self._folder is None:
                    # With the number of this process: `remove_leftovers` finds it when the process was killed.
                    self._folder = Path(tempfile.mkdtemp(prefix=f"edge-rsync-{os.getpid()}-", dir=self._parent))
                for name in names:
                    self._copy(name, self._folder / name)
            except OSError:
                return None
            return self._folder

    def _copy(self, name: str, path: Path) -> None:
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as file:
            for piece in self._bundle.pieces(name):
                file.write(piece)
        part.replace(path)


class _Push:
    """One shipment, from the first request to the verdict."""

    def __init__(
        self,
        bundle: Bundle,
        place: DeviceAddress,
        settings: ShipSettings,
        session: DeviceSession,
        *,
        listen: Listener,
        tree: BundleTree,
    ) -> None:
        self._bundle = bundle
        self._place = place
        self._settings = settings
        self._session = session
        self._listen = listen
        self._tree = tree
        self._signature = bundle.signature()
        # By digest, so that two files with the same content travel once.
        self._names = {entry.sha256: name for name, entry in bundle.files.items()}
        self._sizes = {entry.sha256: entry.size for entry in bundle.files.values()}
        self._loose = {bundle.digest: bundle.manifest}
        if self._signature is not None:
            self._loose[sha256_bytes(self._signature)] = self._signature
        self._sizes.update({digest: len(data) for digest, data in self._loose.items()})
        self._sent_files = 0
        self._resumed = 0
        self._rsynced = 0
        self._done = 0

    def plan(self) -> ShipOutcome:
        """Return the transfers that a ship would make, without writing anything."""
        state = self._meet()
        missing = agent_protocol.needs(self._session, self._sizes)
        return self._outcome(
            state,
            "unchanged" if state.current == self._bundle.digest and not missing else "would ship",
            sent_files=len(missing),
            sent_bytes=sum(self._sizes[need.sha256] - need.have for need in missing),
            resumed_bytes=sum(need.have for need in missing),
        )

    def run(self) -> ShipOutcome:
        """Ship."""
        state = agent_protocol.begin(self._session, self._meet(), lock_wait_s=self._settings.lock_wait_s)
        missing = agent_protocol.needs(self._session, self._sizes)
        agent_protocol.check_room(state, sum(self._sizes[need.sha256] - need.have for need in missing), self._place)
        missing = self._with_rsync(missing, state)
        self._send(missing)
        signer = self._assemble()
        if self._settings.bootstrap:
            state = trial.bootstrap(self._session, self._place, state, self._bundle, self._listen)
        found = self._into_use(state)
        after = agent_protocol.look(self._session, state)
        work = self._result(state, found, after)
        return self._outcome(
            state, work, current=after.current, verdict=after.verdict, sent_files=self._sent_files,
            sent_bytes=self._session.sent + self._rsynced, resumed_bytes=self._resumed, signed_by=signer, canary=found,
            reason=found.reason if found is not None and work in REFUSED else None,
            exit_code=1 if work in REFUSED else 0,
        )  # fmt: skip

    def _into_use(self, state: DeviceState) -> Trial | None:
        """Switch the device to the bundle, after a trial that passed or, if disabled, without one."""
        is_new = state.current != self._bundle.digest
        if self._settings.canary and state.edge is not None:
            if not is_new and state.verdict == "passed":
                return None
            self._listen(Progress(self._place.name, 0, None, "on trial"))
            settings = self._settings
            return trial.run(self._session, self._bundle, gates=settings.gates, limit_s=settings.canary_wait_s)
        if is_new:
            about = {"digest": self._bundle.digest, "name": self._bundle.about.name}
            self._session.ask(
                "switch", self._bundle.digest, agent_protocol.history_line("ship", trial="not tried", **about)
            )
        return None

    def _result(self, before: DeviceState, found: Trial | None, after: DeviceState) -> Result:
        """Make the result from the bundle that the device now reports as in use.

        Raises:
            DeviceError: it contradicts the verdict.
        """
        digest = self._bundle.digest
        is_used, was_used = after.current == digest, before.current == digest
        if found is None or found.verdict == "passed":
            if not is_used:
                raise DeviceError(
                    f"the bundle is valid on the device, but {_short(after.current)} is in use", where=self._place.name,
                    hint="edge ship status TARGET; another program changes `current` on the device",
                )  # fmt: skip
            return "ok" if not was_used or self._sent_files else "unchanged"
        if found.verdict != "failed":
            return "not tried"
        if is_used:
            raise DeviceError(
                f"the trial failed ({found.reason}), but the bundle is still in use", where=self._place.name,
                hint="edge ship rollback TARGET",
            )  # fmt: skip
        return "rolled back" if was_used else "trial failed"

    def _meet(self) -> DeviceState:
        state = agent_protocol.hello(self._session, self._place)
        for warning in state.warnings:
            self._listen(Note(f"{self._place.name}: {warning}", "warning"))
        why = mismatch(self._bundle.about, state.machine)
        if why is None:
            return state
        if self._place.is_folder and not self._place.system_root:
            # A disk, a share or a staging folder: this machine does not know the final device.
            return msgspec.structs.replace(state, edge=None)
        raise DeviceError(
            why, where=self._place.name, hint="edge bundle show FILE; make one with the profile of this device"
        )

    def _with_rsync(self, missing: list[Need], state: DeviceState) -> list[Need]:
        """Send the large files with rsync as differences from the bundle in use; the rest is sent afterwards."""
        large = {
            need.sha256: self._names[need.sha256]
            for need in missing
            if need.sha256 in self._names and not need.have and self._sizes[need.sha256] >= WORTH_BYTES
        }
        # They are there twice for a moment.
        twice = 2 * sum(self._sizes[digest] for digest in large)
        has_room = state.free_bytes is None or state.free_bytes > twice + (16 << 20)
        if not (large and has_room and self._settings.rsync and state.rsync and rsync_usable(self._place)):
            return missing
        self._listen(Note(f"{self._place.name}: {len(large)} large files with rsync"))
        folder = self._tree.folder_with(large.values())
        if folder is None:
            self._listen(
                Note(f"{self._place.name}: no space here for rsync's copy of the files: sending them completely")
            )
            return missing
        result = rsync_files(
            folder, list(large.values()), place=self._place, root=state.root,
            has_current=state.current is not None, keepalive=self._session.keepalive,
        )  # fmt: skip
        self._rsynced = result.sent_bytes
        if result.problem is not None:
            self._listen(Note(f"{self._place.name}: rsync failed ({result.problem}): sending the files completely"))
        for digest, name in large.items():
            self._session.ask("adopt", digest, name)
        return agent_protocol.needs(self._session, self._sizes)

    def _send(self, missing: list[Need]) -> None:
        """Send files; repeat those that arrived changed, such as a file damaged by a power cut."""
        total = sum(self._sizes[need.sha256] for need in missing)
        for attempt in (1, 2):
            for need in missing:
                # A part that is longer than its file is not one.
                have = need.have if need.have <= self._sizes[need.sha256] else 0
                self._resumed += have if attempt == 1 else 0
                self._advance(have, total)
                if have < self._sizes[need.sha256] or not have:
                    self._session.put(
                        need.sha256, have, self._content(need.sha256, have), on_sent=lambda n: self._advance(n, total)
                    )
                self._session.notify("seal", need.sha256)
            bad = [need.sha256 for need in missing if not self._is_sealed(need.sha256)]
            self._sent_files += len(missing) - len(bad)
            missing = [Need(digest, 0) for digest in bad]
            self._done = 0
            if not missing:
                return
        names = ", ".join(self._names.get(need.sha256, MANIFEST) for need in missing)
        raise ArtifactError(
            f"files were corrupted twice in transfer: {names}",
            where=self._place.name,
            hint="the device's memory or disk is failing; see dmesg on the device",
        )

    def _is_sealed(self, digest: str) -> bool:
        """Return True if the file arrived unchanged; answers have the order in which the files were sent."""
        frame = self._session.until("sealed", "bad", request="seal")[-1]
        if frame.text != digest:
            raise invalid(f"{frame.word} {frame.text}", request=f"seal {digest}", where=self._place.name)
        return frame.word == "sealed"

    def _advance(self, count: int, total: int) -> None:
        self._done += count
        self._listen(Progress(self._place.name, self._done // 1024, max(total, self._done) // 1024, "KiB"))

    def _content(self, digest: str, skip: int) -> Iterator[bytes]:
        """Yield the content of a file from byte ``skip`` on; all of it is read, so that the digest is checked."""
        pieces = iter([self._loose[digest]]) if digest in self._loose else self._bundle.pieces(self._names[digest])
        for piece in pieces:
            if skip >= len(piece):
                skip -= len(piece)
                continue
            yield piece[skip:]
            skip = 0

    def _assemble(self) -> str | None:
        """Let the device assemble the bundle and read it back; send damaged files again.

        Returns the signer, if the device requires a signature.
        """
        entries = {name: entry.sha256 for name, entry in self._bundle.files.items()} | {MANIFEST: self._bundle.digest}
        if self._signature is not None:
            entries[SIGNATURE] = sha256_bytes(self._signature)
        lines = [f"{digest} {name}" for name, digest in sorted(entries.items())]
        # Compare the device's list of files byte by byte: a full disk must not shorten it.
        listed = sorted(f"{digest}  ./{name}\n".encode() for name, digest in entries.items())
        whole = sha256_bytes(b"".join(listed))
        for _ in range(2):
            self._listen(Progress(self._place.name, 0, None, "verifying"))
            frames = self._session.ask(
                "tree", self._bundle.digest, whole, signature.check_script(), *lines, "",
                limit_s=180 + self._bundle.about.total_bytes / _READ_BACK_BPS,
            )  # fmt: skip
            rotten = [frame.text for frame in frames if frame.word == "rotten"]
            if unknown := [digest for digest in rotten if digest not in self._sizes]:
                raise invalid(f"rotten {unknown[0]}", request="tree", where=self._place.name)
            if not rotten:
                return next((frame.text for frame in frames if frame.word == "signed"), None)
            self._listen(
                Note(
                    f"{self._place.name}: {len(rotten)} files were damaged on the device: sending them again", "warning"
                )
            )
            self._send([Need(digest, 0) for digest in dict.fromkeys(rotten)])
        raise ArtifactError(
            "files are damaged on the device right after they are written", where=self._place.name,
            hint="its memory or disk is failing; see dmesg. The bundle in use is the same as before",
        )  # fmt: skip

    def _outcome(self, state: DeviceState, work: Result, **fields: Any) -> ShipOutcome:  # noqa: ANN401
        previous = state.current if state.current != self._bundle.digest else state.previous
        return ShipOutcome(
            target=self._place.name, work=work, bundle=self._bundle.digest, previous=previous,
            files=len(self._bundle.files), warnings=state.warnings, **fields,
        )  # fmt: skip


def _short(digest: str | None) -> str:
    return "no bundle" if digest is None else digest[:12]
