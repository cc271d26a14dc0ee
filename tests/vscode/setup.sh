#!/usr/bin/env bash
# VS Code in a folder of its own, for the tests of the widgets: tests/vscode/setup.sh FOLDER, then pytest tests/test_lab.py --vscode FOLDER
#
# code-server is VS Code with a browser as its window. The Jupyter extension is only to be had from a marketplace, so a small
# one stands in for it: host.js gives notebooks a kernel, renderer.js shows widgets, with the very manager that Microsoft's extension
# shows them with (npm's @vscode/jupyter-ipywidgets8). Needs Node.js 20 with npm, a C++ compiler, the headers of Kerberos (Debian:
# libkrb5-dev) and ripgrep, and 1 GB.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
cd "$1"
[ -e package.json ] || npm init -y >/dev/null
npm install --ignore-scripts code-server@4.100.3    # one of the last for Node.js 20
code=node_modules/code-server/lib/vscode
npm_config_build_from_source=true npm rebuild argon2
( cd "$code"
  npm install --omit=dev --ignore-scripts
  npm rebuild @parcel/watcher @vscode/spdlog kerberos native-watchdog    # what VS Code's server does not start without
  ln -sfn node_modules node_modules.asar
  mkdir -p node_modules/@vscode/ripgrep/bin
  ln -sfn "$(command -v rg)" node_modules/@vscode/ripgrep/bin/rg
  cd extensions
  npm install --omit=dev --ignore-scripts )

rm -rf extension extensions
mkdir -p extension extensions
cp "$here"/{package.json,host.js,renderer.js} extension
( cd extension
  npm install --ignore-scripts
  npm pack --silent @vscode/jupyter-ipywidgets8@1.0.9 >/dev/null    # its bundle alone: what it was made of is not needed
  tar -xzf vscode-jupyter-ipywidgets8-*.tgz
  cp node_modules/requirejs/require.js requirejs.txt
  npx esbuild host.js --bundle --platform=node --external:vscode --outfile=dist/host.js
  npx esbuild renderer.js --bundle --format=esm --define:global=globalThis --define:process.env.NODE_ENV='"production"' --log-override:direct-eval=silent \
      --loader:.txt=text --outfile=dist/renderer.js
  mkdir -p ../extensions/lmac.lmac-kernel-0.0.1
  cp -r package.json dist ../extensions/lmac.lmac-kernel-0.0.1 )
