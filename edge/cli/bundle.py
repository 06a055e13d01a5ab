"""Make, check, sign and share what a device needs, as one file.

A bundle contains the resolved profile, the model, labels, calibration tables,
timing caches and golden images, and a manifest with the sha256 of every file.
`edge bundle --profile NAME -o FILE` is short for `edge bundle create`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from typer.core import TyperGroup

from edge.artifacts import is_stream
from edge.cli import options
from edge.errors import UsageError
from edge.ui.terminal import Terminal

if TYPE_CHECKING:
    from edge.deploy.bundle import Bundle
    from edge.media import Picture


class _BundleShortForm(TyperGroup):
    """`edge bundle -p NAME -o FILE` means `edge bundle create -p NAME -o FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - click's context
        """Insert the omitted command."""
        if args and args[0].startswith("-") and args[0] not in {"-h", "--help"}:
            args = ["create", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(no_args_is_help=True, cls=_BundleShortForm)

Source = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A .edge file, or the folder that it was unpacked to.")]
Key = Annotated[
    Path | None,
    typer.Option(help="SSH key to sign with: a private key, or a public key whose private key is in an SSH agent."),
]
Artifact = Annotated[str, typer.Argument(metavar="oci://HOST/NAME:TAG", help="Repository and tag in a registry.")]
PlainHttp = Annotated[
    bool, typer.Option("--plain-http", help="Use HTTP without TLS. A registry on this machine needs no option.")
]
CaFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Certificates to trust, for a registry with its own CA.")
]
AuthHosts = Annotated[
    list[str] | None,
    typer.Option(
        "--auth-host", metavar="HOST", help="Token server that may get the registry's credentials; repeat for more."
    ),
]
AllowedSigners = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Allowed signers; one of them must have signed it.", show_default="those of this device"
    ),
]


@app.command()
def create(
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="File (.edge, .tar) or new folder to write.")
    ],
    profile: options.ProfileName = None,
    cache_dir: options.CacheDir = None,
    golden: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Golden images, as for `--images`.", show_default="samples")
    ] = None,
    no_golden: Annotated[bool, typer.Option("--no-golden", help="Leave golden images out.")] = False,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take the golden results from this bundle instead of computing them."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle.", show_default="the profile's")] = None,
    jetpack: Annotated[
        list[str] | None,
        typer.Option(metavar="X.Y", help="JetPack release of the devices; repeat for more.", show_default="any"),
    ] = None,
    with_wheels: Annotated[
        bool, typer.Option("--with-wheels", help="Add the wheels that install edge on a device offline.")
    ] = False,
    key: Key = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: options.Json = False,
) -> None:
    """Make the bundle of a profile."""
    from edge.cli import paths
    from edge.deploy.bundle import creation, open_bundle, signature

    chosen, path = paths.load_profile(profile)
    terminal = Terminal()
    if key is not None and is_stream(output):
        raise UsageError("a signature is a file next to the bundle", where=output, hint="-o FILE.edge --key KEY")
    terminal.info(f"profile {chosen.name} ({path})", style="dim")
    with terminal.progress() as listen:
        made = creation.create(
            chosen, cache=paths.cache_folder(cache_dir, path), out=output,
            golden=[] if no_golden else _golden(golden),
            reference=open_bundle(reference) if reference else None,
            name=name, jetpack=jetpack or [], with_wheels=with_wheels, force=force, listen=listen,
        )  # fmt: skip
    if key is not None:
        signature.sign(made, key)
    if as_json and not is_stream(output):
        terminal.data(_json(made))
        return
    signed = ", signed" if key is not None else ""
    _report(terminal, output, f"{len(made.files)} files, {_size(made.about.total_bytes)}{signed}, sha256:{made.digest}")


def _report(terminal: Terminal, output: Path, text: str) -> None:
    """Print a result, on stderr if the bundle itself went to stdout."""
    (terminal.info if is_stream(output) else terminal.data)(f"{output}: {text}")


def _golden(source: Path | None) -> list[Picture]:
    from edge.cli import paths
    from edge.media import open_pictures

    if source is None:
        own = paths.home() / "samples"
        source = own if own.is_dir() else paths.resources() / "samples"
        if not source.is_dir():
            raise UsageError("there are no golden images", where=source, hint="give --golden DIR, or --no-golden")
    return list(open_pictures(source))


@app.command()
def show(bundle: Source, *, as_json: options.Json = False) -> None:
    """Show the content of a bundle."""
    from edge.deploy.bundle import open_bundle

    found = open_bundle(bundle)
    terminal = Terminal()
    if as_json:
        terminal.data(_json(found))
        return
    for label, text in _summary(found):
        terminal.data(f"{label:<10} {text}")
    terminal.table(
        ("file", "bytes", "sha256"),
        [(file, f"{entry.size:,}", entry.sha256[:12]) for file, entry in sorted(found.files.items())],
        right=(1,),
    )


@app.command()
def verify(
    bundle: Source,
    *,
    allowed_signers: AllowedSigners = None,
    here: Annotated[bool, typer.Option("--here", help="Also check that the bundle targets this machine.")] = False,
    as_json: options.Json = False,
) -> None:
    """Compare every file of a bundle with the manifest; check its signature if one is required."""
    from edge.cli import paths
    from edge.deploy.bundle import check_target, open_bundle, signature, verify_bundle
    from edge.system import device

    found = open_bundle(bundle)
    terminal = Terminal()
    if allowed_signers is not None:
        signers = [signature.check(found, allowed_signers)]
    else:
        signers = signature.check_policy(found, signature.lists(paths.device_home()))
    if here:
        check_target(found.about, device.identify())
    with terminal.progress() as listen:
        verify_bundle(found, listen=listen)
    if as_json:
        result = {
            "bundle": str(bundle), "digest": found.digest, "files": len(found.files),
            "signed": found.signature() is not None, "signers": msgspec.to_builtins(signers),
        }  # fmt: skip
        terminal.data(msgspec.json.encode(result).decode())
        return
    reported = f"{bundle}: good; {len(found.files)} files, {_size(found.about.total_bytes)}, sha256:{found.digest}"
    terminal.data("\n".join([reported, *(f"signed by {signer}, in {signer.list}" for signer in signers)]))
    if not signers:
        state = "signed; the signer was not checked (--allowed-signers)" if found.signature() else "not signed"
        terminal.info(state, style="dim")


@app.command()
def sign(
    bundle: Source, *, key: Annotated[Path, typer.Option(help="SSH key, private or, with an agent, public.")]
) -> None:
    """Sign a bundle with an SSH key; the signature is a file next to it."""
    from edge.deploy.bundle import open_bundle, signature, verify_bundle

    found = open_bundle(bundle)
    terminal = Terminal()
    with terminal.progress() as listen:
        verify_bundle(found, listen=listen)
    terminal.data(f"{signature.sign(found, key)}: signs sha256:{found.digest}")


@app.command()
def unpack(
    bundle: Source,
    folder: Annotated[Path, typer.Argument(help="New or empty folder.")],
    *,
    as_json: options.Json = False,
) -> None:
    """Unpack a bundle into a folder and verify it."""
    from edge.deploy.bundle import open_bundle, unpack_bundle

    found = open_bundle(bundle)
    terminal = Terminal()
    with terminal.progress() as listen:
        unpack_bundle(found, folder, listen=listen)
    text = f"{folder}: {len(found.files)} files, {_size(found.about.total_bytes)}, sha256:{found.digest}"
    terminal.data(_json(found) if as_json else text)


@app.command()
def push(
    bundle: Source,
    artifact: Artifact,
    *,
    plain_http: PlainHttp = False,
    ca_file: CaFile = None,
    auth_host: AuthHosts = None,
    as_json: options.Json = False,
) -> None:
    """Push a bundle to an OCI registry; files that the registry already has are not sent.

    Credentials come from `docker login` or `podman login`, or from EDGE_REGISTRY_USER and EDGE_REGISTRY_PASSWORD.
    """
    from edge.deploy.bundle import open_bundle
    from edge.deploy.registry import parse_reference, push

    reference = parse_reference(artifact)
    found = open_bundle(bundle)
    terminal = Terminal()
    with terminal.progress() as listen:
        done = push(
            found,
            reference,
            plain_http=plain_http,
            ca_file=None if ca_file is None else str(ca_file),
            auth_hosts=auth_host or (),
            listen=listen,
        )
    if as_json:
        terminal.data(msgspec.json.encode(done).decode())
        return
    terminal.info(
        f"sent {done.sent_files} files, {_size(done.sent_bytes)}; "
        f"{done.kept_files} files, {_size(done.kept_bytes)}, were already there"
    )
    terminal.data(done.reference)


@app.command()
def pull(
    artifact: Artifact,
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="File (.edge, .tar) or folder to write.")
    ],
    reuse: Annotated[Path | None, typer.Option(metavar="FILE", help="Bundle to take unchanged files from.")] = None,
    allowed_signers: AllowedSigners = None,
    plain_http: PlainHttp = False,
    ca_file: CaFile = None,
    auth_host: AuthHosts = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: options.Json = False,
) -> None:
    """Pull a bundle from an OCI registry and verify it; with @sha256:… exactly that one.

    An interrupted pull into a folder is continued.
    """
    from edge.cli import paths
    from edge.deploy.bundle import creation, open_bundle, pack_bundle, signature, unpack_bundle
    from edge.deploy.registry import parse_reference, pull

    reference = parse_reference(artifact)
    if creation.is_tar(output):
        creation.check_out(output, force=force)
    terminal = Terminal()
    opened = pull(
        reference, plain_http=plain_http, ca_file=None if ca_file is None else str(ca_file),
            auth_hosts=auth_host or (),
        reuse=None if reuse is None else open_bundle(reuse),
    )  # fmt: skip
    with opened as remote, terminal.progress() as listen:
        if allowed_signers is not None:
            signers = [signature.check(remote, allowed_signers)]
        else:
            signers = signature.check_policy(remote, signature.lists(paths.device_home()))
        (pack_bundle if creation.is_tar(output) else unpack_bundle)(remote, output, listen=listen)
    if as_json and not is_stream(output):
        result = {
            "reference": str(remote.reference), "bundle": remote.digest, "output": str(output),
            "fetched_bytes": remote.fetched_bytes, "reused_bytes": remote.reused_bytes,
            "signers": msgspec.to_builtins(signers),
        }  # fmt: skip
        terminal.data(msgspec.json.encode(result).decode())
        return
    terminal.info(f"{remote.reference}: fetched {_size(remote.fetched_bytes)}", style="dim")
    for signer in signers:
        terminal.info(f"signed by {signer}, in {signer.list}")
    _report(terminal, output, f"{len(remote.files)} files, {_size(remote.about.total_bytes)}, sha256:{remote.digest}")


def _summary(bundle: Bundle) -> list[tuple[str, str]]:
    """Format the manifest as lines. Its ``info`` may contain any text."""
    from edge.deploy.bundle import printable_name

    about, info = bundle.about, bundle.about.info
    files = sorted(bundle.files)
    timing = sum(file.startswith("timing/") and not file.endswith(".json") for file in files)
    tables = [file.removeprefix("tables/") for file in files if file.endswith(".table")]
    wheels = sum(file.endswith(".whl") for file in files)
    golden = sum(file.startswith("golden/") for file in files) - ("golden/expected.json" in files)
    described = info.get("wheels")
    python = described.get("python") if isinstance(described, dict) else None
    versions = " and ".join(map(str, python)) if isinstance(python, list) else "?"
    rows = [
        ("bundle", about.name),
        ("id", f"sha256:{bundle.digest}"),
        ("for", f"{about.family}, " + (f"JetPack {' or '.join(about.jetpack)}" if about.jetpack else "any JetPack")),
        ("profile", f"{about.profile} ({info.get('precision', 'unknown precision')})"),
        ("network", f"{info.get('input', 'unknown')} -> {info.get('output', 'unknown')}"),
        ("tables", ", ".join(tables) or "none"),
        ("timing", f"{timing} caches" if timing else "none"),
        ("golden", f"{golden} images" if golden > 0 else "none"),
        ("wheels", f"{wheels}, install edge for Python {versions}" if wheels else "none"),
        ("signature", "present; edge bundle verify checks it" if bundle.signature() is not None else "none"),
        ("size", f"{_size(about.total_bytes)} in {len(files)} files, made with {about.created_with}"),
    ]
    return [(label, printable_name(text)) for label, text in rows]


def _json(bundle: Bundle) -> str:
    content = {"digest": bundle.digest, "signed": bundle.signature() is not None, **msgspec.to_builtins(bundle.about)}
    text = msgspec.json.encode(content).decode()
    # Its author may have written what a terminal obeys.
    return "".join(sign if sign.isprintable() else json.dumps(sign)[1:-1] for sign in text)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
