"""
Owns what brings a model to a Ray node before Ray Serve's engine starts there.

Knows nothing of the engine. `bring` needs no Ray; the classes and functions below it do.
Invariants: a replica's engine starts from a snapshot that is here, whole, and leased by its
process; nothing is downloaded by the engine.
Source: Ray Serve LLM, "Callbacks" (`CallbackBase`, alpha); ray.util.scheduling_strategies.

    from ray.serve.llm import LLMConfig
    config = LLMConfig(
        model_loading_config={"model_id": "qwen3", "model_source": "Qwen/Qwen3-8B"},
        callback_config={
            "callback_class": "callback.ResidentModelCallback",
            "callback_kwargs": {"model": "Qwen/Qwen3-8B", "timeout_s": 3600},
        },
        runtime_env={"env_vars": {"HF_HUB_CACHE": "/var/lib/p2pcache/hub", "HF_HUB_OFFLINE": "1"}},
    )
    bring_to_all_nodes("Qwen/Qwen3-8B")  # no GPU is reserved while this runs
    serve.run(build_openai_app({"llm_configs": [config]}))
"""

from __future__ import annotations

from typing import Any

from p2pcache.client import Client, Lease

try:
    from ray.serve.llm.callbacks import CallbackBase
except ImportError:
    try:  # releases in which it was not public yet
        from ray.llm._internal.common.callbacks.base import CallbackBase
    except ImportError:

        class CallbackBase:  # type: ignore[no-redef]
            """Stands in for Ray's class where Ray is not installed: what it keeps of a callback."""

            def __init__(self, llm_config: Any = None, **kwargs: Any) -> None:
                self.llm_config = llm_config
                self.kwargs = kwargs


# Leases of this process, by model: a replica's process ends, and the leases with it.
_LEASES: dict[str, Lease] = {}


def bring(model: str, timeout_s: float | None = None, client: Client | None = None) -> str:
    """
    Have a model on this machine; return its snapshot's path. This process holds a lease then.

    Args:
        model: A model reference.
        timeout_s: Seconds to wait; None for as long as it takes.
        client: The node's daemon; the one that is found if None.

    Raises:
        P2PCacheError: It cannot be had, by cause; or not in time.
    """
    client = client or Client()
    client.wait(str(client.pull(model)["id"]), timeout_s=timeout_s)
    if model not in _LEASES or not _LEASES[model].is_held:
        _LEASES[model] = client.lease(model, holder="ray").keep()
    return str(_LEASES[model].path)


class ResidentModelCallback(CallbackBase):  # type: ignore[misc]
    """Has the model on every node that a replica runs on, before its engine looks for it."""

    async def on_before_node_init(self) -> None:
        """Bring it to the node of the replica's own process; that process keeps the lease."""
        bring(self.kwargs["model"], self.kwargs.get("timeout_s"))

    def on_before_download_model_files_distributed(self) -> None:
        """Bring it to each node of the placement group; Ray calls this in a task there."""
        bring(self.kwargs["model"], self.kwargs.get("timeout_s"))


def bring_to_all_nodes(model: str, timeout_s: float | None = None) -> dict[str, str]:
    """
    Have a model on every node of the cluster, with tasks that reserve no GPU; call it before
    serve.run(), which reserves them before any callback runs.

    Returns:
        The snapshot's path by node id.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, num_gpus=0)(bring)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    waiting = [
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        ).remote(model, timeout_s)
        for node in nodes
    ]
    return dict(zip(nodes, ray.get(waiting), strict=True))
