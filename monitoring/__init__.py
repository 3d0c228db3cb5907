"""The process that closes the loop: windows of the prediction log, verdicts, alerts, requests to retrain."""
