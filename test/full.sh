#!/usr/bin/env bash
# What takes too long for every change: the tests on each supported Node.js, the long soaks and the proof under load.
# With `--others`, the running Node.js is left out, for use after `npm test`.
set -euo pipefail
cd "$(dirname "$0")/.."
running="$(node --print 'process.versions.node.split(".")[0]')"
for version in 20 22 24 26; do
  if [ "${1:-}" = --others ] && [ "$version" = "$running" ]; then continue; fi
  echo "--- Node $version"
  npx --yes --package "node@$version" --call 'node --version && npm test && node test/package/check.mjs consumers'
done
echo '--- soaks and load'
SOAK=full npm test -- test/model test/integration
