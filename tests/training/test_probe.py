"""The probe is scikit-learn's regularised linear model."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from mtlops import catalog
from mtlops.training.probe import fit_probe

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(200, 5)).astype(np.float32)


def test_multiclass_probe_is_logistic_regression() -> None:
    labels = (FEATURES[:, 0] + RANDOM.normal(size=200) > 0).astype(np.int64) + (FEATURES[:, 1] > 1)
    loss = catalog.load(catalog.KINDS["multiclass"].loss)
    weight, bias, _ = fit_probe(torch.from_numpy(FEATURES), torch.from_numpy(labels), loss=loss, num_outputs=3)
    reference = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(FEATURES, labels)
    expected = reference.predict_proba(FEATURES)
    ours = torch.softmax(torch.from_numpy(FEATURES) @ weight + bias, dim=1).numpy()
    assert ours == pytest.approx(expected, abs=1e-3)


def test_regression_probe_is_ridge() -> None:
    labels = (FEATURES @ np.arange(5) + 3.0).astype(np.float32)
    loss = catalog.load(catalog.KINDS["regression"].loss)
    weight, bias, mean = fit_probe(torch.from_numpy(FEATURES), torch.from_numpy(labels), loss=loss, num_outputs=1)
    reference = Ridge(alpha=0.5).fit(FEATURES, labels)
    assert weight[:, 0].numpy() == pytest.approx(reference.coef_, abs=1e-3)
    assert float(bias) == pytest.approx(reference.intercept_, abs=1e-3) and mean < 0.01
