#!/usr/bin/env bash
# onnxruntime-web 1.30.0 (Node.js 20, WebAssembly) beside onnxruntime 1.32.0 (Python 3.11, Linux), onnx 1.23.2: an input that has an initializer of its own name is one with a default, which a caller may
# override (ONNX IR, since version 4). onnxruntime takes a value for it in Python; onnxruntime-web does not list it among the inputs and refuses it, so that the default can never be changed in a browser.
# Expected: the same inputs in both. Seen: Python gives 5 with the value, JavaScript raises "invalid input 'gain'".
#
# In lmac: exported explainers have no optional inputs; -1 stands for the predicted class and for no threshold.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "gain")]
graph = helper.make_graph([helper.make_node("Mul", ["x", "gain"], ["y"])], "scaled", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
                          initializer=[numpy_helper.from_array(np.float32([1.]), "gain")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, "scaled.onnx")
session = onnxruntime.InferenceSession("scaled.onnx")
x, gain = np.float32([1.]), np.float32([5.])
assert session.run(None, dict(x=x))[0] == 1. and session.run(None, dict(x=x, gain=gain))[0] == 5.
print("onnxruntime, Python: 1 without, 5 with a value")
PY
npm init -y >/dev/null
npm install --silent --ignore-scripts onnxruntime-web@1.30.0
cat > run.mjs <<'JS'
import { readFile } from 'node:fs/promises'
import * as ort from 'onnxruntime-web'
ort.env.wasm.numThreads = 1
const session = await ort.InferenceSession.create(await readFile('scaled.onnx'), { executionProviders: ['wasm'], logSeverityLevel: 3 })
const x = new ort.Tensor('float32', [1], [1]), gain = new ort.Tensor('float32', [5], [1])
const without = (await session.run({ x })).y.data[0], said = await session.run({ x, gain }).then((found) => `gives ${found.y.data[0]}`, (e) => `raises: ${e.message}`)
console.log(`onnxruntime-web: inputs ${session.inputNames}; ${without} without; with a value it ${said}`)
if (without !== 1 || session.inputNames.includes('gain') || !said.startsWith('raises: ')) { console.log('the behaviour has changed'); process.exit(1) }
JS
node run.mjs
