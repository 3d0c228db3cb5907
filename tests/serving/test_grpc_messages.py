"""The messages are those that NVIDIA's client was built with."""

import pytest
from tritonclient.grpc import service_pb2

from mtlops.serving.grpc_messages import METHODS, message


@pytest.mark.parametrize("name", [f"{method}{end}" for method in METHODS for end in ("Request", "Response")])
def test_fields_have_the_numbers_and_types_of_the_protocol(name: str) -> None:
    _compare(message(name).DESCRIPTOR, getattr(service_pb2, name).DESCRIPTOR, {})


def _compare(ours, theirs, seen) -> None:  # type: ignore[no-untyped-def]
    if ours.full_name in seen:
        return
    seen[ours.full_name] = True
    assert ours.full_name == theirs.full_name
    for field in ours.fields:
        other = theirs.fields_by_name[field.name]
        assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated), (
            field.name
        )
        assert (field.containing_oneof is None) == (other.containing_oneof is None)
        if field.message_type is not None:
            _compare(field.message_type, other.message_type, seen)
