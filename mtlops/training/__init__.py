"""Training of adapters and heads on the frozen trunk."""
