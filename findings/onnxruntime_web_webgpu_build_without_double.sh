#!/usr/bin/env bash
# onnxruntime-web 1.30.0 (Node.js 20, WebAssembly; no graphics card), onnx 1.23.2: its build for graphics cards, `onnxruntime-web/webgpu`, knows no double precision, not even on the processor:
# a graph with a Cast to double, which `onnxruntime-web/wasm` and `onnxruntime-web/all` compute, can't be loaded, although ['wasm'] is asked for. A program that imports the build for graphics cards and names
# 'wasm' as the one to fall back to has no fallback for such a graph: it must load another build.
# Expected: the processor's part is the same in every build. Seen: "Could not find an implementation for Cast" from the one, the right sum from the two others.
#
# In lmac: the page loads the build without graphics cards where an explainer could not be loaded by the other (`prepared`, lmac/try_it/worker.mjs; tests/test_page.py, test_by_webgpu),
# and graphs of networks that look at magnitudes are in single precision (`exportable_transforms`, nbs/scale/export.ipynb).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check onnx==1.23.2
cd "$work"
"$work/venv/bin/python" - <<'PY'
import onnx
from onnx import TensorProto, helper

nodes = [helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE), helper.make_node("Add", ["wide", "wide"], ["sum"]), helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.FLOAT)]
inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])] for name in "xy")
model = helper.make_model(helper.make_graph(nodes, "twice", inputs, outputs), opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, "twice.onnx")
PY
npm init -y >/dev/null
npm install --silent --ignore-scripts onnxruntime-web@1.30.0
cat > run.mjs <<'JS'
import { readFile } from 'node:fs/promises'
const ort = await import(`onnxruntime-web/${process.argv[2]}`)
ort.env.wasm.numThreads = 1
const answer = async (session) => `gives ${(await session.run({ x: new ort.Tensor('float32', [1, 2], [2]) })).y.data}`
console.log(await ort.InferenceSession.create(await readFile('twice.onnx'), { executionProviders: ['wasm'], logSeverityLevel: 3 }).then(answer, (e) => `raises: ${e.message}`))
JS
for build in wasm all webgpu; do
    said=$(node run.mjs $build)
    echo "onnxruntime-web/$build $said"
    case "$build $said" in
        "wasm gives 2,4" | "all gives 2,4" | "webgpu raises: "*"Could not find an implementation for Cast"*) ;;
        *) echo "the behaviour has changed"; exit 1 ;;
    esac
done
