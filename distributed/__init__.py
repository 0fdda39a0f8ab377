"""Deep graph networks pipelined over workers, experts spread over them, with DeepSpeed as the distributed engine."""

from gossamer.distributed import schedule
from gossamer.distributed.backend import init_distributed, leave_distributed
from gossamer.distributed.calibration import Calibration, calibrate
from gossamer.distributed.channel import WorkerLost
from gossamer.distributed.checkpoint import find_latest
from gossamer.distributed.config import PipelineConfig, load_config
from gossamer.distributed.counters import Counters
from gossamer.distributed.engine import EpochReport, Evaluation, PipelineEngine, initialize
from gossamer.distributed.exact_schedule import exact_schedule
from gossamer.distributed.expert_parallel import ExpertExchange, ExpertParallelMoE
from gossamer.distributed.gradient_aggregation import LocalGradientAggregation
from gossamer.distributed.history import Staleness
from gossamer.distributed.launcher import is_worker, launch
from gossamer.distributed.local_learning import LocalPipeline
from gossamer.distributed.planner import ParallelPlan, plan_parallelism
from gossamer.distributed.scale import Cluster, Link, ScaleEstimate, ScaleJob, WorkerMemory, simulate_scale
from gossamer.distributed.schedule import gnnpipe, gpipe, local, naive, one_f_one_b, simulate
from gossamer.distributed.schedule_memory import bound_waiting, peak_bytes
from gossamer.distributed.stages import layers_of, plan_stages
from gossamer.distributed.transformer_pipeline import TransformerPipeline

__all__ = [
    "initialize",
    "init_distributed",
    "leave_distributed",
    "launch",
    "is_worker",
    "PipelineEngine",
    "PipelineConfig",
    "load_config",
    "layers_of",
    "plan_stages",
    "plan_parallelism",
    "ParallelPlan",
    "simulate_scale",
    "ScaleJob",
    "ScaleEstimate",
    "WorkerMemory",
    "Cluster",
    "Link",
    "Calibration",
    "calibrate",
    "EpochReport",
    "Evaluation",
    "Staleness",
    "Counters",
    "ExpertExchange",
    "ExpertParallelMoE",
    "LocalGradientAggregation",
    "WorkerLost",
    "find_latest",
    "schedule",
    "naive",
    "gpipe",
    "one_f_one_b",
    "gnnpipe",
    "exact_schedule",
    "local",
    "LocalPipeline",
    "simulate",
    "bound_waiting",
    "peak_bytes",
    "TransformerPipeline",
]
