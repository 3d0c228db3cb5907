"""A trained model that answers, in PyTorch, over the cached trunk."""

import ctypes
import hashlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache as once
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlops.data.tokenisation import Tokenizer, pad
from mtlops.errors import ArtefactError, UsageError
from mtlops.files import read_json
from mtlops.model import multitask
from mtlops.model.answers import Answers
from mtlops.model.encoders import Trunk, load_trunk
from mtlops.model.multitask import PairModel
from mtlops.model.sharing.anatomy import Sharing, make
from mtlops.model.trained import TrainedModel, load_model
from mtlops.model.trunk_cache import TrunkCache
from mtlops.params import Model
from mtlops.tasks import Task

_TOKENS = 4096
"""Of a batch: of twice as many, the largest intermediate values no longer fit into memory that glibc would keep."""

_TEXTS = 32
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT, _LARGEST_MMAP_THRESHOLD = 1 << 29, 1 << 25


class Backbone:
    """A trunk on a device with its cache: what training and prediction both stand on.

    Args:
        encoder: the encoder folder that `prepare` wrote.
        cache: folder of the trunk cache.
        model: section `model` of params.yaml.
        max_tokens: longer texts are cut to this many tokens.
        tasks: names of the tasks, in order; `adapters` do not need them.
        device: where to compute.

    Raises:
        ArtefactError: the encoder folder is missing or damaged.
        UsageError: `model` does not fit the encoder.
    """

    def __init__(
        self,
        encoder: Path,
        *,
        cache: Path,
        model: Model,
        max_tokens: int,
        tasks: Sequence[str] = (),
        device: str = "cpu",
    ) -> None:
        _keep_freed_memory()
        self.facts = read_json(encoder / "encoder.json", made_by="mtlops prepare")
        self.device = torch.device(device)
        trunk = load_trunk(encoder).to(self.device)
        positions = trunk.config.max_tokens
        if max_tokens > positions:
            raise UsageError(f"params.yaml: encoder.max_tokens: {max_tokens}; this encoder has {positions} positions.")
        self.above = _above(trunk, model, tasks)
        self.tokenizer = Tokenizer(encoder / "tokenizer.json", max_tokens=max_tokens)
        self._ids: dict[str, list[int]] = {}
        self.cache = TrunkCache(
            cache,
            trunk=trunk,
            pairs=self.above,
            tokenizer=self.tokenizer,
            identity=f"{self.facts['trunk_sha256']}/{self.facts['tokenizer_sha256']}/{max_tokens}/{self.device.type}",
            precision=model.cache_precision,
        )

    @property
    def pairs(self) -> PairModel:
        """What lies above the cut under sharing `adapters`."""
        assert isinstance(self.above, PairModel)
        return self.above

    @property
    def sharing(self) -> Sharing:
        """What lies above the state under any other way of sharing."""
        assert isinstance(self.above, Sharing)
        return self.above

    def fill(self, row_ids: Sequence[str], texts: Sequence[str]) -> None:
        """Makes rows ready for `batch`."""
        if self._reads_ids:
            missing = {r: t for r, t in zip(row_ids, texts, strict=True) if r not in self._ids}
            self._ids |= zip(missing, self.tokenizer.ids(list(missing.values())), strict=True)
        else:
            self.cache.fill(row_ids, texts)

    def length(self, row_id: str) -> int:
        """Returns the number of tokens of a row that `fill` has seen."""
        return len(self._ids[row_id]) if self._reads_ids else self.cache.length(row_id)

    def batch(self, row_ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns the state and the mask of some rows on the device: (B, S, V) or token ids (B, S), and (B, S)."""
        if self._reads_ids:
            ids = [self._ids[row_id] for row_id in row_ids]
            values, mask = map(torch.from_numpy, pad(ids, pad_id=self.tokenizer.pad_id))
        else:
            values, mask = self.cache.batch(row_ids)
        return values.to(self.device, non_blocking=True), mask.to(self.device, non_blocking=True)

    @property
    def _reads_ids(self) -> bool:
        return isinstance(self.above, Sharing) and self.above.reads_ids

    @torch.inference_mode()
    def logits(
        self,
        row_ids: Sequence[str],
        tensors: Mapping[str, Tensor],
        *,
        words: NDArray[np.int64] | None = None,
        skipped: Collection[int] = (),
    ) -> NDArray[np.float32]:
        """Returns one task's logits (N, C) for cached rows; `tensors` as `Adapter.bank` returns them.

        The adapters of `skipped` layers are left out. With `words` (N, W), as `Tokenizer.word_tokens` returns them, it
        is (N, W, C): not-a-number where a row has no such word.
        """
        bank = self._bank(tensors)
        if words is not None:

            def answer(state: Tensor, mask_PS: Tensor, words_PW: Tensor) -> Tensor:
                x_PSH = self.pairs.tokens(state, mask_PS, bank, skipped=skipped)
                return multitask.token_logits(multitask.at_words(x_PSH, words_PW), bank)

            return self._of_words(row_ids, words, answer, width=tensors["head.bias"].shape[0])
        result = np.empty((len(row_ids), tensors["head.bias"].shape[0]), dtype=np.float32)
        for rows in self._batches(row_ids):
            pooled = self.pairs(*self.batch([row_ids[i] for i in rows]), bank, skipped=skipped)
            result[rows] = multitask.logits(pooled, bank).float().cpu().numpy()
        return result

    @torch.inference_mode()
    def frozen_word_vectors(self, row_ids: Sequence[str], *, words: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns what the frozen trunk makes of each word of cached rows, (N, W, H); see `logits`."""

        def answer(state: Tensor, mask_PS: Tensor, words_PW: Tensor) -> Tensor:
            return multitask.at_words(self.pairs.frozen(state, mask_PS), words_PW)

        return self._of_words(row_ids, words, answer, width=self.pairs.hidden)

    def _of_words(
        self,
        row_ids: Sequence[str],
        words: NDArray[np.int64],
        answer: Callable[[Tensor, Tensor, Tensor], Tensor],
        *,
        width: int,
    ) -> NDArray[np.float32]:
        result = np.full((*words.shape, width), np.nan, dtype=np.float32)
        for rows in self._batches(row_ids):
            words_PW = torch.from_numpy(words[rows]).to(self.device)
            found = answer(*self.batch([row_ids[i] for i in rows]), words_PW).float().cpu().numpy()
            result[rows] = np.where(words[rows][..., None] >= 0, found, np.nan)
        return result

    @torch.inference_mode()
    def shared_logits(
        self, row_ids: Sequence[str], tensors: Mapping[str, Tensor], *, shared: Mapping[str, Tensor], task: str
    ) -> NDArray[np.float32]:
        """Returns one task's logits (N, C) for rows that `fill` has seen, where tasks train layers together."""
        answer = self._answer(tensors, shared=shared, task=task)
        result = np.empty((len(row_ids), tensors["head.bias"].shape[0]), dtype=np.float32)
        for rows in self._batches(row_ids):
            result[rows] = answer(*self.batch([row_ids[i] for i in rows]))
        return result

    @torch.inference_mode()
    def logits_of_texts(
        self, texts: Sequence[str], tensors: Mapping[str, Tensor], *, shared: Mapping[str, Tensor], task: str
    ) -> NDArray[np.float32]:
        """Returns one task's logits (N, C) for texts that are no rows of the data; nothing of them is kept.

        Texts with the same tokens are computed once and have the same logits to the bit.
        """
        answer = self._answer(tensors, shared=shared, task=task)
        ids = [tuple(tokens) for tokens in self.tokenizer.ids(texts)]
        found: dict[tuple[int, ...], NDArray[np.float32]] = {}
        distinct = sorted(set(ids), key=lambda tokens: (len(tokens), tokens))
        for start in range(0, len(distinct), _TEXTS):
            batch = distinct[start : start + _TEXTS]
            arrays = pad(batch, pad_id=self.tokenizer.pad_id)
            input_ids, mask = (torch.from_numpy(array).to(self.device) for array in arrays)
            state = input_ids
            if not self._reads_ids:
                state = self.above.state(self.cache.trunk, input_ids, mask)
            found |= dict(zip(batch, answer(state, mask), strict=True))
        return np.stack([found[tokens] for tokens in ids])

    @torch.inference_mode()
    def embeddings(self, row_ids: Sequence[str], *, shared: Mapping[str, Tensor]) -> NDArray[np.float32]:
        """Returns the embeddings (N, H) at the cut of rows that `fill` has seen."""
        common = {name: tensor.to(self.device) for name, tensor in shared.items()}
        result = np.empty((len(row_ids), self.above.hidden), dtype=np.float32)
        for rows in self._batches(row_ids):
            state, mask_BS = self.batch([row_ids[i] for i in rows])
            if isinstance(self.above, Sharing):
                state = self.above.embed(state, mask_BS, common)
                vectors = self.above.embedding(state, mask_BS)
            else:
                vectors = self.above.embedding(state, mask_BS, layer="cut")
            result[rows] = vectors.float().cpu().numpy()
        return result

    def embedding_digest(self, shared: Mapping[str, Tensor], *, layer: str) -> str:
        """Returns the sha256 of all that an embedding depends on beside its text.

        Two models with the same digest give a text the same embedding, whatever their tasks learned.
        """
        parts = [self.facts["trunk_sha256"], self.facts["tokenizer_sha256"], self.tokenizer.max_tokens, layer]
        place = [self.above.depth, self.above.cut.name] if layer == "cut" else []
        digest = hashlib.sha256("/".join(map(str, [*parts, *place])).encode())
        if self._reads_ids:
            for name in sorted(name for name in shared if not name.startswith("layers.")):
                digest.update(name.encode() + shared[name].detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def vectors(
        self, row_ids: Sequence[str], tensors: Mapping[str, Tensor], *, shared: Mapping[str, Tensor], task: str
    ) -> NDArray[np.float32]:
        """Returns what one task's head reads, (N, H), for rows that `fill` has seen."""
        read = self._reader(self._bank(tensors), shared=shared, task=task)
        result = np.empty((len(row_ids), self.cache.trunk.config.hidden_size), dtype=np.float32)
        for rows in self._batches(row_ids):
            result[rows] = read(*self.batch([row_ids[i] for i in rows])).float().cpu().numpy()
        return result

    def _answer(
        self, tensors: Mapping[str, Tensor], *, shared: Mapping[str, Tensor], task: str
    ) -> Callable[[Tensor, Tensor], NDArray[np.float32]]:
        """A function from a state and its mask to one task's logits."""
        bank = self._bank(tensors)
        read = self._reader(bank, shared=shared, task=task)

        def answer(state: Tensor, mask_BS: Tensor) -> NDArray[np.float32]:
            values: NDArray[np.float32] = multitask.logits(read(state, mask_BS), bank).float().cpu().numpy()
            return values

        return answer

    def _reader(
        self, bank: Mapping[str, Tensor], *, shared: Mapping[str, Tensor], task: str
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """A function from a state and its mask to what one task's head reads."""
        # Detached: PyTorch multiplies by other kernels, and to other last bits, where a gradient could be asked for.
        common = {name: tensor.detach().to(self.device) for name, tensor in shared.items()}

        def read(state: Tensor, mask_BS: Tensor) -> Tensor:
            if isinstance(self.above, PairModel):
                pooled: Tensor = self.above(state, mask_BS, bank)
                return pooled
            return self.above.vector(self.above.embed(state, mask_BS, common), mask_BS, common, task)

        return read

    def _bank(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in multitask.stack([tensors]).items()}

    def _batches(self, row_ids: Sequence[str]) -> Iterator[list[int]]:
        """Positions of the rows of each batch, from the longest rows to the shortest."""
        lengths = [self.length(row_id) for row_id in row_ids]
        order = sorted(range(len(row_ids)), key=lambda i: (-lengths[i], i))
        start = 0
        while start < len(order):
            end = start + max(1, _TOKENS // max(1, lengths[order[start]]))
            yield order[start:end]
            start = end


class Predictor:
    """A trained model over its backbone.

    Args:
        trained: folder of a trained model.
        encoder: the encoder folder that `prepare` wrote; must be the one it was trained with.
        cache: folder of the trunk cache.
        device: where to compute.
        backbone: the trunk and cache of another predictor of the same place; none opens its own.

    Raises:
        ArtefactError: a file is missing or damaged, or the encoder is another one.
    """

    def __init__(
        self, trained: Path, encoder: Path, *, cache: Path, device: str = "cpu", backbone: Backbone | None = None
    ) -> None:
        self.model: TrainedModel = load_model(trained)
        self._logits: dict[tuple[str, tuple[str, ...]], NDArray[np.float32]] = {}
        self._place = encoder, cache, device
        self.backbone = backbone or Backbone(
            encoder,
            cache=cache,
            model=self.model.model,
            max_tokens=self.model.max_tokens,
            tasks=[known.name for known in self.model.tasks],
            device=device,
        )
        identity = f"{self.backbone.cache.folder.name}/{self.model.model.model_dump_json()}"
        self.answers = Answers(cache / "answers", identity=identity)
        if self.backbone.facts != self.model.encoder:
            raise ArtefactError(f"{trained}: was trained on another encoder than {encoder}. Run `mtlops train` again.")

    def beside(self, trained: Path) -> "Predictor":
        """Returns another model of the same encoder, layers and length limit on the same backbone.

        Raises:
            ArtefactError: a file is missing or damaged, or it is a model of another kind.
        """
        encoder, cache, device = self._place
        other = Predictor(trained, encoder, cache=cache, device=device, backbone=self.backbone)
        ours, theirs = ((m.encoder, m.model, m.max_tokens) for m in (self.model, other.model))
        if ours != theirs or self.model.model.sharing != "adapters":
            raise ArtefactError(
                f"{trained}: has another encoder, other layers or another length limit: not comparable."
            )
        return other

    def logits(self, texts: Sequence[str], row_ids: Sequence[str], task: str) -> NDArray[np.float32]:
        """Returns one task's logits (N, C) float32, read only; `row_ids` name the texts in the cache.

        A task that tags words has (N, W, C): not-a-number where a row has no such word, or its text is cut before it.
        Asked again for the same rows, it answers from memory, or with what any process computed with the same tensors,
        code and number of threads: several measurements and steps look at the test rows.
        """
        key = task, tuple(row_ids)
        if key not in self._logits:
            tensors = self.model.tensors[task]
            path = self.answers.path({**self.model.shared, **tensors}, row_ids)
            num_words = self._words(texts).shape[1:] if self._task(task).per_word else ()
            known = self.answers.read(path, (len(row_ids), *num_words, tensors["head.bias"].shape[0]))
            if known is None:
                known = self.computed_logits(texts, row_ids, task)
                self.answers.write(path, known)
            self._logits[key] = known
            known.setflags(write=False)
        return self._logits[key]

    def computed_logits(self, texts: Sequence[str], row_ids: Sequence[str], task: str) -> NDArray[np.float32]:
        """Returns one task's logits (N, C) float32, computed now, whatever is known already."""
        self.backbone.fill(row_ids, texts)
        tensors = self.model.tensors[task]
        words = self._words(texts) if self._task(task).per_word else None
        if self.model.model.sharing == "adapters":
            return self.backbone.logits(row_ids, tensors, words=words)
        return self.backbone.shared_logits(row_ids, tensors, shared=self.model.shared, task=task)

    def logits_of_texts(self, texts: Sequence[str], task: str) -> NDArray[np.float32]:
        """Returns one task's logits (N, C) float32 for texts that are no rows of the data; the cache stays as it is."""
        return self.backbone.logits_of_texts(texts, self.model.tensors[task], shared=self.model.shared, task=task)

    def vectors(self, texts: Sequence[str], row_ids: Sequence[str], task: str) -> NDArray[np.float32]:
        """Returns what one task's head reads, (N, H) float32; `row_ids` name the texts in the cache."""
        self.backbone.fill(row_ids, texts)
        return self.backbone.vectors(row_ids, self.model.tensors[task], shared=self.model.shared, task=task)

    def embedding_layer(self, wanted: str) -> str:
        """Returns which of `last` and `cut` the embedding is taken from: always `cut` where tasks train layers."""
        return wanted if self.model.model.sharing == "adapters" else "cut"

    def embeddings(self, texts: Sequence[str], row_ids: Sequence[str], *, layer: str) -> NDArray[np.float32]:
        """Returns the vectors (N, H) float32 that drift watches: what serving returns as `embedding`."""
        if layer == "last":
            return self.pooled(texts, row_ids)
        self.backbone.fill(row_ids, texts)
        return self.backbone.embeddings(row_ids, shared=self.model.shared)

    def embedding_digest(self, layer: str) -> str:
        """Names what `embeddings` depends on beside the texts; those of two models compare where it is the same."""
        return self.backbone.embedding_digest(self.model.shared, layer=layer)

    def frozen_words(self, texts: Sequence[str], row_ids: Sequence[str]) -> NDArray[np.float32]:
        """Returns the frozen trunk's vectors (N, W, H) float32 of words; not-a-number where a row has no such word."""
        self.backbone.fill(row_ids, texts)
        return self.backbone.frozen_word_vectors(row_ids, words=self._words(texts))

    def _words(self, texts: Sequence[str]) -> NDArray[np.int64]:
        return self.backbone.tokenizer.word_tokens(texts)

    def _task(self, name: str) -> Task:
        return next(task for task in self.model.tasks if task.name == name)

    def pooled(self, texts: Sequence[str], row_ids: Sequence[str]) -> NDArray[np.float32]:
        """Returns mean-pooled vectors (N, H) float32 of the trunk as it was before any training."""
        self.backbone.cache.fill(row_ids, texts)
        return self.backbone.cache.pooled(row_ids)


def _above(trunk: Trunk, model: Model, tasks: Sequence[str]) -> PairModel | Sharing:
    return PairModel(trunk, model) if model.sharing == "adapters" else make(trunk, model, tasks)


@once
def _keep_freed_memory() -> None:
    """Asks glibc to keep half a gigabyte of freed memory for the next batch instead of giving each block back.

    Every batch has the same sizes; the kernel would clear their pages again and again: a fifteenth of an update's time.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if mallopt := getattr(libc, "mallopt", None):  # musl has none
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
