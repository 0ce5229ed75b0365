"""Writes the tiny ONNX models that the tests of packages/runtime run.

Run with a Python that has `onnx`: python test/runtime/make_models.py
"""

from pathlib import Path

from onnx import TensorProto, checker, helper

HERE = Path(__file__).parent
F32, F64, I64, I8, U8, U16, F16, BOOL, I32 = (
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.INT64,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.UINT16,
    TensorProto.FLOAT16,
    TensorProto.BOOL,
    TensorProto.INT32,
)


def save(name, nodes, inputs, outputs):
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    model.producer_name = ""
    checker.check_model(model)
    (HERE / f"{name}.onnx").write_bytes(model.SerializeToString())


node = helper.make_node
save("matmul", [node("MatMul", ["a", "b"], ["c"])],
     [("a", F32, ["M", "K"]), ("b", F32, ["K", "N"])], [("c", F32, ["M", "N"])])
save("gemm-accumulate", [node("Gemm", ["a", "b", "c"], ["y"])],
     [("a", F32, ["M", "K"]), ("b", F32, ["K", "N"]), ("c", F32, ["M", "N"])], [("y", F32, ["M", "N"])])
save("increment", [node("Add", ["x", "step"], ["y"])],
     [("x", F32, ["N"]), ("step", F32, [1])], [("y", F32, ["N"])])
save("multiply-float64", [node("Mul", ["a", "b"], ["c"])],
     [("a", F64, ["N"]), ("b", F64, ["N"])], [("c", F64, ["N"])])
save("multiply-int64", [node("Mul", ["a", "b"], ["c"])],
     [("a", I64, ["N"]), ("b", I64, ["N"])], [("c", I64, ["N"])])
save("greater", [node("Greater", ["a", "b"], ["c"])],
     [("a", F32, ["N"]), ("b", F32, ["N"])], [("c", BOOL, ["N"])])
save("integer-matmul", [node("MatMulInteger", ["a", "b"], ["c"])],
     [("a", U8, ["M", 4]), ("b", I8, [4, "N"])], [("c", I32, ["M", "N"])])
save("reshape-rows", [node("Constant", [], ["s"], value_ints=[-1, 2]), node("Reshape", ["x", "s"], ["y"])],
     [("x", F32, ["B", "T", 2])], [("y", F32, ["B*T", 2])])
save("cast-half", [node("Cast", ["x"], ["y"], to=F32)], [("x", F16, ["N"])], [("y", F32, ["N"])])
save("pass-uint16", [node("Identity", ["x"], ["y"])], [("x", U16, ["N"])], [("y", U16, ["N"])])
save("not", [node("Not", ["x"], ["y"])], [("x", BOOL, ["N"])], [("y", BOOL, ["N"])])
save("gather", [node("Gather", ["table", "ids"], ["rows"], axis=0)],
     [("table", F32, ["V", "D"]), ("ids", I64, ["N"])], [("rows", F32, ["N", "D"])])
save("split", [node("Add", ["x", "x"], ["double"]), node("Neg", ["x"], ["negative"])],
     [("x", F32, ["N"])], [("double", F32, ["N"]), ("negative", F32, ["N"])])
save("nonzero", [node("NonZero", ["x"], ["places"])], [("x", F32, ["N"])], [("places", I64, [1, "count"])])
save("cast-bfloat16", [node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)],
     [("x", F32, ["N"])], [("y", TensorProto.BFLOAT16, ["N"])])
save("cast-int16", [node("Cast", ["x"], ["y"], to=TensorProto.INT16)],
     [("x", F32, ["N"])], [("y", TensorProto.INT16, ["N"])])

# What a device without pointers needs to move data: everything as 32-bit words in one row.
save("words-copy", [node("Identity", ["x"], ["y"])], [("x", I32, ["N"])], [("y", I32, ["N"])])
save("words-fill", [node("Expand", ["word", "count"], ["y"])], [("word", I32, [1]), ("count", I64, [1])],
     [("y", I32, ["N"])])
save("words-gather", [node("Gather", ["x", "rows"], ["y"])], [("x", I32, ["R", "W"]), ("rows", I64, ["K"])],
     [("y", I32, ["K", "W"])])
save("words-join-2", [node("Concat", ["a", "b"], ["y"], axis=0)],
     [("a", I32, ["A"]), ("b", I32, ["B"])], [("y", I32, ["N"])])
save("words-join-3", [node("Concat", ["a", "b", "c"], ["y"], axis=0)],
     [("a", I32, ["A"]), ("b", I32, ["B"]), ("c", I32, ["C"])], [("y", I32, ["N"])])
