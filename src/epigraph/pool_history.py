"""The operations of a pool: those that its folder has, those that are to be written, and those to be left out."""

from collections.abc import Callable
from pathlib import Path

from .pool_storage import Operation


class History:
    """What was done to a pool, in order, and what of it is not on disk yet.

    Attributes:
        saved: as the folder's manifest had them last.
        pending: what saving adds.
        withdrawn: of the saved ones, by id, what saving leaves out.
        rewritten: the first pending operation takes the place of all that were saved.
    """

    def __init__(self):
        self.saved: list[Operation] = []
        self.pending: list[Operation] = []
        self.withdrawn: dict[str, Operation] = {}
        self.rewritten = False

    @property
    def operations(self) -> list[Operation]:
        """In force, in order."""
        first = 1 if self.rewritten else 0
        kept = [operation for operation in self.saved if operation.id not in self.withdrawn]
        return [*self.pending[:first], *kept, *self.pending[first:]]

    @property
    def unsaved(self) -> bool:
        """Whether saving would change anything."""
        return bool(self.pending or self.withdrawn)

    def withdraw_last(self):
        """Take back the last operation; ValueError where there is none since the history began."""
        operations = self.operations
        if not operations or (self.rewritten and len(operations) == 1):
            raise ValueError("there is nothing to undo: the pool has no operation since it was made or rewritten.")
        if operations[-1] in self.pending:
            self.pending.remove(operations[-1])
        else:
            self.withdrawn[operations[-1].id] = operations[-1]

    def begin_with(self, operation: Operation):
        """Forget everything before an operation that brings all entries."""
        self.withdrawn |= {former.id: former for former in self.saved}
        self.pending, self.rewritten = [operation], True

    def forget_folder(self):
        """Everything is to be written: the pool becomes a copy of its own."""
        self.pending, self.saved = self.operations, []

    def written(self, operations: list[Operation]):
        """These are on disk now."""
        self.saved, self.pending, self.withdrawn, self.rewritten = operations, [], {}, False

    def merged(
        self,
        standing: list[Operation],
        folder: Path,
        here: bool,
        undoing: Callable[[Operation], Operation],
        converted: Callable[[Operation], Operation],
    ) -> list[Operation]:
        """What a folder of this pool gets: its own operations, those of other processes included, and then ours.

        Args:
            standing: what the folder has.
            folder: names it.
            here: it is the one that `saved` is of; a copy of it otherwise, which nothing is withdrawn from.
            undoing: gives what undoes an operation that a compaction by another process has absorbed.
            converted: gives an operation that was saved with the former encoder the present one's keys.

        Raises:
            ValueError: the pool was rewritten here and there, or what a withdrawn operation took out is gone.
        """
        known = {operation.id for operation in standing}
        own = [operation for operation in (self.pending if here else self.operations) if operation.id not in known]
        lost = [operation for name, operation in self.withdrawn.items() if name not in known and here]
        if lost and (self.rewritten or any(operation.removed for operation in lost)):
            raise ValueError(
                f"{folder} was rewritten or undone by another process meanwhile; load it and do the same again."
            )
        kept = [operation for operation in standing if operation.id not in self.withdrawn]
        if self.rewritten:
            seen = {operation.id for operation in self.saved}
            kept = [operation if operation.id in seen else converted(operation) for operation in kept]
        first = 1 if self.rewritten else 0
        return [*own[:first], *kept, *map(undoing, lost), *own[first:]]
