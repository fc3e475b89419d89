"""What a context pool knows of the encoder that made its keys, and the latents it keeps of entries."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .pool_entries import array, probe_picture, unit
from .pool_storage import Manifest

SAME_ENCODER = 0.999  # cosine between keys of one picture; half precision stays above it


@dataclass(frozen=True)
class Identity:
    """What encoders are told apart by.

    Attributes:
        weights: hash of the weights, None where the encoder does not say it.
        probe: key of a fixed picture, which decides where one of two encoders does not say its hash.
    """

    weights: str | None
    probe: list[float]

    @classmethod
    def of(cls, encode: Callable) -> "Identity":
        """Ask an encoder."""
        key = unit(array(encode([probe_picture()])[0]))[0]
        return cls(getattr(encode, "weights_sha256", None), [round(float(value), 6) for value in key])

    @classmethod
    def stated(cls, manifest: Manifest) -> "Identity":
        """Of the encoder that the keys of a pool on disk belong to."""
        return cls(manifest.encoder, manifest.probe or [])

    def check(self, manifest: Manifest, folder: Path):
        """ValueError where the keys of a pool on disk are another encoder's."""
        if not self.same(Identity.stated(manifest)):
            raise ValueError(
                f"the keys of {folder} were made by another encoder (weights {manifest.encoder or 'unknown'}, here "
                f"{self.weights or 'unknown'}); load it with the model it was made with, or make them anew: "
                "pool = ContextPool.load(path).reencode(encode), then pool.save()."
            )

    def same(self, other: "Identity") -> bool:
        """Whether keys of both may be compared."""
        if self.weights and other.weights:
            return self.weights == other.weights
        return len(self.probe) == len(other.probe) and float(np.dot(self.probe, other.probe)) >= SAME_ENCODER


class LatentCache:
    """Latents by entry, the least recently used of which make room for others.

    Args:
        limit: bytes that all of them may take.
    """

    def __init__(self, limit: int):
        self.limit, self.held = limit, 0
        self._latents: OrderedDict[int, object] = OrderedDict()

    def __len__(self) -> int:
        return len(self._latents)

    def get(self, name: int):
        """Of an entry, None where they are not here."""
        if name in self._latents:
            self._latents.move_to_end(name)
        return self._latents.get(name)

    def put(self, name: int, latents):
        """Keep (latents, width), an array or a tensor; returns the copy that is kept."""
        # A copy, as a part of a batch would keep all of the batch in memory.
        latents = latents.detach().clone() if hasattr(latents, "detach") else np.array(latents)
        if name in self._latents:
            self.held -= self._latents.pop(name).nbytes
        self._latents[name] = latents
        self.held += latents.nbytes
        while self.held > self.limit:
            self.held -= self._latents.popitem(last=False)[1].nbytes
        return latents

    def clear(self):
        """Forget all."""
        self._latents.clear()
        self.held = 0


def weights_hash(*modules) -> str:
    """The sha256 of the weights of torch modules: names, shapes, types and bytes, whatever device they are on.

    A pool depends on the image encoder and the resampler only: with the hash of these it outlives a new decoder.
    """
    import torch

    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
