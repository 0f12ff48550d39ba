"""LiteLLM's proxy, the gateway that many put before their models."""

from __future__ import annotations

import json
from ipaddress import ip_address

from bench.peers.contract import GATEWAY_PATHS, Peer, PeerContext, installed_version


def _command(ctx: PeerContext) -> list[str]:
    config = {
        "model_list": [
            {
                "model_name": "*",
                "litellm_params": {
                    "model": "openai/*",
                    "api_base": f"{ctx.upstream}/v1",
                    "api_key": "none",
                    "timeout": 3600,
                    "stream_timeout": 3600,
                },
            }
        ],
        # Without a key it refuses to start; nothing but the loopback reaches it here.
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
        "litellm_settings": {"telemetry": False, "num_retries": 0, "request_timeout": 3600},
    }
    path = ctx.workdir / "litellm.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return [
        str(ctx.env_dir / "litellm" / "bin" / "litellm"), "--config", str(path), "--host", ctx.host,
        "--port", str(ctx.port), "--num_workers", "1", "--telemetry", "False",
    ]  # fmt: skip


def _version(ctx: PeerContext) -> str:
    found = [f"{name} {installed_version(ctx, name, 'litellm')}" for name in ("litellm", "uvicorn", "starlette")]
    return ", ".join(found)


def _missing(ctx: PeerContext) -> str | None:
    if not ip_address(ctx.host).is_loopback:
        return "it runs without a master key here, so it listens on loopback only"
    if (ctx.env_dir / "litellm" / "bin" / "litellm").exists():
        return None
    failed = ctx.env_dir / "litellm.failed"
    if failed.exists():
        return f"litellm[proxy] could not be installed: {failed.read_text().strip()}"
    return "litellm[proxy] is not installed (python -m bench peers --install)"


PEERS = (
    Peer(
        name="litellm",
        kind="gateway",
        command=_command,
        paths=GATEWAY_PATHS,
        version=_version,
        missing=_missing,
        stats=None,
        notes=(
            "litellm --config with one wildcard model on the upstream, one worker, no database, no "
            "callbacks, telemetry and retries off, no master key (on loopback only), its local table of "
            "model prices; one log line per request. It reads every chunk and writes it anew."
        ),
    ),
)
