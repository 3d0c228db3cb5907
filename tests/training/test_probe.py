"""The probe is scikit-learn's regularised linear model."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from mtlops import catalog
from mtlops.training.probe import fit_probe

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(200, 5)).astype(np.float32)


def test_multiclass_probe_is_logistic_regression() -> None:
    labels = (FEATURES[:, 0] + RANDOM.normal(size=200) > 0).astype(np.int64) + (FEATURES[:, 1] > 1)
    loss = catalog.load(catalog.KINDS["multiclass"].loss)
    probe = fit_probe(torch.from_numpy(FEATURES), torch.from_numpy(labels), loss=loss, num_outputs=3, penalty=5.0)
    scaled = StandardScaler().fit_transform(FEATURES)
    expected = LogisticRegression(C=1 / 5.0, tol=1e-8, max_iter=1000).fit(scaled, labels).predict_proba(scaled)
    ours = torch.softmax(torch.from_numpy(FEATURES) @ probe.weight + probe.bias, dim=1).numpy()
    assert ours == pytest.approx(expected, abs=1e-3)


def test_regression_probe_is_ridge() -> None:
    labels = (FEATURES @ np.arange(5) + 3.0).astype(np.float32)
    loss = catalog.load(catalog.KINDS["regression"].loss)
    probe = fit_probe(torch.from_numpy(FEATURES), torch.from_numpy(labels), loss=loss, num_outputs=1, penalty=4.0)
    scaled = StandardScaler().fit_transform(FEATURES)
    expected = Ridge(alpha=2.0).fit(scaled, labels).predict(scaled)
    assert (torch.from_numpy(FEATURES) @ probe.weight + probe.bias)[:, 0].numpy() == pytest.approx(expected, abs=1e-3)
    assert probe.loss < 0.05
