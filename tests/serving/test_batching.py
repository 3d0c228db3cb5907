"""The queue before the model: nothing lost, nothing mixed, nothing unbounded."""

import asyncio
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from mtlops.bundle import Bundle
from mtlops.serving.batching import Batcher
from mtlops.serving.limits import Limits
from mtlops.serving.questions import Answer, Question
from mtlops.serving.refusal import Refusal
from mtlops.serving.runtime import Runtime
from tests.tiny_suite import Workspace

LIMITS = Limits(queue_rows=50)


@pytest.fixture(scope="module")
def runtime(finished: Workspace) -> Runtime:
    return Runtime(Bundle.open(finished.bundle), threads=1)


def question(*texts: str, positions: tuple[int, ...] = (0, 4), timeout_seconds: float = 30.0) -> Question:
    return Question("x", texts, None, positions, (), timeout_seconds)


async def answers(batcher: Batcher, runtime: Runtime, asked: list[Question]) -> list[Answer]:
    futures = [batcher.submit(one, runtime, with_embedding=i % 2 == 0) for i, one in enumerate(asked)]
    return list(await asyncio.gather(*futures))


def test_mixed_requests_get_their_own_answers(runtime: Runtime) -> None:
    sizes: list[int] = []
    batcher = Batcher(LIMITS, threads=2, batch_rows=4, observe=sizes.append)
    asked = [
        question(
            *[f"{'law ' * (k % 7)}film {k} {i}" for i in range(k % 4 + 1)], positions=((4,), (0, 4), (1, 2, 3))[k % 3]
        )
        for k in range(15)
    ]
    found = asyncio.run(answers(batcher, runtime, asked))
    batcher.close()
    for i, (one, answer) in enumerate(zip(asked, found, strict=True)):
        names = [runtime.tasks[p].name for p in one.positions]
        expected = runtime.predict(one.texts or (), tasks=names)
        assert list(answer.outputs) == names
        for name in names:
            for ours, theirs in zip(vars(answer.outputs[name]).values(), vars(expected[name]).values(), strict=True):
                assert (ours is None) == (theirs is None) and (ours is None or np.allclose(ours, theirs, atol=1e-4))
        assert (answer.embeddings is not None) == (i % 2 == 0)
        if answer.embeddings is not None:
            assert np.allclose(answer.embeddings, runtime.embeddings(one.texts or ()), atol=1e-5)
    assert sum(sizes) == sum(one.num_rows for one in asked) and max(sizes) <= 4


def test_a_thread_that_waited_for_more_and_found_nothing_goes_on(runtime: Runtime) -> None:
    sizes: list[int] = []
    batcher = Batcher(LIMITS, threads=3, batch_rows=4, delay_seconds=0.01, observe=sizes.append)

    async def one_after_the_other() -> None:
        for _ in range(20):
            futures = [batcher.submit(question("a"), runtime, with_embedding=False) for _ in range(3)]
            await asyncio.gather(*futures)

    asyncio.run(one_after_the_other())
    assert all(thread.is_alive() for thread in batcher.threads)
    assert sum(sizes) == 60
    batcher.close()
    assert not any(thread.is_alive() for thread in batcher.threads)


def test_only_the_embedding_can_be_asked_for(runtime: Runtime) -> None:
    batcher = Batcher(LIMITS, threads=1, batch_rows=4)
    (answer,) = asyncio.run(answers(batcher, runtime, [question("a film", positions=())]))
    batcher.close()
    assert answer.outputs == {} and np.allclose(answer.embeddings, runtime.embeddings(["a film"]), atol=1e-5)


class Held(Runtime):
    """A runtime that computes only when it is told to."""

    def __new__(cls, runtime: Runtime) -> "Held":
        held = object.__new__(cls)
        vars(held).update(vars(runtime))
        held.go, held.computed = threading.Event(), 0
        return held

    def __init__(self, runtime: Runtime) -> None:
        pass

    def compute(self, *arguments, **options):  # type: ignore[no-untyped-def]
        self.go.wait(30)
        self.computed += 1
        return super().compute(*arguments, **options)


def test_a_full_queue_refuses_and_a_late_turn_is_refused(runtime: Runtime) -> None:
    held = Held(runtime)
    batcher = Batcher(replace(LIMITS, queue_rows=4), threads=1, batch_rows=1)

    async def scenario() -> None:
        first = batcher.submit(question("a"), held, with_embedding=False)
        await asyncio.sleep(0.1)
        late = batcher.submit(question("b", timeout_seconds=0.01), held, with_embedding=False)
        rest = [batcher.submit(question("c"), held, with_embedding=False) for _ in range(3)]
        with pytest.raises(Refusal, match="4 rows wait already") as refused:
            batcher.submit(question("d"), held, with_embedding=False)
        assert refused.value.status == 429 and refused.value.retry_after_seconds
        rest[1].cancel()
        time.sleep(0.05)
        held.go.set()
        await asyncio.gather(first, rest[0], rest[2])
        with pytest.raises(Refusal, match="not free in time"):
            await late

    asyncio.run(scenario())
    assert held.computed == 3
    batcher.close()


def test_closing_answers_what_waits_and_takes_nothing_new(runtime: Runtime) -> None:
    held = Held(runtime)
    batcher = Batcher(LIMITS, threads=1, batch_rows=1)

    async def scenario() -> None:
        futures = [batcher.submit(question("a"), held, with_embedding=False) for _ in range(5)]
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await asyncio.sleep(0.05)
        with pytest.raises(Refusal, match="stopping"):
            batcher.submit(question("b"), held, with_embedding=False)
        held.go.set()
        assert len(await asyncio.gather(*futures)) == 5
        await closing

    asyncio.run(scenario())


def test_a_model_that_fails_refuses_and_goes_on(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    batcher = Batcher(LIMITS, threads=1, batch_rows=2)
    outside = Question("x", None, [[10**6]], (0,), (), 30.0)

    async def scenario() -> None:
        with pytest.raises(Refusal, match="the model failed") as refused:
            await batcher.submit(outside, runtime, with_embedding=False)
        assert refused.value.status == 500
        await batcher.submit(question("a"), runtime, with_embedding=False)

    asyncio.run(scenario())
    batcher.close()
    assert "1 requests failed in the model" in caplog.text
