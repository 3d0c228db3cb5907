"""Three simpler models, trained on the same rows, that a task must be compared with.

Each returns logits, so that its answers are decoded and measured exactly like those of the trained model:
for classes the log of their probabilities, for a regression the value itself.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops import catalog
from mtlops.decoding import decode
from mtlops.tasks import Task

TFIDF_PENALTIES = (0.01, 0.1)
FROZEN_PENALTIES = (10.0, 100.0, 1000.0)
"""Weights of the L2 penalty that are tried, as the two feature sets differ in scale; the one that is best on the
validation rows is kept, which is what the trained model's early stopping may look at too."""

MOST_ROWS = 50_000
"""The baselines are trained on at most this many rows, evenly spread over the training split."""

MOST_TERMS = 50_000
"""Terms of the TF-IDF vocabulary, the most frequent first."""

TERM = r"\w+|[^\w\s]+"
"""What a term is: a word, or a run of signs (an emoticon says much about a text)."""

SMALLEST_PROBABILITY = 1e-7

NAMES = ("majority", "tfidf", "frozen")
"""The baselines, the weakest first."""

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """Rows of one split of one task.

    Attributes:
        texts: N texts.
        labels: as `Task.encode` returns them.
        vectors: (N, H) float32, what the frozen trunk makes of the texts.
    """

    texts: Sequence[str]
    labels: NDArray[Any]
    vectors: NDArray[np.float32]


def training_rows(num_rows: int) -> NDArray[np.int64]:
    """Returns the positions of the rows that the baselines are trained on: all, or `MOST_ROWS` evenly spread."""
    return np.arange(0, num_rows, max(1, -(-num_rows // MOST_ROWS)))


def logits(task: Task, train: Rows, *, valid: Rows, test: Rows, names: Collection[str] = NAMES) -> dict[str, Logits]:
    """Returns the logits (N of test, task.num_outputs) float32 of some baselines; names that are none are left out."""
    of_name: dict[str, Callable[[], Logits]] = {
        "majority": lambda: majority(task, train, num_rows=len(test.texts)),
        "tfidf": lambda: tfidf(task, train, valid=valid, test=test),
        "frozen": lambda: frozen(task, train, valid=valid, test=test),
    }
    return {name: make() for name, make in of_name.items() if name in names}


def majority(task: Task, train: Rows, *, num_rows: int) -> Logits:
    """Returns the same answer for every row: the classes' shares, or the mean of a regression.

    Shapes: (num_rows, task.num_outputs) float32.
    """
    if task.kind == "regression":
        answer = np.asarray([train.labels.mean()])
    elif task.kind == "multilabel":
        answer = _logit(train.labels.mean(axis=0))
    else:
        answer = _log(np.bincount(train.labels, minlength=len(task.classes)) / len(train.labels))
    return np.tile(answer.astype(np.float32), (num_rows, 1))


def tfidf(task: Task, train: Rows, *, valid: Rows, test: Rows) -> Logits:
    """Returns the logits of a linear model on TF-IDF weighted words and pairs of words.

    Terms are taken in lower case; their counts are dampened to 1 + ln(count).
    Shapes: (N of test, task.num_outputs) float32.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # scikit-learn takes a second to import

    vectorizer = TfidfVectorizer(token_pattern=TERM, ngram_range=(1, 2), sublinear_tf=True, max_features=MOST_TERMS)
    parts = vectorizer.fit_transform(train.texts), vectorizer.transform(valid.texts), vectorizer.transform(test.texts)
    return _linear(task, train.labels, valid.labels, parts, penalties=TFIDF_PENALTIES)


def frozen(task: Task, train: Rows, *, valid: Rows, test: Rows) -> Logits:
    """Returns the logits of a linear model on the frozen trunk's vectors, each column scaled to unit variance.

    Shapes: (N of test, task.num_outputs) float32.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train.vectors)
    parts = tuple(scaler.transform(rows.vectors) for rows in (train, valid, test))
    return _linear(task, train.labels, valid.labels, parts, penalties=FROZEN_PENALTIES)


def _linear(
    task: Task, labels: NDArray[Any], valid_labels: NDArray[Any], parts: Sequence[Any], *, penalties: Sequence[float]
) -> Logits:
    """Fits one linear model for each penalty and returns the test logits of the best on the validation rows."""
    measure = catalog.load(catalog.KINDS[task.kind].metrics)
    fits = [_fit(task, parts[0], labels, penalty) for penalty in penalties]
    quality = [measure(task, valid_labels, decode(task, fit(parts[1])))[task.primary] for fit in fits]
    return fits[int(np.argmax(quality))](parts[2])


def _fit(task: Task, features: Any, labels: NDArray[Any], penalty: float) -> Callable[[Any], Logits]:
    """Returns the function from features to logits (N, num_outputs) that training gives."""
    from sklearn.linear_model import Ridge

    if task.kind == "regression":
        ridge = Ridge(alpha=penalty).fit(features, labels)
        return lambda rows: ridge.predict(rows)[:, None].astype(np.float32)
    if task.kind == "multilabel":
        ones = [_classifier(features, column.astype(np.int64), 2, penalty) for column in labels.T]
        return lambda rows: _logit(np.stack([one(rows)[:, 1] for one in ones], axis=1)).astype(np.float32)
    classifier = _classifier(features, labels, len(task.classes), penalty)
    return lambda rows: _log(classifier(rows)).astype(np.float32)


def _classifier(
    features: Any, labels: NDArray[np.int64], num_classes: int, penalty: float
) -> Callable[[Any], NDArray[np.float64]]:
    """Returns the function to probabilities (N, num_classes); a class without training rows gets 0."""
    from sklearn.linear_model import LogisticRegression

    known = np.unique(labels)
    if len(known) == 1:
        return lambda rows: np.tile(np.eye(num_classes)[known[0]], (rows.shape[0], 1))
    model = LogisticRegression(C=1.0 / penalty, solver="newton-cg", max_iter=1000).fit(features, labels)

    def probabilities(rows: Any) -> NDArray[np.float64]:
        result = np.zeros((rows.shape[0], num_classes))
        result[:, known] = model.predict_proba(rows)
        return result

    return probabilities


def _log(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    logs: NDArray[np.float64] = np.log(probabilities.clip(min=SMALLEST_PROBABILITY))
    return logs


def _logit(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    return _log(probabilities) - _log(1.0 - probabilities)
