"""The shards of a plan made by datatrove's executors: on this machine, or on many through Slurm or Ray.

Task `rank` of `tasks` makes the shards rank, rank + tasks ..., byte for byte those that one machine would make. Each
task rebuilds the generator from the recipe where it runs and refuses to go on where the fonts, word lists or library
versions there are not those of the manifest. All machines must see the output folder under the same path.

The local executor is tested. Slurm and Ray are constructed by the tests but have not been run: no cluster was at hand.
"""

import json
from collections.abc import Callable

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from .shards import ShardPlan, finish_folder, prepare_folder, write_shard

EXECUTORS = {"local": LocalPipelineExecutor, "slurm": SlurmPipelineExecutor, "ray": RayPipelineExecutor}


class WriteShards(PipelineStep):
    """The step of a datatrove pipeline that writes a task's share of the shards.

    Args:
        plan: picklable, returns the `ShardPlan`; called in the task.
    """

    name = "shards"
    type = "epigraph"

    def __init__(self, plan: Callable[[], ShardPlan]):
        super().__init__()
        self.plan = plan

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        """Write the shards of task `rank` that are missing; `data` is passed on untouched."""
        import cv2

        cv2.setNumThreads(1)
        plan = self.plan()
        prepare_folder(plan)
        for index in plan.missing():
            if index % world_size == rank:
                with self.track_time("shard"):
                    record = write_shard(plan, index)
                self.stat_update("rows", value=record["rows"])
                for reason, count in (record["rejected"] | record["skipped"]).items():
                    self.stat_update(reason, value=count)
        yield from data or ()


class FinishFolder(PipelineStep):
    """The step that writes manifest and card once all tasks of `WriteShards` are done.

    Args:
        plan: as for `WriteShards`.
    """

    name = "manifest"
    type = "epigraph"

    def __init__(self, plan: Callable[[], ShardPlan]):
        super().__init__()
        self.plan = plan

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        """Write manifest and card; `data` is passed on untouched. Raises ValueError where shards are missing."""
        finish_folder(self.plan())
        yield from data or ()


def executors(plan: Callable[[], ShardPlan], made: ShardPlan, executor: str, tasks=None, workers=None, **options):
    """The executor that finishes the folder; it depends on the one that writes the shards, and runs it first.

    Args:
        plan: picklable, returns the `ShardPlan`.
        made: what it returns here.
        executor: local, slurm or ray.
        tasks: parts of the work; by default one for each shard.
        workers: tasks that run at the same time; by default all.
        options: further arguments of datatrove's executor: `time` and `partition` for Slurm.

    Raises:
        ValueError: the executor does not take these options.
    """
    cls, logs = EXECUTORS[executor], made.out / ".logs"
    options = {"skip_completed": False, **options}  # done is what is whole, not what a log says
    tasks = min(tasks or len(made), len(made))
    try:
        steps = [WriteShards(plan)], [FinishFolder(plan)]
        write = cls(steps[0], tasks=tasks, workers=workers or -1, logging_dir=str(logs / "shards"), **options)
        return cls(steps[1], tasks=1, logging_dir=str(logs / "manifest"), depends=write, **options)
    except TypeError as error:
        raise ValueError(f"executor_options: {cls.__name__} says {error}") from None


def run_tasks(plan: Callable[[], ShardPlan], executor: str, tasks=None, workers=None, **options) -> dict | None:
    """Run `executors(...)`; the manifest, or None where the work was handed to a queue.

    Raises:
        ValueError: as `executors` and `prepare_folder`.
    """
    made = plan()
    prepare_folder(made)  # here, so that a folder of something else is refused before anything is queued
    executors(plan, made, executor, tasks, workers, **options).run()
    if executor == "slurm":
        return None
    return json.loads((made.out / "manifest.json").read_text(encoding="utf-8"))
