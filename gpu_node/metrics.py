"""The node's figures in Prometheus' text format, read from its state at each `GET /metrics`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from gpu_node.node import Node

STATUSES = ("ready", "starting", "busy", "draining", "failed")


def render(node: Node) -> bytes:
    """Return all metrics of the node."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_NodeCollector(node))
    return generate_latest(registry)


class _NodeCollector(Collector):
    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Iterator[Metric]:
        queue, worker, settings = self._node.queue, self._node.worker, self._node.settings
        status = GaugeMetricFamily("gpu_node_status", "1 for what the node is", labels=["status"])
        for name in STATUSES:
            status.add_metric([name], float(name == self._node.status))
        yield status
        info = GaugeMetricFamily("gpu_node_info", "What runs here, and how", labels=["model", "profile"])
        info.add_metric([settings.model_name, settings.profile], 1)
        yield info
        yield CounterMetricFamily(
            "gpu_node_worker_restarts", "Worker processes that died", value=worker.restarts
        )
        yield GaugeMetricFamily("gpu_node_queue_depth", "Jobs that wait", value=len(queue.waiting))
        yield GaugeMetricFamily("gpu_node_running", "Jobs begun and not ended", value=len(queue.at_worker))
        ended = CounterMetricFamily("gpu_node_jobs", "Jobs that ended", labels=["outcome"])
        for outcome, count in queue.outcomes.items():
            ended.add_metric([outcome], count)
        yield ended
        yield CounterMetricFamily(
            "gpu_node_clip_seconds", "From the GPU's start to the file, summed", value=queue.clip_seconds
        )
        pace = GaugeMetricFamily("gpu_node_step_seconds", "A denoising step takes", labels=["size", "frames"])
        for entry in worker.estimates.listed():
            pace.add_metric([entry["size"], str(entry["frames"])], entry["seconds_per_step"])
        yield pace
        yield SummaryMetricFamily(
            "gpu_node_idle_seconds",
            "The GPU stood idle between two clips though the second was waiting",
            count_value=worker.idle_count,
            sum_value=worker.idle_seconds,
        )
        if worker.memory is not None:
            gauge = GaugeMetricFamily("gpu_node_memory_bytes", "Memory of the device", labels=["kind"])
            for kind, megabytes in worker.memory.model_dump().items():
                gauge.add_metric([kind.removesuffix("_mb")], megabytes * 2**20)
            yield gauge
        free = shutil.disk_usage(settings.save_dir).free
        yield GaugeMetricFamily("gpu_node_disk_free_bytes", "Free where the clips are kept", value=free)
