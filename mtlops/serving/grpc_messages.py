"""The messages of the Open Inference Protocol's gRPC service, from a table of their fields.

They live in a pool of their own: other packages (`tritonclient`) register the same names in protobuf's shared pool, and
both could not be imported together. A field is `name:number:type`; `[]` is a list, `{}` a map from strings.

Source: github.com/kserve/open-inference-protocol, specification/protocol/open_inference_grpc.proto.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

_MESSAGES: Mapping[str, str] = MappingProxyType({
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live:1:bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready:1:bool",
    "ModelReadyRequest": "name:1:string version:2:string",
    "ModelReadyResponse": "ready:1:bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name:1:string version:2:string extensions:3:string[]",
    "ModelMetadataRequest": "name:1:string version:2:string",
    "ModelMetadataResponse.TensorMetadata": "name:1:string datatype:2:string shape:3:int64[]",
    "ModelMetadataResponse": "name:1:string versions:2:string[] platform:3:string "
    "inputs:4:ModelMetadataResponse.TensorMetadata[] outputs:5:ModelMetadataResponse.TensorMetadata[]",
    "InferParameter": "bool_param:1:bool int64_param:2:int64 string_param:3:string double_param:4:double "
    "uint64_param:5:uint64",
    "InferTensorContents": "bool_contents:1:bool[] int_contents:2:int32[] int64_contents:3:int64[] "
    "uint_contents:4:uint32[] uint64_contents:5:uint64[] fp32_contents:6:float[] fp64_contents:7:double[] "
    "bytes_contents:8:bytes[]",
    "ModelInferRequest.InferInputTensor": "name:1:string datatype:2:string shape:3:int64[] "
    "parameters:4:InferParameter{} contents:5:InferTensorContents",
    "ModelInferRequest.InferRequestedOutputTensor": "name:1:string parameters:2:InferParameter{}",
    "ModelInferRequest": "model_name:1:string model_version:2:string id:3:string parameters:4:InferParameter{} "
    "inputs:5:ModelInferRequest.InferInputTensor[] outputs:6:ModelInferRequest.InferRequestedOutputTensor[] "
    "raw_input_contents:7:bytes[]",
    "ModelInferResponse.InferOutputTensor": "name:1:string datatype:2:string shape:3:int64[] "
    "parameters:4:InferParameter{} contents:5:InferTensorContents",
    "ModelInferResponse": "model_name:1:string model_version:2:string id:3:string parameters:4:InferParameter{} "
    "outputs:5:ModelInferResponse.InferOutputTensor[] raw_output_contents:6:bytes[]",
})  # fmt: skip

METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
"""Each takes `<method>Request` and returns `<method>Response`."""

_CHOICE = {"InferParameter": "parameter_choice"}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="mtlops/open_inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, DescriptorProto] = {}
    for name in sorted(_MESSAGES, key=lambda name: name.count(".")):
        outer, _, own = name.rpartition(".")
        made[name] = (made[outer].nested_type if outer else file.message_type).add(name=own)
    for name, fields in _MESSAGES.items():
        message = made[name]
        if name in _CHOICE:
            message.oneof_decl.add(name=_CHOICE[name])
        for field in fields.split():
            added = _add_field(message, name, *field.split(":"))
            if name in _CHOICE:
                added.oneof_index = 0
    return file


def _add_field(message: DescriptorProto, owner: str, name: str, number: str, kind: str) -> FieldDescriptorProto:
    plain = kind.rstrip("[]{}")
    field = message.field.add(name=name, number=int(number), label=FieldDescriptorProto.LABEL_OPTIONAL)
    if kind != plain:
        field.label = FieldDescriptorProto.LABEL_REPEATED
    if kind.endswith("{}"):
        entry = message.nested_type.add(name="".join(part.capitalize() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        _add_field(entry, "", "key", "1", "string")
        _add_field(entry, "", "value", "2", plain)
        plain = f"{owner}.{entry.name}"
    if plain[0].isupper():
        field.type = FieldDescriptorProto.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{plain}"
    else:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{plain.upper()}")
    return field


_POOL = descriptor_pool.DescriptorPool()
_POOL.AddSerializedFile(_file().SerializeToString())


def message(name: str) -> Any:
    """Returns the class of a message by its name, as in `message("ModelInferRequest")`."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))
